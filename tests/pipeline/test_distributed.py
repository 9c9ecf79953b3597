"""Ranks: what torchrun's variables say, even shares, and what real processes tell one another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.pipeline import rank_work
from tests.rank_processes import run_ranks
from thousandfold.ground.errors import LostRankError, SettingsError, UserError
from thousandfold.pipeline import distributed
from thousandfold.pipeline.distributed import Ranks

VARIABLES = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_torchrun_s_variables_are_read():
    ranks = Ranks.from_environment(VARIABLES)
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size) == (3, 4, 1, 2)
    assert not ranks.leads and ranks.stream == (3,)
    assert Ranks(0, 2, 0, 2).launcher == "torchrun --nproc-per-node 2 --no-python "
    assert ranks.launcher == (
        "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT --nproc-per-node 2 --no-python "
    )


@pytest.mark.parametrize("environment", [{}, VARIABLES | {"WORLD_SIZE": "1"}])
def test_without_torchrun_or_with_one_process_there_is_one_rank(environment: dict[str, str]):
    ranks = Ranks.from_environment(environment)
    assert (ranks.rank, ranks.size, ranks.local_size) == (0, 1, 1)
    assert ranks.leads and ranks.stream == () and ranks.launcher == ""


@pytest.mark.parametrize("lacking", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_half_of_the_variables_is_one_clear_line(lacking: str):
    environment = {name: value for name, value in VARIABLES.items() if name != lacking}
    with pytest.raises(UserError, match=r"WORLD_SIZE is '4', but .* start several processes with torchrun"):
        Ranks.from_environment(environment)
    with pytest.raises(UserError, match="torchrun"):
        Ranks.from_environment(environment | {lacking: "two"})


def test_neither_this_nor_the_command_line_loads_torch():
    code = "import sys; from thousandfold.pipeline import cli, distributed; print('torch' in sys.modules)"
    root = Path(distributed.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("size", "total", "share"), [(1, 7, 7), (2, 8, 4), (4, 512, 128), (3, 3, 1)])
def test_what_can_be_split_evenly_is(size: int, total: int, share: int):
    assert Ranks(size - 1, size).share("num_worlds", total) == share


@pytest.mark.parametrize(
    ("size", "total", "least", "message"),
    [
        (2, 9, 1, "num_worlds 9 cannot be split evenly over 2 ranks: use 8 or 10."),
        (3, 1, 1, "num_worlds 1 cannot be split evenly over 3 ranks: use 3."),
        (4, 130, 1, "num_worlds 130 cannot be split evenly over 4 ranks: use 128 or 132."),
        (2, 2, 2, "num_worlds 2 cannot be split evenly over 2 ranks, at least 2 each: use 4."),
        (2, 5, 2, "num_worlds 5 cannot be split evenly over 2 ranks, at least 2 each: use 4 or 6."),
    ],
)
def test_what_cannot_is_refused_with_the_nearest_that_can(size: int, total: int, least: int, message: str):
    for rank in range(size):
        with pytest.raises(SettingsError) as raised:
            Ranks(rank, size).share("num_worlds", total, least)
        assert str(raised.value) == message


def test_every_rank_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(3, 4, 1, 2).place("cuda") == "cuda:1" and chosen == [1]
    assert Ranks(3, 4, 1, 2).place("cpu") == "cpu" and Ranks().place("cuda") == "cuda"
    with pytest.raises(SettingsError, match="4 ranks on a machine with 2 CUDA devices"):
        Ranks(0, 4, 0, 4).place("cuda")


def test_a_process_alone_hears_itself():
    ranks, values = Ranks(), [torch.tensor([1.0, 2.0])]
    with ranks.connect("cpu"):
        assert ranks.gather(values[0]).tolist() == [[1.0, 2.0]]
        assert ranks.gather(torch.tensor(3)).tolist() == [3]
        assert ranks.sum_(values[0]) is values[0]
        ranks.average_(values)
        ranks.barrier()
        assert values[0].tolist() == [1.0, 2.0]
        assert ranks.any(True) and not ranks.any(False) and ranks.every(True) and not ranks.every(False)
        assert ranks.texts("a") == ["a"]
        made = object()
        assert ranks.from_leader(lambda: made) is made, "what does not fit into JSON too"
    ranks.disconnect()
    assert ranks.speaks()


def test_before_they_are_connected_rank_0_speaks_and_others_wait(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    assert Ranks(0, 2).speaks() and Ranks(1, 2).speaks()
    assert waited[0] == 0.0 and waited[1] > 1.0


def test_only_the_loss_of_a_peer_is_a_lost_rank():
    ranks = Ranks(0, 2)
    for text in ("gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1", "Broken pipe"):
        with pytest.raises(LostRankError, match=r"^A rank was lost$"), ranks._losses():
            raise RuntimeError(text)
    with pytest.raises(LostRankError, match="was lost"), ranks._losses():
        raise torch.distributed.DistBackendError("NCCL error: unhandled system error")
    with pytest.raises(LostRankError, match="did not answer within 3600 s"), ranks._losses():
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")
    with pytest.raises(RuntimeError, match="same shape"), ranks._losses():
        raise RuntimeError("tensors must have the same shape")


@pytest.mark.parametrize("text", ["soon", ""])
def test_a_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv(distributed.TIMEOUT_VARIABLE, text)
    with pytest.raises(UserError, match="must be a number of seconds"), Ranks(0, 2).connect("cpu"):
        pass


def test_ranks_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    message = r"Rank 1 does not find the others: .*MASTER_ADDR"
    with pytest.raises(UserError, match=message), Ranks(1, 2).connect("cpu"):
        pass


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_tell_one_another_the_same(tmp_path: Path, size: int):
    run_ranks(size, rank_work.exchange, tmp_path, tmp_path)
    heard = [json.loads((tmp_path / f"heard-{rank}.json").read_text()) for rank in range(size)]
    everybody = list(range(size))
    assert heard == [{"ranks": everybody, "sum": sum(everybody), "leader": "rank 0"}] * size


def test_a_lost_rank_is_noticed_at_once_and_told_once(tmp_path: Path):
    run_ranks(3, rank_work.lose_one, tmp_path, tmp_path, codes=(3, -signal.SIGKILL, 3))
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 2)]
    assert {entry["error"] for entry in found} == {"A rank was lost"}
    assert [entry["speaks"] for entry in found].count(True) == 1
    assert max(entry["s"] for entry in found) < 10.0


def test_a_rank_that_does_not_answer_ends_the_wait(tmp_path: Path):
    started = time.monotonic()
    run_ranks(2, rank_work.fall_silent, tmp_path, codes=(3, 0))
    assert time.monotonic() - started < 60.0


def test_sigterm_is_heard_again_once_the_ranks_have_parted(tmp_path: Path):
    run_ranks(2, rank_work.end_well, tmp_path, tmp_path)
    for rank in range(2):
        left = json.loads((tmp_path / f"left-{rank}.json").read_text())
        assert left == {"handler": True, "group": False, "threads": []}
