"""What the ranks of test_distributed.py do."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from thousandfold.ground.errors import LostRankError
from thousandfold.pipeline.distributed import Ranks


def exchange(ranks: Ranks, out: Path, device: str = "cpu") -> None:
    """Call all that ranks call together, several times over and with odd sizes; write what was heard."""
    rank, size = ranks.rank, ranks.size
    with ranks.connect(device):
        for _ in range(2):
            gathered = ranks.gather(torch.tensor([[rank, 7]]))
            assert gathered.tolist() == [[[r, 7]] for r in range(size)]
            assert ranks.gather(torch.tensor(rank)).tolist() == list(range(size))
            assert ranks.gather(torch.zeros(0, 3)).shape == (size, 0, 3)
            strided = (torch.arange(6).view(2, 3) + rank).T
            assert ranks.gather(strided)[size - 1].tolist() == (strided - rank + size - 1).tolist()
            assert ranks.sum_(torch.full((2,), rank + 1.0)).tolist() == [size * (size + 1) / 2] * 2
            assert ranks.any(rank == 1) and not ranks.any(False)
            assert ranks.every(True) and not ranks.every(rank == 0)
            texts = ["", "ψ φ\n", "x" * 70_000, "{}"][:size]
            assert ranks.texts(texts[rank]) == texts
            assert ranks.texts("") == [""] * size
            made = ranks.from_leader(lambda: {"path": "/a b", "value": 0.1, "none": None})
            assert made == {"path": "/a b", "value": 0.1, "none": None}
            ranks.barrier()
        check_averages(ranks)
        check_letters(ranks)
        check_another_thread(ranks)
        heard = {
            "ranks": ranks.gather(torch.tensor(rank)).tolist(),
            "sum": int(ranks.sum_(torch.tensor([rank]))),
            "leader": ranks.from_leader(lambda: f"rank {rank}"),
        }
    (out / f"heard-{rank}.json").write_text(json.dumps(heard))


def check_averages(ranks: Ranks) -> None:
    shapes = [(300, 300), (3,), (), (257, 1), (70_000,), (2, 2)]
    generator = torch.Generator().manual_seed(0)
    whole = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(ranks.size)]
    own = [tensor.clone() for tensor in whole[ranks.rank]]
    ranks.average_(own)
    for index, tensor in enumerate(own):
        expected = torch.stack([tensors[index] for tensors in whole]).mean(0)
        torch.testing.assert_close(tensor, expected)
        assert (ranks.gather(tensor) == tensor).all(), "bit for bit the same on every rank"
    ranks.average_([])


def check_letters(ranks: Ranks) -> None:
    matrices = [torch.arange(6.0).view(2, 3), torch.zeros(0, 4), torch.ones(3, 2).T]
    if ranks.leads:
        for source in range(1, ranks.size):
            for matrix in matrices:
                assert torch.equal(ranks.receive(source, torch.float32), matrix + source)
    else:
        for matrix in matrices:
            ranks.send(matrix + ranks.rank)


def check_another_thread(ranks: Ranks) -> None:
    """What it exchanges does not mix with what this one gathers meanwhile."""
    apart, turns, everyone = ranks.apart(), range(20), range(ranks.size)
    with ThreadPoolExecutor(1) as thread:
        texts = thread.submit(lambda: [apart.texts(f"{turn} {ranks.rank}") for turn in turns])
        gathered = [ranks.gather(torch.tensor(turn + ranks.rank)).tolist() for turn in turns]
    assert texts.result() == [[f"{turn} {rank}" for rank in everyone] for turn in turns]
    assert gathered == [[turn + rank for rank in everyone] for turn in turns]


def lose_one(ranks: Ranks, out: Path) -> None:
    """Rank 1 dies; the others say so, in no time, and one of them is to speak."""
    with ranks.connect("cpu"):
        ranks.barrier()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does then
        started = time.monotonic()
        try:
            for _ in range(3):
                ranks.barrier()
        except LostRankError as error:
            found = {"error": str(error), "speaks": ranks.speaks(), "s": time.monotonic() - started}
            (out / f"found-{ranks.rank}.json").write_text(json.dumps(found))
            os._exit(3)


def fall_silent(ranks: Ranks) -> None:
    """Rank 1 stays away longer than the others wait."""
    os.environ["THOUSANDFOLD_RANK_TIMEOUT_S"] = "1"
    with ranks.connect("cpu"):
        ranks.barrier()
        if ranks.rank == 1:
            time.sleep(2.5)
            os._exit(0)
        try:
            ranks.barrier()
        except LostRankError as error:
            assert str(error) == "A rank did not answer within 1 s"
            os._exit(3)


def end_well(ranks: Ranks, out: Path) -> None:
    """Write what is left after parting: SIGTERM is ignored while connected and heard again afterwards.

    Parting twice does no harm.

    No thread of the library is left, which could abort the interpreter at its end.
    """
    before, threads = signal.getsignal(signal.SIGTERM), _threads()
    with ranks.connect("cpu"):
        os.kill(os.getpid(), signal.SIGTERM)
        weight = torch.ones(3, requires_grad=True)
        torch.optim.Adam([weight], lr=0.1, fused=True)  # imports what would keep hold of the group
        weight.sum().backward()
        assert weight.grad is not None
        ranks.average_([weight.grad])
        assert len(_threads()) > len(threads)
        ranks.disconnect()
    left = {
        "handler": signal.getsignal(signal.SIGTERM) is before,
        "group": torch.distributed.is_initialized(),
        "threads": [name for name in _threads() if "gloo" in name],
    }
    (out / f"left-{ranks.rank}.json").write_text(json.dumps(left))


def _threads() -> list[str]:
    return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
