"""The report: structure, numbers, what is missing, damaged or too large, and what is escaped."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.errors import DamagedFileError, UserError
from pipeline.run import settings_by_kind
from stages import report, report_sections
from stages.report import REPORT_FILE, ReportSettings
from stages.report_chain import collect_chain
from stages.report_task_pictures import task_figures
from tests.stages.made_up_chain import EVALUATED, FAILURES, RETAINED, TIMED, MadeUpChain, make_chain, png
from tests.stages.tiny_runs import make_context

SECTIONS = [
    "trained",
    "learning",
    "data",
    "retention",
    "episodes",
    "failures",
    "latency",
    "lineage",
    "settings",
]
VOID = {"meta", "link", "img", "br", "circle", "line", "path"}


class PageReader(HTMLParser):
    """Reads a page: its elements with their attributes, its text, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    """Draw the scenes of a task once for all tests."""
    cached: dict[str, Any] = {}

    def draw(source: Artifact) -> Any:
        task = source.manifest.task
        if task not in cached:
            cached[task] = task_figures(source)
        return cached[task]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(report_sections, "task_figures", draw)
        yield


@pytest.fixture(scope="module")
def classes() -> Any:
    return settings_by_kind()


@pytest.fixture
def write(tmp_path: Path, classes: Any) -> Any:
    """Return a function that makes the report of an artifact and returns it with its page."""

    def make(source: Artifact, **values: Any) -> tuple[Artifact, str]:
        made = report.run(ReportSettings(**values), make_context(tmp_path), source, classes)
        return made, made.file(REPORT_FILE).read_text(encoding="utf-8")

    return make


@pytest.fixture
def chain(tmp_path: Path) -> MadeUpChain:
    return make_chain(tmp_path)


# -- a whole chain ------------------------------------------------------------------------------------


def test_a_page_has_every_section_and_is_well_formed(chain: MadeUpChain, write: Any) -> None:
    made, page = write(chain.made["policy"])
    read = PageReader(page)
    assert read.open == []
    assert [each["id"] for each in read.all("section")] == SECTIONS
    assert [each["href"] for each in read.all("a") if each["href"] != "#main"] == [f"#{s}" for s in SECTIONS]
    assert len(read.all("h1")) == 1 and len(read.all("h2")) == len(SECTIONS)
    assert made.manifest.results["sections"] == len(SECTIONS)
    assert made.manifest.results["bytes"] == len(page.encode())


def test_a_page_refers_to_nothing_outside_itself_and_runs_nothing(chain: MadeUpChain, write: Any) -> None:
    _, page = write(chain.made["policy"])
    read = PageReader(page)
    addresses = [
        value
        for _, attributes in read.elements
        for name, value in attributes.items()
        if name in ("src", "href", "poster", "srcset", "data") and value is not None
    ]
    assert len(addresses) > 10
    assert [value for value in addresses if not value.startswith(("data:", "#"))] == []
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    assert read.all("script") == []


def test_every_picture_says_what_it_shows(chain: MadeUpChain, write: Any) -> None:
    read = PageReader(write(chain.made["policy"])[1])
    pictures = read.all("img")
    assert len(pictures) >= 6
    assert all(len(each["alt"] or "") > 10 for each in pictures)
    assert all(each["role"] == "img" and each["aria-label"] for each in read.all("svg") if "viewbox" in each)


def test_the_numbers_of_the_page_are_those_of_the_manifests(chain: MadeUpChain, write: Any) -> None:
    text = PageReader(write(chain.made["policy"])[1]).text
    timing = TIMED["networks"]["student"]["back_to_back"]
    for expected in (
        f"Success {EVALUATED['success']} [0.978, 0.992] of the ONNX file, 1,000 fresh episodes",
        f"Retention {RETAINED['retention']} [0.998, 1.008] of the teacher’s success, 1,024 paired episodes",
        f"Latency {timing['p50_us']} µs p50 2.9 times as fast as the teacher, p99 {timing['p99_us']} µs",
        "A teacher of 16 layers reaches 98.9 % of its goals, its student of 4 layers keeps 100.3 % of that, "
        "and the exported file answers in 11.7 µs.",
        "100,000 of 1,000 episodes",
        "2 lost, 5 gained",
        "student 5,000 11.7 12.7 13.7 – 400",
        "student at 10 Hz 50 240 260 3",
        "269,956 parameters",
    ):
        assert expected in text, expected


