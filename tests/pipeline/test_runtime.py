"""What a process runs with: processors, devices, seeds, errors and memory."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from thousandfold.ground.errors import NonFiniteError, SettingsError
from thousandfold.pipeline import runtime
from thousandfold.pipeline.runtime import (
    cpu_share,
    require_finite,
    require_precision,
    seed_sequence,
    torch_seed,
)


@pytest.mark.parametrize(("processes", "share"), [(1, 5), (2, 2), (5, 1), (9, 1)])
def test_cpus_are_shared_evenly_at_least_one_each(
    monkeypatch: pytest.MonkeyPatch, processes: int, share: int
):
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 5)
    assert cpu_share(processes) == share


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_is_refused_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch, name: str):
    for able in ({}, {"avx512_f": True, name: False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        with pytest.raises(SettingsError, match=r"this processor has no instructions .* precision=float32"):
            require_precision("bfloat16", "cpu")
        require_precision("float32", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    require_precision("bfloat16", "cpu")


def test_streams_of_randomness_are_reproducible_and_independent():
    def draw(seed: int, *stream: int) -> np.ndarray:
        return np.random.default_rng(seed_sequence(seed, *stream)).standard_normal(4000)

    assert np.array_equal(draw(3, 1), draw(3, 1))
    streams = [draw(*key) for key in ((0, 1), (0, 2), (1, 1), (1, 2), (0, 1, 0), (0, 1, 2), (0, 12))]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


def test_torch_seeds_are_distinct_and_accepted():
    seeds = {torch_seed(seed, stream) for seed in range(20) for stream in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert torch_seed(5, 3) == torch_seed(5, 3)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_with_where_and_what_is_kept(value: float):
    values = {"actor_loss": 1.0, "critic_loss": value, "alpha": math.nan}
    with pytest.raises(NonFiniteError) as raised:
        require_finite(values, "step 3,200", Path("/runs/checkpoint"))
    assert str(raised.value) == (
        f"critic_loss became {value} at step 3,200. The last good checkpoint is kept in /runs/checkpoint."
    )
    with pytest.raises(NonFiniteError) as raised:
        require_finite(values, "update 1")
    assert str(raised.value) == f"critic_loss became {value} at update 1."
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("values", [{"loss": -1e30, "zero": 0.0}, {}])
def test_finite_numbers_pass(values: dict[str, float]):
    assert require_finite(values, "anywhere") is None


# Makes and frees eight matrices of 16 MiB, and prints how many MiB stay resident after that.
MEASURE_RESIDENT = """
import os
import sys
from pathlib import Path
import torch
from thousandfold.pipeline.runtime import keep_freed_memory

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident_pages()
blocks = [torch.zeros(2**22) for _ in range(8)]
blocks.clear()
print((resident_pages() - before) * os.sysconf("SC_PAGE_SIZE") // 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc/self/statm")
def test_freed_memory_is_kept_for_the_next_allocation():
    def resident(how: str) -> int:
        command = [sys.executable, "-c", MEASURE_RESIDENT, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert resident("keep") > 112  # of 128 MiB
    assert resident("give back") < 64
