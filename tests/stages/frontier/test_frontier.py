"""A frontier from end to end: through the command line, over a kill, and the student chosen from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import clean_environment, command, error_of, pipeline
from tests.stages.frontier.frontier_runs import QUICK, make_dataset, make_teacher
from tests.stages.policy_file.c_programs import require_compiler
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.ground.files import LOCK_FILE, folder_lock
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.jobs import finished
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.pipeline.session import CommonOptions
from thousandfold.pipeline.tracking import NEWEST_ALIAS
from thousandfold.stages.distill.retention import PairedEpisodes
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.frontier.cells import Cell, cell_workspace, teacher_workspace
from thousandfold.stages.frontier.frontier import cell_settings, resolve_plan
from thousandfold.stages.frontier.table import read_table
from thousandfold.stages.networks import load_actor, torch_policy

pytestmark = pytest.mark.pictures


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def invoke(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), "frontier", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def plan_of(*overrides: str, **flags: Any) -> Any:
    return resolve_plan(CommonOptions("smoke", overrides, None, None, False), flags)


# -- what is asked for ------------------------------------------------------------------------------


def test_settings_reach_their_stages_and_every_cell() -> None:
    plan = plan_of("distill.updates=7", "benchmark.paced_s=1", "frontier.jobs=2", depths="1,4", widths="8")
    assert plan.jobs == 2 and plan.benchmark["paced_s"] == 1
    small, large = (cell_settings(plan, Cell(depth, 8)) for depth in (1, 4))
    assert (small.student_depth, small.student_width, small.shape.kind) == (1, 8, "plain")
    assert (large.student_depth, large.shape.kind, large.updates) == (4, "residual", 7)


def test_c_is_a_runtime_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thousandfold.stages.frontier.frontier.c_compiler", lambda: "cc")
    assert plan_of(runtime="c").benchmark["compare"] is True
    assert plan_of().benchmark["compare"] is False
    with pytest.raises(SettingsError, match="leave compare=false out"):
        plan_of("benchmark.compare=false", runtime="c")
    monkeypatch.setattr("thousandfold.stages.frontier.frontier.c_compiler", lambda: None)
    with pytest.raises(SettingsError, match="there is no C compiler here"):
        plan_of(runtime="c")
    assert plan_of().runtime == "onnxruntime"


@pytest.mark.parametrize(("jobs", "threads"), [("1", 8), ("2", 4), ("0", 1), ("20", 1)])
def test_processes_share_the_cpus(monkeypatch: pytest.MonkeyPatch, jobs: str, threads: int) -> None:
    monkeypatch.setattr("thousandfold.pipeline.runtime.usable_cpus", lambda: 8)
    monkeypatch.setattr("thousandfold.stages.frontier.frontier.usable_cpus", lambda: 8)
    shared = plan_of("distill.threads=0", jobs=jobs)
    assert cell_settings(shared, Cell(4, 8)).threads == threads
    assert cell_settings(plan_of("distill.threads=3", jobs=jobs), Cell(4, 8)).threads == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.student-depth=4", "the grid says so; give --depths"),
        ("distill.student_kind=residual", "depth 2 of a residual network is not a multiple of 4"),
        ("distill.update=4", "did you mean 'updates'"),
        ("updates=4", "name the stage too"),
        ("generate_dataset.episodes=4", "Unknown stage"),
    ],
)
def test_what_no_cell_can_have_is_refused(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_of(override, depths="2,4")


def test_a_dry_run_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    shown = json.loads(invoke(tmp_path / "new", "--preset=smoke", "--dry-run", "--json").stdout)
    assert shown["frontier"]["depths"] == [1, 4] and shown["frontier"]["distill"]["updates"] == 20
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-p99-us=3",), "--max-p99-us: only --select chooses; leave it out"),
        (("--frontier=a", "--confident"), "--confident, --frontier: only --select chooses; leave them out"),
        (("--select", "--depths=2"), "--depths: --select chooses from an existing frontier"),
        (("--select", "--min-retention=nan"), "--min-retention must be between 0 and 2"),
        (("--select", "--max-p99-us=0"), "--max-p99-us greater than 0"),
        (("--select",), "No completed frontier"),
        (("--resume", "--depths=2"), "leave --depths out"),
        (("--resume",), "No unfinished frontier"),
        (("--depths=0",), "must be greater than or equal to 1"),
        (("--widths=,",), "widths must name at least one size"),
        ((), "No completed teacher"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in error_of(invoke(tmp_path, *arguments, code=2).stderr)


# -- a whole frontier -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frontier")


@pytest.fixture(scope="module")
def made(workspace: Path) -> Result:
    """Make a frontier of two students, one of them larger than its teacher, with the dataset it needs."""
    make_teacher(workspace)
    arguments = ("--depths=5", "--widths=4,24", *QUICK)
    return CliRunner().invoke(cli, ["--workspace", str(workspace), "frontier", *arguments, "--json"])


@pytest.fixture(scope="module")
def frontier(made: Result) -> Artifact:
    assert made.exit_code == 0, made.output + repr(made.exception)
    return Artifact.load(Path(json.loads(made.stdout)["path"]))


def test_the_table_says_what_was_measured_of_every_student(frontier: Artifact) -> None:
    table = read_table(frontier)
    assert [row["name"] for row in table["rows"]] == ["5x4", "5x24"]
    assert table["failed"] == []
    for row in table["rows"]:
        workspace = cell_workspace(frontier, Cell(row["depth"], row["width"]))
        student, benchmark = finished(workspace, "student"), finished(workspace, "benchmark")
        assert student is not None and benchmark is not None
        results = student.manifest.results
        for name in ("success", "retention", "retention_interval", "episodes"):
            assert row[name] == results[name]
        assert row["parameters"] == results["student_parameters"]
        timing = benchmark.manifest.results["networks"]["student"]["back_to_back"]
        assert (row["p50_us"], row["p99_us"]) == (timing["p50_us"], timing["p99_us"])
        assert row["kind"] == "plain" and row["p99_us"] >= row["p50_us"] > 0
    assert any(row["on_front"] for row in table["rows"])
    teacher = table["teacher"]
    assert (teacher["depth"], teacher["width"]) == (4, 16) and teacher["p99_us"] > 0
    assert teacher["success"] == results["teacher_success"] > 0.2


def test_the_artifact_is_whole_and_its_students_are_no_news(frontier: Artifact, workspace: Path) -> None:
    frontier.verify()
    assert frontier.file("frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert not frontier.file("episodes").exists()
    assert ".lock" not in frontier.manifest.files
    assert len(list(workspace.glob("cache/datasets/*"))) == 1, "all processes read one packed copy"
    assert not list(frontier.path.rglob("cache"))
    assert frontier.manifest.results["students"] == 2 and frontier.manifest.results["failed"] == 0
    assert Workspace(workspace).artifacts("policy") == []
    teacher = finished(teacher_workspace(frontier), "policy")
    assert teacher is not None and "teacher" not in teacher.manifest.results


def test_the_console_says_what_it_did(made: Result, frontier: Artifact) -> None:
    assert "making one first" in made.stderr
    assert "students with more parameters than their teacher: 5x24." in made.stderr
    assert f"Frontier of {frontier.manifest.parents['teacher'].name}" in made.stderr
    log = cell_workspace(frontier, Cell(5, 4)).root / "log.txt"
    assert "reproduces its recorded success" in log.read_text()


def test_every_student_has_a_run_of_its_own_below_the_frontier(frontier: Artifact, workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow/mlflow.db")
    own = client.get_run(frontier.manifest.tracking["run_id"])
    assert own.data.tags["mlflow.parentRunId"] == frontier.manifest.tracking["chain_run_id"]
    assert "frontier.png" in {file.path for file in client.list_artifacts(own.info.run_id)}
    query = f"tags.mlflow.parentRunId = '{own.info.run_id}'"
    students = client.search_runs([own.info.experiment_id], filter_string=query)
    assert {run.info.run_name for run in students} == {"5x4", "5x24"}
    for run in students:
        depth, width = run.info.run_name.split("x")
        assert (run.data.params["student_depth"], run.data.params["student_width"]) == (depth, width)
        assert run.data.metrics["latency/p99_us"] > 0 and run.info.status == "FINISHED"


def test_a_bound_that_none_meets_is_an_error_and_registers_nothing(
    frontier: Artifact, workspace: Path
) -> None:
    result = invoke(workspace, "--select", "--min-retention=0", "--max-p99-us=0.001", code=2)
    assert "No student has a p99 of 0.001 µs" in error_of(result.stderr)
    assert Workspace(workspace).artifacts("student") == []


def test_the_student_chosen_is_the_newest_student_and_policy(frontier: Artifact, workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    result = invoke(workspace, "--select", "--min-retention=0", "--frontier", frontier.name, "--json")
    entries = json.loads(result.stdout)
    inside = finished(cell_workspace(frontier, Cell(5, 4)), "student")
    student = Workspace(workspace).newest("student")
    assert inside is not None and student.name == entries["student"]["artifact"]
    student.verify()
    assert student.manifest.hash == inside.manifest.hash
    assert student.manifest.results["frontier"] == frontier.name
    policy = Workspace(workspace).newest("policy")
    assert policy.manifest.parents["student"].hash == student.manifest.hash
    assert policy.name == entries["policy"]["artifact"] and "teacher.onnx" in policy.manifest.files
    fresh = student.manifest.results["fresh_episodes"]
    for name in ("retention", "retention_interval", "success"):
        assert fresh[name] == fresh_results(frontier, student)[name] != student.manifest.results[name]
    assert fresh["episodes"] == 1024 and "Over 1,024 fresh episodes 5x4 has success" in result.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow/mlflow.db")
    run = client.get_run(student.manifest.tracking["run_id"])
    assert run.data.metrics["fresh/retention"] == fresh["retention"]
    for kind, artifact in (("student", student), ("policy", policy)):
        version = client.get_model_version_by_alias(f"{kind}-point_u_maze", NEWEST_ALIAS)
        assert version.tags["artifact"] == artifact.name
    frontier.verify()


@pytest.mark.slow
def test_students_are_compared_and_chosen_as_c_code(tmp_path: Path) -> None:
    require_compiler()
    make_teacher(tmp_path)
    invoke(tmp_path, "--depths=1", "--widths=8", "--runtime=c", *QUICK)
    frontier = Workspace(tmp_path).newest("frontier")
    (row,) = read_table(frontier)["rows"]
    benchmark = finished(cell_workspace(frontier, Cell(1, 8)), "benchmark")
    assert benchmark is not None
    assert row["p99_us"] == benchmark.manifest.results["comparison"]["C"]["p99_us"]
    chosen = invoke(tmp_path, "--select", "--min-retention=0")
    assert "µs as C." in chosen.output and "Its C code: pipeline policy to-c policy-" in chosen.output


def fresh_results(frontier: Artifact, student: Artifact) -> dict[str, Any]:
    """Return what teacher and student reach over the first choice's 1024 episodes, which no stage has run."""
    teacher = next(
        artifact
        for artifact in Workspace(frontier.path.parents[1]).artifacts("teacher")
        if artifact.manifest.hash == frontier.manifest.parents["teacher"].hash
    )
    sides = []
    for artifact in (teacher, student):
        trained = load_actor(artifact)
        policy, seed = torch_policy(trained.actor), seed_sequence(0, 17, 0)
        sides.append(run_episodes(trained.task, policy, episodes=1024, seed=seed))
    return PairedEpisodes(*sides).results()