def test_charts_are_drawn_from_the_histories(chain: MadeUpChain, write: Any) -> None:
    _, page = write(chain.made["policy"])
    drawn = re.findall(r"<svg viewBox.*?</svg>", page, re.DOTALL)
    labels = [str(ElementTree.fromstring(chart).get("aria-label")) for chart in drawn]
    assert any(label.startswith("success over environment steps, from 0.111 to 1") for label in labels)
    assert any(label.startswith("success over updates") for label in labels)
    assert "InfoNCE loss over environment steps, from 3.9 to 3.1" in labels
    assert "learning_curve" not in page  # the pictures of the same curves are left to older artifacts


def test_failures_are_counted_by_who_failed(chain: MadeUpChain, write: Any) -> None:
    text = PageReader(write(chain.made["policy"])[1]).text
    alone = sum(each["failed"] == "student" for each in FAILURES)
    assert f"Student alone {alone} the teacher reached the goal" in text
    assert "Teacher alone 1 the student reached the goal Both 1 neither" in text


def test_settings_that_are_not_the_defaults_are_listed(chain: MadeUpChain, write: Any) -> None:
    text = PageReader(write(chain.made["policy"])[1]).text
    assert "episodes 777 1,000" in text
    unchanged = ", ".join(chain.made[kind].name for kind in ("policy", "benchmark"))
    assert f"Every setting at its default: {unchanged}." in text
    assert "width 128 256 units of a layer" in text


def test_lineage_names_hash_seed_and_code_of_every_artifact(chain: MadeUpChain, write: Any) -> None:
    made, page = write(chain.made["policy"])
    text = PageReader(page).text
    for kind, artifact in chain.made.items():
        assert f"{artifact.name} {str(artifact.manifest.hash)[:12]}" in text
        assert f"{artifact.name} {artifact.manifest.hash}" in text  # in full, in a table
        assert made.manifest.parents[kind].hash == artifact.manifest.hash
    assert "policy from student, teacher, dataset" in text


def test_video_strip_frontier_and_evaluation_are_shown_where_there_are_some(
    chain: MadeUpChain, write: Any
) -> None:
    files = {"episodes.mp4": b"a video", "strip.png": png(300, 40)}
    chain.add("rendering", ("policy",), {"episodes": 3, "reached": 2}, files)
    chain.add("evaluation", ("policy",), {"episodes": 64, "success": 0.75, "success_interval": [0.63, 0.84]})
    student = {"parameters": 420, "on_front": True, "p50_us": 5.8, "p99_us": 6.2}
    rows = [RETAINED | student | {"depth": 1, "width": 32}, RETAINED | student | {"depth": 4, "width": 64}]
    teacher = {"depth": 16, "width": 128, "p99_us": 51.4, "success": 0.989}
    table = {"task": "point_u_maze", "teacher": teacher, "rows": rows}
    chain.add("frontier", ("teacher", "dataset"), {"students": 2}, {"frontier.json": table})
    _, page = write(chain.made["policy"])
    read = PageReader(page)
    (video,) = read.all("video")
    assert str(video["src"]).startswith("data:video/mp4;base64,") and "2 of 3" in str(video["aria-label"])
    assert "retention against p99 of 2 students; on the front: 1 × 32, 4 × 64" in page
    assert "1 × 32 retention 1.003 [0.998, 1.008] p99 6.2 µs, 420 parameters" in read.text
    assert "ONNX file again (64)" in read.text and "0.750 [0.630, 0.840]" in read.text
    assert page.count('class="ring"') == 1  # the report's own student is 4 × 64


# -- which chain --------------------------------------------------------------------------------------


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


