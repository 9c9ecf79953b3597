"""The report: structure, numbers, what is too large, what is escaped, and where it goes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
from tests.stages.made_up_chain import EVALUATED, FAILURES, RETAINED, TIMED, MadeUpChain, make_chain, png
from tests.stages.report.report_pages import PageReader, recording_of
from tests.stages.tiny_runs import make_context
from thousandfold.ground.errors import UserError
from thousandfold.stages.recordings import RECORDING_FILE
from thousandfold.stages.report import report
from thousandfold.stages.report.report import REPORT_FILE, ReportSettings
from thousandfold.stages.stage_settings import settings_by_kind

SECTIONS = [
    "trained",
    "learning",
    "data",
    "retention",
    "robustness",
    "episodes",
    "failures",
    "latency",
    "lineage",
    "settings",
]


# -- a whole chain ----------------------------------------------------------------------------------


def test_a_page_has_every_section_and_is_well_formed(chain: MadeUpChain, write: Any) -> None:
    made, page = write(chain.made["policy"])
    read = PageReader(page)
    assert read.open == []
    assert [each["id"] for each in read.all("section")] == SECTIONS
    assert [each["href"] for each in read.all("a") if each["href"] != "#main"] == [f"#{s}" for s in SECTIONS]
    assert len(read.all("h1")) == 1 and len(read.all("h2")) == len(SECTIONS)
    assert made.manifest.results["sections"] == len(SECTIONS)
    assert made.manifest.results["bytes"] == len(page.encode())


def test_a_page_refers_to_nothing_outside_itself_and_without_a_recording_runs_nothing(
    chain: MadeUpChain, write: Any
) -> None:
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
    assert read.all("script") == [] and len(read.all("style")) == 1
    names = [each["id"] for _, each in read.elements if "id" in each]
    assert len(names) == len(set(names)) > len(SECTIONS)


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
    assert "InfoNCE loss (nats) over environment steps, from 3.9 to 3.1" in labels
    assert "learning_curve" not in page  # the pictures of the same curves are left to older artifacts


def test_failures_are_counted_by_who_failed(chain: MadeUpChain, write: Any) -> None:
    text = PageReader(write(chain.made["policy"])[1]).text
    alone = sum(each["failed"] == "student" for each in FAILURES)
    assert f"Student alone {alone} the teacher reached the goal" in text
    assert "Teacher alone 1 the student reached the goal Both 1 neither" in text


def test_settings_that_are_not_the_defaults_are_listed(chain: MadeUpChain, write: Any) -> None:
    text = PageReader(write(chain.made["policy"])[1]).text
    assert "episodes 777 1000" in text
    unchanged = ", ".join(chain.made[kind].name for kind in ("policy", "benchmark"))
    assert f"Every setting at its default: {unchanged}." in text
    assert "width 128 256 units of a layer" in text


def test_lineage_names_hash_seed_and_code_of_every_artifact(chain: MadeUpChain, write: Any) -> None:
    made, page = write(chain.made["policy"])
    read = PageReader(page)
    text = read.text
    for kind, artifact in chain.made.items():
        assert f"{artifact.name} {str(artifact.manifest.hash)[:12]}" in text
        assert f"{artifact.name} {artifact.manifest.hash}" in text  # in full, in a table
        assert made.manifest.parents[kind].hash == artifact.manifest.hash
    assert "policy from student, teacher, dataset" in text
    rows_up = [str(arc["style"]).removeprefix("--rows: ") for arc in read.all("i")]
    assert rows_up == ["1", "2", "1", "1", "3", "2", "1"]  # dataset, student, policy, benchmark


def test_video_strip_frontier_and_evaluation_are_shown_where_there_are_some(
    chain: MadeUpChain, write: Any
) -> None:
    files = {"episodes.mp4": b"a video", "strip.png": png(300, 40)}
    chain.add("rendering", ("policy",), {"episodes": 3, "reached": 2}, files)
    again = {"episodes": 64, "success": 0.75, "success_interval": [0.63, 0.84]}
    again |= {"goals_held": 0.9, "goals_held_interval": [0.86, 0.93]}
    chain.add("evaluation", ("policy",), again)
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
    assert "Goals held, ONNX file again 0.900 [0.860, 0.930] of several an episode" in read.text
    assert page.count("this report’s student</title>") == 1  # 4 × 64


def test_a_recording_is_played_by_the_one_script_that_the_page_allows(
    chain: MadeUpChain, write: Any, tmp_path: Path
) -> None:
    recording = recording_of(tmp_path) | {"task": "</script><script>alert(3)</script>"}
    results = {"recorded_goals": 9, "recorded_reached": 5}
    chain.add("rendering", ("policy",), results, {RECORDING_FILE: recording})
    _, page = write(chain.made["policy"])
    read = PageReader(page)
    data, script = read.all("script")
    assert (data["type"], data["id"], script) == ("application/json", "recording", {})
    texts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert json.loads(texts[0]) == recording
    (policy,) = [each["content"] for each in read.all("meta") if each.get("http-equiv")]
    allowed = base64.b64encode(hashlib.sha256(texts[1].encode()).digest()).decode()
    assert str(policy).startswith("default-src 'none'") and str(policy).endswith(
        f"script-src 'sha256-{allowed}'"
    )
    assert "Click a goal to see how the ONNX file goes there" in read.text
    assert "No recording" not in read.text and "http" not in texts[1].replace("namespaceURI", "")


@pytest.mark.parametrize(
    ("recording", "values", "words"),
    [
        ({"format_version": 99}, {}, "recording.json of {} is of another version and is left out."),
        ([], {}, "recording.json of {} is of another version and is left out."),
        (b"not json", {}, "recording.json of {} is no JSON and is left out."),
        (
            {"format_version": 1, "numbers": "A" * 9000},
            {"max_file_mib": 0.005},
            "recording.json of {} is left",
        ),
    ],
)
def test_a_recording_that_cannot_be_played_is_left_out(
    chain: MadeUpChain, write: Any, recording: Any, values: dict[str, Any], words: str
) -> None:
    rendering = chain.add("rendering", ("policy",), {}, {RECORDING_FILE: recording})
    made, page = write(chain.made["policy"], **values)
    assert any(note.startswith(words.format(rendering.name)) for note in made.manifest.results["notes"])
    assert PageReader(page).all("script") == []


def test_a_rendering_without_a_recording_says_what_makes_one(chain: MadeUpChain, write: Any) -> None:
    chain.add("rendering", ("policy",), {"episodes": 1, "reached": 1}, {"strip.png": png()})
    assert (
        "No recording to play: pipeline render makes one." in PageReader(write(chain.made["policy"])[1]).text
    )


# -- size and escapes -------------------------------------------------------------------------------


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


# -- where it goes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes() -> Any:
    return settings_by_kind()


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

    from thousandfold.pipeline.tracking import open_tracker

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
