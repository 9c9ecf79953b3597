"""Work done by several ranks, each a real process, as torchrun would start them on one machine."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from thousandfold.pipeline.distributed import Ranks

_LIMIT_S = 120.0


def run_ranks(
    size: int, work: Callable[..., Any], folder: Path, *arguments: Any, codes: tuple[int, ...] | None = None
) -> None:
    """Call `work(ranks, *arguments)` in `size` processes and wait for them.

    Args:
        size: how many.
        work: a function of a module that can be imported; it connects the ranks itself.
        folder: where what a process raises is written, to be shown here.
        arguments: for `work`.
        codes: the exit codes that are expected; all 0 by default.
    """
    # A server that has imported everything once forks the processes: they start in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rank_preload"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's agent keeps it
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_run, args=(rank, size, store.port, folder, work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LIMIT_S)
    alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in alive:
        processes[rank].kill()
        processes[rank].join()
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.error")))
    assert not alive, f"ranks {alive} hang\n{errors}"
    found = tuple(process.exitcode for process in processes)
    assert found == (codes or (0,) * size), f"exit codes {found}\n{errors}"


def _run(
    rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        work(Ranks.from_environment(), *arguments)
    except BaseException:
        (folder / f"rank-{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