# -- what is not there --------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:40], "is damaged: its manifest cannot be read"),
        (
            lambda text: text.replace('"student_depth": 4', '"student_depth": 5'),
            "is damaged: its manifest was changed since it was completed",
        ),
    ],
)
def test_a_damaged_parent_is_said(chain: MadeUpChain, write: Any, change: Any, problem: str) -> None:
    manifest = chain.made["student"].file("manifest.json")
    changed = change(manifest.read_text())
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    made, page = write(chain.made["policy"])
    assert made.manifest.results["notes"] == [f"{chain.made['student'].name} {problem}."]
    assert "No student in this report" in page and "Success 0.987" in PageReader(page).text


def test_a_changed_source_is_refused(chain: MadeUpChain, write: Any) -> None:
    manifest = chain.made["policy"].file("manifest.json")
    manifest.write_text(manifest.read_text().replace('"licence": ""', '"licence": "x"'))
    with pytest.raises(DamagedFileError, match="was changed since it was completed"):
        write(Artifact.load(chain.made["policy"].path))


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


# -- size and escapes ---------------------------------------------------------------------------------


def test_what_is_too_large_is_left_out_and_the_page_stays_small(chain: MadeUpChain, write: Any) -> None:
    films = {"episodes.mp4": bytes(300_000), "strip.png": png(noise=bytes(range(256)) * 400)}
    rendering = chain.add("rendering", ("policy",), {"episodes": 1, "reached": 1}, films)
    made, page = write(chain.made["policy"], max_file_mib=0.2)
    (note,) = made.manifest.results["notes"]
    assert note.startswith(f"episodes.mp4 of {rendering.name} is left out: with 0.3 MiB it is larger than")
    assert str(rendering.file("episodes.mp4")) in note
    assert "<video" not in page and 'alt="Key frames' in page
    # Three scenes of the task, a strip of 0.1 MiB as base64, and the page itself.
    assert len(page) < 800_000


def test_what_users_wrote_is_escaped(tmp_path: Path, write: Any) -> None:
    hostile = '<img src=x onerror="alert(1)">&"\''
    chain = make_chain(tmp_path, task=hostile, licence="<script>alert(2)</script>")
    _, page = write(chain.made["policy"])
    read = PageReader(page)
    assert read.open == [] and read.all("script") == []
    assert all(str(each["src"]).startswith("data:") for each in read.all("img"))
    assert hostile in read.text and "<script>alert(2)</script>" in read.text
    assert "The task cannot be read" in read.text


# -- where it goes ------------------------------------------------------------------------------------


def test_a_copy_goes_where_it_is_asked_for(chain: MadeUpChain, tmp_path: Path, classes: Any) -> None:
    copy = tmp_path / "page.html"
    made = report.run(ReportSettings(), make_context(tmp_path), chain.made["policy"], classes, copy)
    assert copy.read_bytes() == made.file(REPORT_FILE).read_bytes()
    made.verify()


@pytest.mark.parametrize(
    ("place", "message"),
    [("", "is a folder: name a file in it"), ("nowhere/page.html", "there is no folder")],
)
def test_a_copy_without_a_place_is_refused_before_anything_is_made(
    chain: MadeUpChain, tmp_path: Path, classes: Any, place: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        report.run(ReportSettings(), make_context(tmp_path), chain.made["policy"], classes, tmp_path / place)
    assert chain.workspace.artifacts("report") == []


def test_the_page_is_an_artifact_of_the_chain_run(tmp_path: Path, classes: Any, chain: MadeUpChain) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from pipeline.core.tracking import open_tracker

    context = make_context(tmp_path)
    context.tracker = open_tracker(tmp_path)
    chain_run = context.tracker.open_chain("a chain")
    context.chain_run_id = chain_run
    made = report.run(ReportSettings(), context, chain.made["policy"], classes)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert REPORT_FILE in [file.path for file in client.list_artifacts(str(chain_run))]
    stage = client.get_run(made.manifest.tracking["run_id"])
    assert stage.data.tags["mlflow.parentRunId"] == chain_run
    assert json.loads(made.file("manifest.json").read_text())["kind"] == "report"
