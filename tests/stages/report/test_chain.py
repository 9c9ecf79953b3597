"""The chain that a report shows: which artifacts it has, and what is gone, damaged or was never made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
from tests.stages.made_up_chain import EVALUATED, RETAINED, TIMED, MadeUpChain, png
from tests.stages.report.report_pages import PageReader
from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.report.chain import collect_chain

# -- which chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["teacher", "student", "policy"])
def test_any_of_the_three_leads_to_the_whole_chain(chain: MadeUpChain, kind: str) -> None:
    found = collect_chain(chain.workspace, chain.made[kind])
    assert {name: artifact.name for name, artifact in found.main.items()} == {
        name: artifact.name for name, artifact in chain.made.items()
    }
    places = {link.name: place for place, link in enumerate(found.links.values())}
    for link in found.links.values():
        assert all(places[parent.name] < places[link.name] for parent in link.parents.values())


def test_a_chain_has_the_newest_benchmark_of_its_own_policy(chain: MadeUpChain) -> None:
    own, policy = chain.made["policy"], chain.made["policy"]
    newer = chain.add("benchmark", ("policy",), TIMED, {"benchmark.json": TIMED})
    chain.add("policy", ("student", "teacher", "dataset"), EVALUATED, {"policy.onnx": b"another"})
    chain.add("benchmark", ("policy",), TIMED, {"benchmark.json": TIMED | {"speedup": 9.0}})
    found = collect_chain(chain.workspace, policy)
    assert found.end.name == own.name
    assert found.main["benchmark"].name == newer.name


def test_a_copied_parent_is_found_by_its_hash(chain: MadeUpChain) -> None:
    student = chain.made["student"]
    copy = chain.workspace.adopt(student, {}, {})
    shutil.rmtree(student.path)
    found = collect_chain(chain.workspace, chain.made["policy"])
    assert found.main["student"].name == copy.name
    assert found.problems == []


# -- what is not there ------------------------------------------------------------------------------


def test_parts_that_were_never_made_are_said_with_the_command_that_makes_them(
    tmp_path: Path, write: Any
) -> None:
    chain = MadeUpChain(Workspace(tmp_path), {})
    teacher = chain.add("teacher", (), {"success": 0.5, "episodes": 8}, depth=8, width=16)
    made, page = write(teacher)
    text = PageReader(page).text
    for command in ("generate-dataset", "distill", "frontier", "render", "benchmark"):
        assert f"pipeline {command}" in text, command
    assert "No curves of a student" in text and f"No learning curve of {teacher.name}" in text
    assert "A teacher of 8 layers reaches 50.0 % of its goals." in text
    assert set(made.manifest.parents) == {"teacher"}


def test_a_parent_that_is_gone_is_said_and_the_rest_is_shown(chain: MadeUpChain, write: Any) -> None:
    shutil.rmtree(chain.made["dataset"].path)
    made, page = write(chain.made["policy"])
    text = PageReader(page).text
    note = f"{chain.made['dataset'].name} is gone from the workspace."
    assert note in text and made.manifest.results["notes"] == [note]
    assert "No dataset in this report" in text and "Retention 1.003" in text
    assert 'class="absent"' in page


@pytest.mark.parametrize("kind", ["teacher", "dataset", "student", "benchmark", "evaluation"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:40], "is damaged or not a manifest"),
        (lambda text: text.replace('"results": {', '"results": {"edited": 1, '), "was changed since"),
    ],
)
def test_a_damaged_part_is_named(
    chain: MadeUpChain, write: Any, kind: str, change: Any, problem: str
) -> None:
    chain.add("evaluation", ("policy",), EVALUATED)
    manifest = chain.made[kind].file("manifest.json")
    changed = change(manifest.read_text())
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    with pytest.raises(DamagedFileError) as caught:
        write(chain.made["policy"])
    assert str(caught.value).startswith(f"{manifest} {problem}")
    shutil.rmtree(manifest.parent)
    assert "Success 0.987" in PageReader(write(chain.made["policy"])[1]).text, "without it, as told to"


def test_a_damaged_artifact_of_before_the_chain_is_no_concern(chain: MadeUpChain, write: Any) -> None:
    old = chain.made["benchmark"].path.with_name("benchmark-20200101-120000")
    old.mkdir()
    (old / "manifest.json").write_text("")
    assert write(chain.made["policy"])[0].manifest.results["notes"] == []


def test_an_unsealed_artifact_is_marked(chain: MadeUpChain, write: Any) -> None:
    manifest = chain.made["teacher"].file("manifest.json")
    content = json.loads(manifest.read_text()) | {"format_version": 1, "seal": None}
    manifest.write_text(json.dumps(content))
    assert PageReader(write(chain.made["policy"])[1]).text.count("unsealed") == 1


@pytest.mark.parametrize("results", [{"success": "all"}, {"success_interval": 3}])
def test_results_that_no_stage_wrote_are_named(
    chain: MadeUpChain, write: Any, results: dict[str, Any]
) -> None:
    policy = chain.made["policy"]
    content = json.loads(policy.file("manifest.json").read_text())
    content |= {"format_version": 1, "seal": None, "results": content["results"] | results}
    policy.file("manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=f"{policy.name} are unsealed"):
        write(Artifact.load(policy.path))


def test_a_policy_file_that_changed_is_said(chain: MadeUpChain, write: Any) -> None:
    policy = chain.made["policy"]
    policy.file("policy.onnx").write_bytes(b"another graph")
    made, _ = write(policy)
    assert made.manifest.results["notes"] == [f"policy.onnx of {policy.name} differs from its recorded hash."]


@pytest.mark.parametrize(("objective", "drawn"), [("kl", True), ("mse", False), ("critic", False)])
def test_the_divergence_is_drawn_where_it_was_learned(
    chain: MadeUpChain, write: Any, objective: str, drawn: bool
) -> None:
    history = {"history": [{"updates": 10 * k, "success": 0.5, "kl": 40.0 + k} for k in range(3)]}
    parents = ("teacher", "dataset")
    student = chain.add("student", parents, RETAINED, {"history.json": history}, objective=objective)
    assert ("divergence from the teacher" in write(student)[1]) == drawn


@pytest.mark.parametrize("name", ["history.json", "gradients.png"])
def test_a_file_that_changed_is_left_out_and_said(chain: MadeUpChain, write: Any, name: str) -> None:
    teacher = chain.made["teacher"]
    teacher.file(name).write_bytes(teacher.file(name).read_bytes() + b" ")
    made, page = write(chain.made["policy"])
    note = f"{name} of {teacher.name} differs from its recorded hash and is left out."
    assert made.manifest.results["notes"] == [note]
    assert note in PageReader(page).text
    if name == "history.json":
        assert "Learning curves of the teacher" in page  # its picture takes the place of the charts
    else:
        assert "No picture of the teacher’s gradients" in page


def test_without_histories_the_pictures_of_the_curves_are_shown(tmp_path: Path, write: Any) -> None:
    chain = MadeUpChain(Workspace(tmp_path), {})
    teacher = chain.add("teacher", (), {"success": 0.5}, {"learning_curve.png": png()}, depth=8, width=16)
    assert 'alt="Learning curves of the teacher"' in write(teacher)[1]


def test_a_teacher_that_never_succeeds_has_nothing_to_retain(tmp_path: Path, write: Any) -> None:
    chain = MadeUpChain(Workspace(tmp_path), {})
    chain.add(
        "teacher", (), {"success": 0.0, "success_interval": [0.0, 0.1], "episodes": 8}, depth=8, width=16
    )
    results = {"success": 0.0, "retention": None, "retention_interval": None, "time_at_goal_retention": None}
    student = chain.add("student", ("teacher",), results, student_depth=4, student_width=8)
    text = PageReader(write(student)[1]).text
    assert "undefined: the teacher has no success to retain" in text
    assert "its student of 4 layers has nothing to retain" in text