@pytest.mark.slow
def test_a_choice_that_fresh_episodes_do_not_bear_out_is_told(
    frontier: Artifact, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(frontier)
    lucky = [row | {"retention": 1.9, "retention_interval": [1.8, 2.0]} for row in table["rows"]]
    monkeypatch.setattr(
        "thousandfold.stages.frontier.selection.read_table", lambda _: table | {"rows": lucky}
    )
    teacher = Workspace(workspace).newest("teacher").path
    result = invoke(workspace, "--select", "--min-retention=1.8", "--teacher", str(teacher))
    assert "that is below the 1.8 asked for" in result.stderr
    invoke(workspace, "--select", "--min-retention=1.8", "--teacher", str(teacher))
    fresh = [
        artifact.manifest.results["fresh_episodes"] for artifact in Workspace(workspace).artifacts("student")
    ]
    seeds = [tuple(results["evaluation_seed"]) for results in fresh]
    assert len(seeds) >= 2 and len(set(seeds)) == len(seeds), "other episodes each time"


@pytest.mark.slow
def test_a_teacher_that_never_succeeds_leaves_a_retention_that_is_undefined(
    frontier: Artifact, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(frontier)
    undefined = [row | {"retention": None, "retention_interval": None} for row in table["rows"]]
    monkeypatch.setattr(
        "thousandfold.stages.frontier.selection.read_table", lambda _: table | {"rows": undefined}
    )
    result = invoke(workspace, "--select", "--min-retention=0")
    assert "retention undefined" in result.stdout


@pytest.mark.slow
def test_without_the_teacher_the_choice_is_said_to_flatter(
    frontier: Artifact, workspace: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "runs" / frontier.name
    shutil.copytree(frontier.path, elsewhere)
    result = invoke(tmp_path, "--select", "--min-retention=0")
    assert "no fresh episodes without the teacher" in result.stderr
    assert Workspace(tmp_path).newest("student").manifest.results["fresh_episodes"] is None


def test_a_frontier_in_the_making_is_left_alone(frontier: Artifact, workspace: Path) -> None:
    made_of = {"settings": frontier.manifest.settings, "parents": frontier.manifest.parents}
    unfinished = Workspace(workspace).create("frontier", task=frontier.manifest.task, **made_of)
    under_way = cell_workspace(unfinished, Cell(5, 4)).runs / "student-1"
    under_way.mkdir(parents=True)
    before = unfinished.file("manifest.json").read_bytes()
    with folder_lock(unfinished.path):
        result = invoke(workspace, "--resume", unfinished.name, code=2)
    assert "in use by another process" in error_of(result.stderr)
    assert under_way.exists() and unfinished.file("manifest.json").read_bytes() == before


# -- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.slow
def test_when_every_student_fails_one_line_says_why(tmp_path: Path) -> None:
    make_dataset(tmp_path, make_teacher(tmp_path))
    impossible = "--set=export_onnx.max_action_error=1e-12"
    result = invoke(tmp_path, "--depths=4", "--widths=4", *QUICK, impossible, code=2)
    assert error_of(result.stderr).startswith("Error: None of the 1 students could be made: ")
    (artifact,) = Workspace(tmp_path).artifacts("frontier")
    assert artifact.manifest.status == "failed"


@pytest.mark.slow
def test_a_student_that_failed_is_tried_again_by_name(
    frontier: Artifact, workspace: Path, tmp_path: Path
) -> None:
    """Its folder is emptied, as a full disk would leave it, and the manifest says that it failed."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    broken = Artifact.load(tmp_path / "runs" / frontier.name)
    shutil.rmtree(broken.file("cells") / "5x4" / "runs")
    broken.complete(broken.manifest.results | {"failed": 1}, exclude=(LOCK_FILE,))
    result = invoke(tmp_path, "--resume", frontier.name)
    assert "1 at a time" in result.stdout
    again = Artifact.load(broken.path)
    again.verify()
    assert again.manifest.results["failed"] == 0 and "5x4" in {
        row["name"] for row in read_table(again)["rows"]
    }
    result = invoke(tmp_path, "--resume", frontier.name, code=2)
    assert "is completed: there is nothing to resume" in error_of(result.stderr)


def test_a_teacher_that_is_not_what_was_evaluated_is_refused_once(tmp_path: Path) -> None:
    make_dataset(tmp_path, make_teacher(tmp_path, success=0.01))
    result = invoke(tmp_path, "--depths=4", "--widths=4", *QUICK, code=2)
    assert "it is not the network that was evaluated" in error_of(result.stderr)
    (artifact,) = Workspace(tmp_path).artifacts("frontier")
    assert not artifact.file("cells").exists(), "no process was started"


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_frontier_that_was_stopped_goes_on_and_does_nothing_twice(tmp_path: Path, number: int) -> None:
    make_dataset(tmp_path, make_teacher(tmp_path))
    arguments = ("--workspace", str(tmp_path), "frontier", "--depths=4,8", "--widths=4", "--jobs=1", *QUICK)
    process = subprocess.Popen(
        command(*arguments), env=clean_environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )

    def done() -> list[Artifact]:
        found = [Artifact.load(path.parent) for path in tmp_path.glob("runs/*/cells/*/runs/*/manifest.json")]
        return [a for a in found if a.kind == "policy" and a.manifest.status == "completed"]

    wait_for(done, process)
    (artifact,) = Workspace(tmp_path).artifacts("frontier")
    with pytest.raises(UserError, match="in use by another process"), folder_lock(artifact.path):
        pass
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert f"what it has saved is kept in {artifact.path}. Continue with: pipeline" in stderr
    (artifact,) = Workspace(tmp_path).artifacts("frontier")
    assert artifact.manifest.status == "running"
    first = {path: path.stat().st_mtime_ns for path in artifact.path.glob("cells/8x4/runs/*/*.safetensors")}
    assert len(first) == 1, "the most expensive student comes first"

    pipeline(tmp_path, "frontier", "--resume")
    table = read_table(Workspace(tmp_path).newest("frontier"))
    assert [row["name"] for row in table["rows"]] == ["4x4", "8x4"]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    (again,) = Workspace(tmp_path).artifacts("frontier")
    assert again.manifest.status == "completed"
    assert error_of(pipeline(tmp_path, "frontier", "--resume", code=2).stderr)
