"""`pipeline runs`: filters, `newest` for a name, two artifacts side by side, and artifacts that go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from thousandfold.ground.files import folder_lock
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.tracking import open_tracker


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")


def make(root: Path, kind: str, *parents: Artifact, task: str = "reacher", **settings: Any) -> Artifact:
    entries = {parent.kind: parent.parent_entry() for parent in parents}
    artifact = Workspace(root).create(kind, task=task, settings=settings, parents=entries)
    artifact.file("data.txt").write_text(artifact.name)
    artifact.complete({"success": 0.5, "rows": 1200, "success_interval": [0.4, 0.6], "host": {"cpu": "x"}})
    return artifact


def invoke(root: Path, *arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(root), "runs", *arguments], input=answer)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def names(root: Path, *arguments: str) -> list[str]:
    return [row["artifact"] for row in json.loads(invoke(root, *arguments, "--json").stdout)["artifacts"]]


class TestFilters:
    @pytest.fixture
    def made(self, tmp_path: Path) -> dict[str, str]:
        teacher, ant = make(tmp_path, "teacher"), make(tmp_path, "teacher", task="ant")
        unfinished = Workspace(tmp_path).create("student", task="ant", settings={})
        damaged = make(tmp_path, "policy")
        damaged.file("manifest.json").write_text("{")
        return {"reacher": teacher.name, "ant": ant.name, "stopped": unfinished.name, "damaged": damaged.name}

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--kind", "teacher"], ["ant", "reacher"]),
            (["--kind", "teacher", "--task", "ant"], ["ant"]),
            (["--task", "ant"], ["stopped", "ant"]),
            (["--task", "ant", "--task", "reacher"], ["stopped", "ant", "reacher"]),
            (["--status", "stopped"], ["stopped"]),
            (["--status", "stopped", "--status", "damaged"], ["damaged", "stopped"]),
            (["--kind", "policy"], ["damaged"]),
            (["--task", "humanoid"], []),
        ],
    )
    def test_show_what_is_asked_for(
        self, tmp_path: Path, made: dict[str, str], arguments: list[str], expected: list[str]
    ) -> None:
        assert sorted(names(tmp_path, *arguments)) == sorted(made[name] for name in expected)

    def test_a_damaged_one_is_warned_of_where_it_is_listed(
        self, tmp_path: Path, made: dict[str, str]
    ) -> None:
        assert made["damaged"] in invoke(tmp_path, "--kind", "policy").stderr
        assert invoke(tmp_path, "--kind", "teacher").stderr == ""

    def test_nothing_that_fits_is_said(self, tmp_path: Path, made: dict[str, str]) -> None:
        assert "None of the 4 artifacts" in invoke(tmp_path, "--task", "humanoid").stdout

    def test_belong_to_the_list_alone(self, tmp_path: Path) -> None:
        assert "filter the list" in invoke(tmp_path, "--kind", "teacher", "rm", "x", code=2).stderr


class TestNewest:
    def test_is_the_newest_completed_one_of_its_kind(self, tmp_path: Path) -> None:
        make(tmp_path, "teacher")
        newest, student = make(tmp_path, "teacher"), make(tmp_path, "student")
        workspace = Workspace(tmp_path)
        unfinished = workspace.create("teacher", task="reacher", settings={})
        assert workspace.open("newest", "teacher").name == newest.name
        assert workspace.find("newest", "student").name == student.name
        assert workspace.find("newest", None).name == unfinished.name

    def test_is_taken_by_commands(self, tmp_path: Path) -> None:
        student = make(tmp_path, "student")
        arguments = ["--workspace", str(tmp_path), "export-onnx", "--student", "newest"]
        result = CliRunner().invoke(cli, arguments)
        assert f"Taking student {student.name} (the newest completed)." in result.stdout
        shown = CliRunner().invoke(cli, ["--workspace", str(tmp_path), "info", "newest", "--json"])
        assert json.loads(shown.stdout)["artifact"] == student.name

    def test_of_none_is_one_line(self, tmp_path: Path) -> None:
        shown = CliRunner().invoke(cli, ["--workspace", str(tmp_path), "info", "newest"])
        assert shown.exit_code == 2 and shown.stderr.startswith("Error: No artifact 'newest'")


class TestCompare:
    def test_what_differs_and_what_was_reached(self, tmp_path: Path) -> None:
        first = make(tmp_path, "teacher", depth=4, width=64, inner={"rate": 1e-3})
        second = make(tmp_path, "teacher", task="ant", depth=16, width=64, inner={"rate": 1e-4})
        found = json.loads(invoke(tmp_path, "compare", first.name, second.name, "--json").stdout)
        assert found["artifacts"] == [first.name, second.name]
        assert found["settings"] == {"depth": ["4", "16"], "inner.rate": ["0.001", "0.0001"]}
        assert found["about"]["task"] == ["reacher", "ant"]
        assert found["results"] == {
            "success": [0.5, 0.5], "rows": [1200, 1200], "success_interval": [[0.4, 0.6], [0.4, 0.6]]
        }  # fmt: skip
        assert found["picture"] is None
        shown = invoke(tmp_path, "compare", first.name, second.name).stdout
        assert "No picture" in shown and "inner.rate" in shown and "1,200" in shown

    def test_curves_over_one_another(self, tmp_path: Path) -> None:
        pair = [make(tmp_path, "teacher") for _ in range(2)]
        for steps, artifact in enumerate(pair, 2):
            history = [{"env_steps": step, "success": step / 4} for step in range(steps)]
            artifact.file("history.json").write_text(json.dumps({"history": history}))
        picture = tmp_path / "curves.png"
        arguments = ("compare", *(artifact.name for artifact in pair), "--output", str(picture), "--json")
        assert json.loads(invoke(tmp_path, *arguments).stdout)["picture"] == str(picture)
        assert picture.read_bytes()[1:4] == b"PNG"
        pair[0].file("history.json").write_text("{}")
        assert "history.json is damaged" in invoke(tmp_path, *arguments, code=2).stderr

    def test_one_beside_itself_is_refused(self, tmp_path: Path) -> None:
        teacher = make(tmp_path, "teacher")
        assert (
            "name two different artifacts"
            in invoke(tmp_path, "compare", teacher.name, "newest", code=2).stderr
        )


class TestRemove:
    @pytest.fixture
    def chain(self, tmp_path: Path) -> dict[str, Artifact]:
        teacher = make(tmp_path, "teacher", depth=1)
        student = make(tmp_path, "student", teacher)
        policy = make(tmp_path, "policy", student)
        return {
            "teacher": teacher,
            "student": student,
            "policy": policy,
            "other": make(tmp_path, "teacher", depth=2),
        }

    def test_what_others_were_made_from_stays(self, tmp_path: Path, chain: dict[str, Artifact]) -> None:
        refused = invoke(tmp_path, "rm", chain["teacher"].name, "--yes", code=2).stderr
        assert chain["student"].name in refused and chain["policy"].name in refused
        assert "--with-dependents" in refused and chain["other"].name not in refused
        assert len(Workspace(tmp_path).artifacts()) == 4

    def test_what_depends_on_it_goes_too_where_that_is_said(
        self, tmp_path: Path, chain: dict[str, Artifact]
    ) -> None:
        arguments = ("rm", chain["teacher"].name, "--with-dependents", "--yes", "--json")
        gone = json.loads(invoke(tmp_path, *arguments).stdout)["removed"]
        assert gone == [chain[name].name for name in ("policy", "student", "teacher")]
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [chain["other"].name]

    def test_a_copy_that_stays_is_enough_for_what_was_made(
        self, tmp_path: Path, chain: dict[str, Artifact]
    ) -> None:
        Workspace(tmp_path).adopt(chain["teacher"], {}, {})
        invoke(tmp_path, "rm", chain["teacher"].name, "--yes")
        assert not chain["teacher"].path.exists()

    @pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("", 2)])
    def test_it_asks(self, tmp_path: Path, chain: dict[str, Artifact], answer: str, code: int) -> None:
        result = invoke(tmp_path, "rm", chain["other"].name, code=code, answer=answer)
        assert f"To be removed: {chain['other'].path}" in result.stdout
        assert chain["other"].path.exists() == bool(code)

    def test_a_damaged_one_goes(self, tmp_path: Path, chain: dict[str, Artifact]) -> None:
        chain["other"].file("manifest.json").write_text("{")
        invoke(tmp_path, "rm", chain["other"].name, "--yes")
        assert not chain["other"].path.exists()

    def test_what_was_made_from_a_damaged_one_keeps_it(
        self, tmp_path: Path, chain: dict[str, Artifact]
    ) -> None:
        chain["teacher"].file("manifest.json").write_text("{")
        refused = invoke(tmp_path, "rm", chain["teacher"].name, "--yes", code=2).stderr
        assert chain["student"].name in refused and chain["policy"].name in refused
        invoke(tmp_path, "rm", chain["teacher"].name, "--with-dependents", "--yes")
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [chain["other"].name]

    def test_a_damaged_one_keeps_what_it_may_be_made_from(
        self, tmp_path: Path, chain: dict[str, Artifact]
    ) -> None:
        manifest = chain["policy"].file("manifest.json")
        manifest.write_text(manifest.read_text()[:-40])
        refused = invoke(tmp_path, "rm", chain["student"].name, "--yes", code=2).stderr
        assert chain["policy"].name in refused and chain["student"].path.exists()

    def test_one_of_another_workspace_is_refused(self, tmp_path: Path, chain: dict[str, Artifact]) -> None:
        line = invoke(tmp_path / "here", "rm", str(chain["other"].path), "--yes", code=2).stderr
        assert "lies in another workspace" in line and chain["other"].path.exists()

    def test_one_that_is_named_twice_goes_once(self, tmp_path: Path, chain: dict[str, Artifact]) -> None:
        chain["other"].file("manifest.json").write_text("{")
        gone = invoke(tmp_path, "rm", chain["other"].name, chain["other"].name, "--yes", "--json").stdout
        assert json.loads(gone)["removed"] == [chain["other"].name]

    def test_one_that_is_being_made_stays(self, tmp_path: Path) -> None:
        running = Workspace(tmp_path).create("teacher", task="reacher", settings={})
        with folder_lock(running.path):
            assert "is being made" in invoke(tmp_path, "rm", running.name, "--yes", code=2).stderr
        assert running.path.exists()

    def test_what_a_removal_that_was_cut_off_has_left_is_no_artifact(
        self, tmp_path: Path, chain: dict[str, Artifact]
    ) -> None:
        chain["other"].path.rename(tmp_path / "runs" / f".{chain['other'].name}.tmp")
        assert len(names(tmp_path)) == 3

    def test_its_run_in_the_store_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        artifact = make(tmp_path, "teacher")
        with open_tracker(tmp_path).stage("train-teacher", name=artifact.name) as run:
            pass
        artifact.update(tracking={"run_id": run.run_id, "store": "workspace"})
        invoke(tmp_path, "rm", artifact.name, "--yes")
        from thousandfold.pipeline.tracking_store import open_store

        client, _ = open_store(tmp_path, print)
        found = client.get_run(str(run.run_id))
        assert found.info.status == "FINISHED" and "artifact_removed" in found.data.tags
