from __future__ import annotations

import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from thousandfold.ground.picture_style import house_figure, short_count
from thousandfold.pipeline import pictures
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.pictures import (
    artifact_facts,
    curve_label,
    draw_compared_curves,
    draw_gradient_map,
    draw_latency_histogram,
    draw_learning_curve,
)

pytestmark = pytest.mark.pictures

FACTS = ("point_u_maze", "teacher-20260131-120000", "depth 16, width 128", "seed 0")
ROOT = Path(__file__).resolve().parents[2]
HISTORY = [
    {"step": 0, "success": 0.0, "success_low": 0.0, "success_high": 0.1, "critic/loss": 4.0, "note": "start"},
    {"step": 200_000, "success": 0.5, "success_low": 0.4, "success_high": 0.6, "critic/loss": math.nan},
    {"step": 400_000, "success": 0.9, "success_low": 0.8, "success_high": 1.0, "critic/loss": 1.0},
]


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that were drawn, to look at what is on them."""
    figures, original = [], pictures.house_figure

    @contextmanager
    def recording(*args, **kwargs):
        with original(*args, **kwargs) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(pictures, "house_figure", recording)
    return figures


def heading_texts(figure):
    return [text.get_text() for text in figure.texts]


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_a_learning_curve_has_a_panel_a_metric(tmp_path, drawn):
    path = tmp_path / "pictures" / "curve.png"
    draw_learning_curve(path, HISTORY, "How the teacher learned", FACTS)
    assert png_size(path)[0] == 1200
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"], "no temporary file is left"

    success, loss = drawn[0].axes
    assert heading_texts(drawn[0]) == ["How the teacher learned", " · ".join(FACTS)]
    assert success.get_ylabel() == "success"
    assert list(success.lines[0].get_ydata()) == [0.0, 0.5, 0.9]
    assert len(success.collections) == 1 and len(loss.collections) == 0, "the interval is a band, not a panel"
    assert list(loss.lines[0].get_xdata()) == [0, 400_000], "values that are not finite are left out"
    assert loss.get_xlabel() == "environment steps"
    assert success.texts[0].get_text() == "0.900"


def test_a_dashed_line_marks_from_where_other_goals_are_measured(tmp_path, drawn):
    changes = {200_000.0: "goals of near → far", 300_000.0: "goals of far → evaluation"}
    draw_learning_curve(tmp_path / "c.png", HISTORY, "Teacher", changes=changes)
    for axes in drawn[0].axes:
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [list(line.get_xdata()) for line in dashed] == [[place, place] for place in changes]
    labels = [text for text in drawn[0].axes[0].texts if text.get_text() in changes.values()]
    first, second = (text.get_window_extent() for text in labels)
    assert not first.overlaps(second)


def test_metrics_and_axis_can_be_chosen(tmp_path, drawn):
    history = [{"update": i, "loss": 1 / (i + 1), "kl": 1.0, "seconds": i} for i in range(50)]
    draw_learning_curve(
        tmp_path / "c.png", history, "Student", x="update", x_label="updates", metrics=["kl", "loss"]
    )
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["divergence from the\nteacher (nats)", "loss"]
    assert drawn[0].axes[-1].get_xlabel() == "updates"


@pytest.mark.parametrize("history", [[], [{"step": 0}], [{"step": 0, "loss": math.inf}]])
def test_a_curve_without_values_is_refused(tmp_path, history):
    with pytest.raises(ValueError, match="no finite value"):
        draw_learning_curve(tmp_path / "c.png", history, "Teacher")
    assert list(tmp_path.iterdir()) == []


def test_a_histogram_shows_each_series_and_the_deadline(tmp_path, drawn):
    samples = {"student": np.linspace(10, 20, 101), "teacher": [60.0] * 50 + [900.0]}
    draw_latency_histogram(tmp_path / "h.png", samples, "Latency", FACTS, deadline_us=50_000)
    assert heading_texts(drawn[0]) == ["Latency", " · ".join(FACTS)]

    axes, legend = drawn[0].axes[0], drawn[0].legends[0]
    assert axes.get_xscale() == axes.get_yscale() == "log" and "µs" in axes.get_xlabel()
    labels = [text.get_text() for text in legend.get_texts()]
    assert "student: p50 15 µs" in labels[0] and "p99 19.9 µs" in labels[0]
    assert "teacher: p50 60 µs" in labels[1] and "deadline: one control period, 50,000 µs" in labels[2]
    assert 50_000 in [line.get_xdata()[0] for line in axes.lines] and axes.get_xlim()[1] > 50_000


def test_every_call_is_in_the_histogram():
    samples = np.random.default_rng(0).lognormal(3, 1, 1000)
    counts, _ = np.histogram(samples, pictures._log_edges(samples))
    assert counts.sum() == 1000
    assert np.histogram([5.0] * 7, pictures._log_edges(np.array([5.0] * 7)))[0].sum() == 7


@pytest.mark.parametrize("samples", [{}, {"student": []}, {"student": [math.nan, 0.0]}])
def test_a_histogram_without_samples_is_refused(tmp_path, samples):
    with pytest.raises(ValueError, match=r"at least one series|'student' has no positive finite latency"):
        draw_latency_histogram(tmp_path / "h.png", samples, "Latency")
    assert list(tmp_path.iterdir()) == []


def gradient_reports(blocks):
    networks = ("actor", "goal_encoder")
    return [{"updates": 48 * n} | {name: [0.1 * n] * blocks for name in networks} for n in (1, 2, 3)]


@pytest.mark.parametrize("blocks", [1, 256])
def test_a_gradient_map_has_a_panel_a_network_and_a_cell_a_block(tmp_path, drawn, blocks):
    draw_gradient_map(tmp_path / "map.png", gradient_reports(blocks), "Gradients")
    panels = [
        axes for axes in drawn[0].axes if axes.get_ylabel().endswith("block") and axes.get_xlim()[1] > 2
    ]
    assert [axes.get_ylabel() for axes in panels] == ["actor\nblock", "goal encoder\nblock"]
    for axes in panels:
        assert axes.collections[0].get_array().shape == (blocks, 3)
        assert all(float(tick).is_integer() for tick in axes.get_yticks())
    assert (tmp_path / "map.png").exists()


def test_one_report_and_a_dead_block_are_drawn(tmp_path):
    draw_gradient_map(tmp_path / "map.png", [{"updates": 7, "actor": [0.0, 0.5]}], "Gradients")
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize("gradients", [[], [{"updates": 1, "actor": [0.0]}]])
def test_a_map_without_gradients_is_refused(tmp_path, gradients):
    with pytest.raises(ValueError, match="no gradient norm above 0"):
        draw_gradient_map(tmp_path / "map.png", gradients, "Gradients")


def test_a_failed_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def fail_half_way(canvas, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "h.png").write_bytes(b"old")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", fail_half_way)
    with pytest.raises(OSError, match="No space"):
        draw_latency_histogram(tmp_path / "h.png", {"student": [1.0]}, "Latency")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("h.png", b"old")]


def test_matplotlib_is_loaded_late_and_its_global_state_left_alone(tmp_path):
    script = (
        "import sys; from pathlib import Path; import thousandfold.ground.picture_style as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; styled = {key: matplotlib.rcParams[key] for key in p.STYLE}\n"
        "from thousandfold.pipeline.pictures import draw_latency_histogram\n"
        "draw_latency_histogram(Path(sys.argv[1]), {'a': [1.0, 2.0]}, 'Latency')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert {key: matplotlib.rcParams[key] for key in p.STYLE} == styled\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "h.png")], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (250_000, "250k"), (1_500_000, "1.5M"), (2e9, "2G")]
)
def test_counts_are_short(value, text):
    assert short_count(value) == text


def test_a_long_heading_is_written_in_lines_that_fit(tmp_path):
    with house_figure(tmp_path / "narrow.png", 4.0, 1.0, "Paths of the student", FACTS) as narrow:
        lines = heading_texts(narrow)
    assert len(lines) > 2 and " · ".join(lines[1:]) == " · ".join(FACTS)
    right = [text.get_window_extent().x1 for text in narrow.texts]
    assert max(right) <= 4.0 * narrow.dpi
    assert narrow.get_figheight() > 1.5, "the heading stands above what is drawn"


def test_two_trainings_are_compared_with_their_intervals(tmp_path, drawn):
    histories = {"one": HISTORY, "other": HISTORY}
    draw_compared_curves(tmp_path / "c.png", histories, "step", "environment steps", ["success"], ["point"])
    assert heading_texts(drawn[0]) == ["Learning curves compared", "point"]
    assert len(drawn[0].axes[0].collections) == 2, "a band each"


@pytest.mark.parametrize(
    ("name", "label"), [("info_nce", "InfoNCE loss (nats)"), ("critic/loss", "critic\nloss")]
)
def test_axes_say_the_fields_words(name, label):
    assert curve_label(name) == label


def test_facts_are_task_artifact_size_and_seed(tmp_path):
    workspace = Workspace(tmp_path)
    teacher = workspace.create("teacher", task="reacher", settings={"depth": 16, "width": 128, "seed": 3})
    assert artifact_facts(teacher) == ("reacher", teacher.name, "depth 16, width 128", "seed 3")
    student = workspace.create("student", task="reacher", settings={"student_depth": 4, "student_width": 32})
    assert artifact_facts(student) == ("reacher", student.name, "depth 4, width 32", "")
