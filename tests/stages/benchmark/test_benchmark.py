"""Latency: honest percentiles, missed ticks, a complete report, without the training packages."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import policy_artifact, write_policy
from thousandfold.ground.errors import DamagedFileError, SettingsError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.benchmark import benchmark
from thousandfold.stages.benchmark.benchmark import BenchmarkSettings, draw_states
from thousandfold.stages.benchmark.runtimes import OF_TORCH, C
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy
from thousandfold.stages.policy_file.source import find_policy

ROOT = Path(__file__).resolve().parents[3]


def quick(**changes: Any) -> BenchmarkSettings:
    short = {"warmup_s": 0.01, "back_to_back_s": 0.1, "paced_s": 0.1, "rate_hz": 100, "rates_hz": (1000,)}
    short |= {"cold_starts": 0, "busy_processes": 0, "compare": False}
    return BenchmarkSettings(**{**short, **changes})


def context(root: Path) -> StageContext:
    return StageContext(Workspace(root), Console(), NullTracker())


def test_states_lie_in_the_ranges_of_the_metadata(tmp_path: Path):
    policy = OnnxPolicy(write_policy(tmp_path / POLICY_FILE))
    states = draw_states(policy, np.random.default_rng(0))
    drawn = np.array([np.concatenate(state) for state in states[:500]])
    assert drawn.shape == (500, 6) and len(np.unique(drawn[:, 0])) > 400 and drawn.dtype == np.float32
    assert drawn.min() >= -1 and drawn.max() <= 1 and drawn.std() > 0.4


@pytest.mark.pictures
def test_student_and_teacher_are_reported_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    policy = policy_artifact(tmp_path)
    artifact = benchmark.run(quick(), context(tmp_path), policy)
    report = json.loads(artifact.file("benchmark.json").read_text())
    assert list(report["networks"]) == ["student", "teacher"] and report["rate_hz"] == 100
    for figures in report["networks"].values():
        for timing in (figures["back_to_back"], figures["inside_runtime"], figures["paced"]):
            ranked = [timing[name] for name in ("p50_us", "p90_us", "p99_us", "p99_9_us", "max_us")]
            assert ranked == sorted(ranked) and ranked[0] > 0 and timing["samples"] >= 1
        assert figures["paced"]["ticks"] == 10 and 0 <= figures["paced"]["missed"] <= 10
    loops = {loop["rate_hz"]: loop for loop in report["paced_loops"]}
    assert list(loops) == [100, 1000] and loops[1000]["empty"]["ticks"] == loops[1000]["ticks"] == 100
    assert loops[100]["p99_us"] == report["networks"]["student"]["paced"]["p99_us"]
    assert report["networks"]["student"]["roofline"]["ratio"] > 1 and report["busy"] is None
    p50 = {role: figures["back_to_back"]["p50_us"] for role, figures in report["networks"].items()}
    assert report["speedup"] == pytest.approx(p50["teacher"] / p50["student"])
    assert report["runtime"]["threads"] == 1 and report["host"]["cpu"] and "missed" in report["definitions"]

    manifest = artifact.manifest
    assert manifest.status == "completed" and manifest.parents["policy"].hash == policy.manifest.hash
    assert set(manifest.files) == {"benchmark.json", "latency.png", "timeline.png"}
    assert manifest.results["networks"] == report["networks"]
    printed = capsys.readouterr().out
    assert "p99.9" in printed and "at 100 Hz" in printed and artifact.name in printed


def test_the_pace_is_the_tasks_and_a_policy_may_stand_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = quick(warmup_s=0, paced_s=0.2, rate_hz=None, device="cuda")
    artifact = benchmark.run(settings, context(tmp_path), policy_artifact(tmp_path, teacher=False))
    assert "times one CPU thread" in capsys.readouterr().out
    results = artifact.manifest.results
    assert results["rate_hz"] == 10 and results["networks"]["student"]["paced"]["ticks"] == 2
    assert results["speedup"] is None and list(results["networks"]) == ["student"]


def test_a_file_alone_is_timed_as_one_on_a_robots_computer_is(tmp_path: Path):
    path = write_policy(tmp_path / "copied.onnx")
    place = find_policy(Workspace(tmp_path), str(path))
    manifest = benchmark.run(quick(compare=True), context(tmp_path), place).manifest
    assert manifest.task == "point_u_maze" and manifest.parents == {}
    assert manifest.results["policy"] == str(path)
    assert manifest.results["graph_sha256"] == OnnxPolicy(path).metadata.graph_sha256
    assert list(manifest.results["networks"]) == ["student"]
    left_out = manifest.results["left_out"]
    assert all("outside a policy's artifact" in left_out[name] for name in OF_TORCH)
    if C in left_out:
        assert left_out[C] == "There is no C compiler here (cc, gcc, clang)"
    else:
        in_c = manifest.results["comparison"][C]
        assert in_c["max_action_difference"] < 1e-6 and in_c["paced"]["ticks"] > 0


def test_figures_of_another_file_of_an_artifact_are_not_the_policys(tmp_path: Path):
    policy = policy_artifact(tmp_path)
    place = find_policy(Workspace(tmp_path), str(policy.file(TEACHER_FILE)))
    manifest = benchmark.run(quick(), context(tmp_path), place).manifest
    assert list(manifest.results["networks"]) == ["teacher"] and manifest.parents == {}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads")
def test_a_load_and_fresh_processes_give_rows_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = quick(busy_processes=1, cold_starts=1, core=max(os.sched_getaffinity(0)))
    before = os.sched_getaffinity(0)
    report = benchmark.run(
        settings, context(tmp_path), policy_artifact(tmp_path, teacher=False)
    ).manifest.results
    assert report["busy"]["paced"]["rate_hz"] == 1000 and report["busy"]["back_to_back"]["samples"] > 0
    assert report["cold_start"]["total_s"] > 0 and report["realtime"]["core"] == "on"
    assert os.sched_getaffinity(0) == before and gc.isenabled()
    printed = capsys.readouterr().out
    assert "student, 1 busy process" in printed and "Cold start: " in printed and "Memory: " in printed


def test_what_the_system_refuses_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    artifact = benchmark.run(quick(fifo_priority=50), context(tmp_path), policy_artifact(tmp_path))
    assert "Warning: SCHED_FIFO: refused: needs CAP_SYS_NICE" in capsys.readouterr().err
    assert artifact.manifest.results["realtime"]["sched_fifo"].startswith("refused: needs CAP_SYS_NICE")


def test_a_policy_of_another_task_is_refused(tmp_path: Path):
    policy = policy_artifact(tmp_path, task="point_big_maze")
    with pytest.raises(DamagedFileError, match=r"point_u_maze.*point_big_maze"):
        benchmark.run(quick(), context(tmp_path), policy)
    assert not Workspace(tmp_path).artifacts("benchmark")


def test_a_file_that_changed_is_refused(tmp_path: Path):
    policy = policy_artifact(tmp_path)
    path = policy.file(POLICY_FILE)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"policy\.onnx differs"):
        benchmark.run(quick(), context(tmp_path), policy)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("rate_hz=0", "rate_hz"),
        ("rate=5", "rate_hz"),
        ("rates_hz=[50, 0]", "rates_hz"),
        ("fifo_priority=100", "fifo_priority"),
        ("busy_processes=-1", "busy_processes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override: str, word: str):
    with pytest.raises(SettingsError, match=word):
        resolve_settings(BenchmarkSettings, "benchmark", overrides=[override])


WITHOUT_TRAINING_PACKAGES = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {blocked!r}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from pathlib import Path
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import open_tracker
from thousandfold.stages.benchmark import benchmark

workspace = Workspace(Path({root!r}))
context = StageContext(workspace, Console(), open_tracker(workspace.root))
short = dict(warmup_s=0, back_to_back_s=0.05, paced_s=0.05, rate_hz=100, cold_starts=1)
settings = benchmark.BenchmarkSettings(**short)
artifact = benchmark.run(settings, context, workspace.newest("policy"))
results = artifact.manifest.results
ticks = results["networks"]["student"]["paced"]["ticks"]
torch_alone = [name for name in results["left_out"] if name != "C"]
print(sorted(artifact.manifest.files), ticks, len(torch_alone))
"""


def test_the_base_install_is_enough(tmp_path: Path):
    policy_artifact(tmp_path)
    blocked = {"h5py", "matplotlib", "minari", "mlflow", "onnx", "safetensors", "threadpoolctl", "torch"}
    script = WITHOUT_TRAINING_PACKAGES.format(blocked=blocked, root=str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['benchmark.json'] 5 3"
    assert "No pictures" in done.stdout and "matplotlib" in done.stdout
    assert "torch eager: torch, safetensors, threadpoolctl not installed" in done.stdout
