"""Latency: honest percentiles, missed ticks, a complete report, without the training packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.artifacts import Workspace
from pipeline.core.console import Console
from pipeline.core.errors import DamagedFileError, SettingsError
from pipeline.core.runtime import StageContext
from pipeline.core.settings import resolve_settings
from pipeline.core.tracking import NullTracker
from stages import benchmark
from stages.benchmark import BenchmarkSettings, TimedPolicy, summarize
from stages.onnx_policy import POLICY_FILE, OnnxPolicy
from tests.stages.handmade_policy import policy_artifact, write_policy

ROOT = Path(__file__).resolve().parents[2]


def quick(**changes: Any) -> BenchmarkSettings:
    short = {"warmup_s": 0.01, "back_to_back_s": 0.1, "paced_s": 0.1, "rate_hz": 100}
    return BenchmarkSettings(**{**short, **changes})


def context(root: Path) -> StageContext:
    return StageContext(Workspace(root), Console(), NullTracker())


def test_percentiles_are_latencies_that_were_measured():
    summary = summarize(np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)))
    assert summary == {
        "samples": 1000,
        "mean_us": 500.5,
        "p50_us": 500.0,
        "p90_us": 900.0,
        "p99_us": 990.0,
        "p99_9_us": 999.0,
        "max_us": 1000.0,
    }
    few = summarize(np.array([3.0, 1.0, 2.0]))
    assert few["p50_us"] == 2.0 and few["p99_us"] == few["p99_9_us"] == few["max_us"] == 3.0


class Clock:
    """A clock that only calls and sleeps move."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TimedPolicy, list[float]]:
    """Return a policy whose calls take the milliseconds of the list, the last one again and again."""
    clock, durations_ms = Clock(), []
    policy = OnnxPolicy(write_policy(tmp_path / POLICY_FILE))
    timed = TimedPolicy(policy, np.random.default_rng(0))
    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(
        policy,
        "step",
        lambda *state: clock.sleep(1e-3 * (durations_ms.pop(0) if durations_ms[1:] else durations_ms[0])),
    )
    return timed, durations_ms


@pytest.mark.parametrize(
    ("durations_ms", "calls", "missed"),
    [
        ([1.0], 10, 0),
        ([9.9], 10, 0),
        (
            [1.0, 1.0, 12.0, 1.0],
            10,
            1,
        ),  # its own tick alone: the next call starts late and still ends in time
        ([1.0, 35.0, 1.0], 8, 3),  # ticks 1, 2, 3; tick 4 is answered late, within its period
        ([10.5], 10, 10),
        ([25.0], 4, 10),
        ([1000.0], 1, 10),
    ],
)
def test_a_tick_is_missed_when_its_output_is_not_ready_at_the_next(
    timed: tuple[TimedPolicy, list[float]], durations_ms: list[float], calls: int, missed: int
):
    policy, durations = timed
    durations += durations_ms
    timing = policy.run_paced(rate_hz=100, seconds=0.1)
    assert (timing.ticks, len(timing.latency_us), timing.missed) == (10, calls, missed)
    assert timing.latency_us.max() == pytest.approx(1e3 * max(durations_ms))
    assert (timing.response_us >= timing.latency_us - 1e-6).all()


def test_back_to_back_calls_fill_the_time(timed: tuple[TimedPolicy, list[float]]):
    policy, durations = timed
    durations.append(2.0)
    assert policy.run_for(0.1) == [2_000_000] * 50
    assert len(policy.run_for(0.0)) == 1


def test_states_lie_in_the_ranges_of_the_metadata(tmp_path: Path):
    policy = OnnxPolicy(write_policy(tmp_path / POLICY_FILE))
    timed = TimedPolicy(policy, np.random.default_rng(0))
    seen = []
    policy.step = lambda observation, goal: seen.append(np.concatenate([observation, goal]))  # type: ignore
    for _ in range(500):
        timed.call()
    drawn = np.array(seen)
    assert drawn.shape == (500, 6) and len(np.unique(drawn[:, 0])) > 400
    assert drawn.min() >= -1 and drawn.max() <= 1 and drawn.std() > 0.4


def test_student_and_teacher_are_reported_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    policy = policy_artifact(tmp_path)
    artifact = benchmark.run(quick(), context(tmp_path), policy)
    report = json.loads(artifact.file("benchmark.json").read_text())
    assert list(report["networks"]) == ["student", "teacher"] and report["rate_hz"] == 100
    for figures in report["networks"].values():
        for timing in (figures["back_to_back"], figures["paced"]):
            ranked = [timing[name] for name in ("p50_us", "p90_us", "p99_us", "p99_9_us", "max_us")]
            assert ranked == sorted(ranked) and ranked[0] > 0 and timing["samples"] >= 1
        assert figures["paced"]["ticks"] == 10 and 0 <= figures["paced"]["missed"] <= 10
    p50 = {role: figures["back_to_back"]["p50_us"] for role, figures in report["networks"].items()}
    assert report["speedup"] == pytest.approx(p50["teacher"] / p50["student"])
    assert report["runtime"]["threads"] == 1 and report["host"]["cpu"] and "missed" in report["definitions"]

    manifest = artifact.manifest
    assert manifest.status == "completed" and manifest.parents["policy"].hash == policy.manifest.hash
    assert set(manifest.files) == {"benchmark.json", "latency.png"}
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


def test_a_policy_of_another_task_is_refused(tmp_path: Path):
    policy = policy_artifact(tmp_path, task="point_big_maze")
    with pytest.raises(DamagedFileError, match=r"point_u_maze.*point_big_maze"):
        benchmark.run(quick(), context(tmp_path), policy)
    assert Workspace(tmp_path).artifacts("benchmark")[0].manifest.status == "failed"


def test_a_file_that_changed_is_refused(tmp_path: Path):
    policy = policy_artifact(tmp_path)
    path = policy.file(POLICY_FILE)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"policy\.onnx differs"):
        benchmark.run(quick(), context(tmp_path), policy)


@pytest.mark.parametrize(("override", "word"), [("rate_hz=0", "rate_hz"), ("rate=5", "rate_hz")])
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
from pipeline.core.artifacts import Workspace
from pipeline.core.console import Console
from pipeline.core.runtime import StageContext
from pipeline.core.tracking import open_tracker
from stages import benchmark

workspace = Workspace(Path({root!r}))
context = StageContext(workspace, Console(), open_tracker(workspace.root))
settings = benchmark.BenchmarkSettings(warmup_s=0, back_to_back_s=0.05, paced_s=0.05, rate_hz=100)
artifact = benchmark.run(settings, context, workspace.newest("policy"))
print(sorted(artifact.manifest.files), artifact.manifest.results["networks"]["student"]["paced"]["ticks"])
"""


def test_the_base_install_is_enough(tmp_path: Path):
    policy_artifact(tmp_path)
    blocked = {"h5py", "matplotlib", "minari", "mlflow", "onnx", "safetensors", "torch"}
    script = WITHOUT_TRAINING_PACKAGES.format(blocked=blocked, root=str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['benchmark.json'] 5"
    assert "No histogram" in done.stdout and "matplotlib" in done.stdout
