"""C code beside ONNX Runtime: what a cell holds, and its row of the table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import c_code
from tests.stages.policy_file.c_programs import drawn_policy, require_compiler
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.policy_file.c_code import c_files


@pytest.mark.slow
def test_a_cell_times_all_sides_and_gives_a_row() -> None:
    require_compiler()
    shapes = {"1 x 8": NetworkShape(1, 8, kind="plain"), "4 x 16": NetworkShape(4, 16)}
    cells = {name: c_code.run_cell(shape, 0.0, 0.0) for name, shape in shapes.items()}
    sides = [c_code.ONNX_RUNTIME, c_code.ANY, c_code.THIS]
    assert list(cells["1 x 8"]["latency"]) == [*sides, c_code.EMPTY]
    assert list(cells["4 x 16"]["latency"]) == [*sides, c_code.INT8, c_code.EMPTY]
    assert set(cells["4 x 16"]["cortex_m4f"]) == {"float32", "int8"}
    head, rule, *rows = c_code.table(cells).splitlines()
    for row, name in zip(rows, shapes, strict=True):
        assert head.count("|") == rule.count("|") == row.count("|") and row.startswith(f"| {name} | ")


def test_the_memory_is_that_of_weights_state_and_stack(tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    model = drawn_policy(NetworkShape(1, 32, kind="plain"))
    taken = c_code.memory_taken(c_files(model, Path("policy.onnx")), tmp_path)
    assert taken is not None
    weights = 4 * (8 * 32 + 3 * 32 + 32 * 2 + 2)
    assert weights < taken["flash"] < weights + 20_000
    # 5 readings and 3 controls of one step, starts, what was sent, 2 actions, two counters, marks.
    assert 4 * (8 + 3 + 3 + 2) + 12 <= taken["state"] <= 4 * (8 + 3 + 3 + 2) + 32
    assert 4 * 3 * 32 < taken["stack"] < 2000


def test_without_the_compiler_there_is_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(c_code.shutil, "which", lambda name: None)
    assert c_code.memory_taken({}, tmp_path) is None
