"""What a report says of training, data, students and episodes, a section a function.

A part that a chain does not have is said in one line, with the command that makes it.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.pictures.opengl import NoOpenGLError
from thousandfold.envs.pictures.rendering import draw_arrows
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.pictures import CURVE_LABELS, network_size
from thousandfold.stages.episodes import HISTORY_FILE, evaluation_changes, with_intervals
from thousandfold.stages.report.chain import Chain
from thousandfold.stages.report.charts import (
    Curve,
    Range,
    curve_chart,
    frontier_chart,
    networks_chart,
    range_chart,
)
from thousandfold.stages.report.page import (
    Block,
    Facts,
    Figure,
    Figures,
    Note,
    Player,
    ReportFiles,
    Section,
    Split,
    Table,
    inline_figure,
)
from thousandfold.stages.robustness import KEPT, NOMINAL, ROBUSTNESS_FILE, ROBUSTNESS_PICTURE

_TEACHER_CURVES = (
    "success", "goals_held", "time_at_goal", "final_distance", "info_nce", "value", "value_error",
    "categorical_accuracy", "entropy",
)  # fmt: skip
_STUDENT_CURVES = ("success", "validation_loss", "kl", "action_mse")
_FRACTIONS = ("success", "goals_held", "categorical_accuracy")
_PERFORMERS = {"teacher": "teacher", "student": "student", "policy": "ONNX file"}


@dataclass(frozen=True)
class Sources:
    """What every section is written from."""

    chain: Chain
    files: ReportFiles


def measured(results: Mapping[str, Any], name: str) -> str:
    """Return a measure with its 95 % interval where it has one, such as ``0.992 [0.985, 0.996]``."""
    value, interval = results.get(name), results.get(f"{name}_interval")
    if value is None:
        return "undefined"
    return f"{figure(float(value))} {figure(list(interval))}" if interval else figure(float(value))


def trained_section(sources: Sources) -> Section:
    """Tell of the task and of the networks."""
    chain = sources.chain
    source = chain.get("teacher") or chain.end
    manifest = source.manifest
    facts = [("Task", manifest.task, "")]
    try:
        task = load_task(source)
        own = "" if task.student_view is task else f" (a student's {task.student_view.observation_dim})"
        sizes = f"observation {task.observation_dim}{own}, goal {task.goal_dim}, action {task.action_dim}"
        rate = f"{1 / task.spec.control_dt_s:g} Hz, {task.spec.episode_steps} steps an episode"
        facts = [("Task", manifest.task, task.spec.description)]
        facts += [("Numbers", sizes, ""), ("Control", rate, "")]
        if manifest.task_changes:
            changes = ", ".join(f"{name} {value}" for name, value in manifest.task_changes.items())
            facts.append(("Changed", changes, "of the task, for this chain"))
    except UserError as error:
        sources.files.notes.append(f"The task cannot be read: {error}")
    networks = []
    for kind, count in (("teacher", "actor_parameters"), ("student", "student_parameters")):
        artifact = chain.get(kind)
        if artifact is None or (size := network_size(artifact)) is None:
            continue
        parameters = artifact.manifest.results.get(count)
        note = f"{parameters:,} parameters" if parameters else ""
        facts.append((kind.capitalize(), f"{size[0]:,} layers of {size[1]:,} units", note))
        networks.append((kind, *size, kind == "student"))
    policy = chain.get("policy")
    if policy is not None and "bytes" in policy.manifest.results:
        size_mb = f"{policy.manifest.results['bytes'] / 1e6:.2f} MB"
        facts.append(("File", f"policy.onnx, {size_mb}", "normaliser and map to the actuators inside"))
        facts.append(("Licence", str(policy.manifest.settings.get("licence") or "not stated"), ""))
    blocks: list[Block] = [Facts(facts)]
    if networks:
        caption = "The networks to scale: a line is a layer, as long as the layer is wide."
        chart = Figure("chart", networks_chart(networks), "", caption)
        blocks = [Split(Facts(facts), Figures([chart]))]
    if (pictures := task_figures(source)) is not None:
        blocks.append(pictures)
    return Section("trained", "What was trained", "", blocks)


def learning_section(sources: Sources) -> Section:
    """Draw the learning curves of teacher and student, and the teacher's gradients."""
    blocks: list[Block] = []
    for kind, x, x_label, names in (
        ("teacher", "env_steps", "environment steps", _TEACHER_CURVES),
        ("student", "updates", "updates", _STUDENT_CURVES),
    ):
        artifact = sources.chain.get(kind)
        if artifact is None:
            blocks.append(Note(f"No curves of a {kind}: there is none in this report."))
        else:
            # The divergence says something where the student learns the teacher's spread too.
            spread = artifact.manifest.settings.get("objective", "kl") == "kl"
            shown = [name for name in names if name != "kl" or spread]
            blocks += _curves(sources.files, artifact, x, x_label, shown)
    if (teacher := sources.chain.get("teacher")) is not None:
        alt = "Map of gradient norms: blocks upward, updates to the right, one map a network"
        caption = "Norm of the gradient in every block of the teacher’s networks, over the training."
        found = sources.files.figure(teacher, "gradients.png", alt=alt, caption=caption)
        blocks.append(Figures([found], "large") if found else Note("No picture of the teacher’s gradients."))
    lead = "Success is measured in closed loop while the network trains; bands are 95 % intervals."
    return Section("learning", "How it learned", lead, blocks)


def _curves(
    files: ReportFiles, artifact: Artifact, x: str, x_label: str, names: Sequence[str]
) -> list[Block]:
    history = files.read_json(artifact, HISTORY_FILE)
    history = history if isinstance(history, dict) else {}
    entries, changes = history.get("history") or [], evaluation_changes(history.get("evaluated") or [])
    charts = []
    for name in names:
        found = [entry for entry in entries if _is_finite(entry.get(x)) and _is_finite(entry.get(name))]
        if not found:
            continue
        found = with_intervals(found)
        sides = (f"{name}_low", f"{name}_high")
        banded = all(side in entry for entry in found for side in sides)
        low, high = ([entry[side] for entry in found] if banded else [] for side in sides)
        xs, values = [float(entry[x]) for entry in found], [float(entry[name]) for entry in found]
        curve = Curve(CURVE_LABELS[name], xs, values, low, high, name in _FRACTIONS)
        charts.append(Figure("chart", curve_chart(curve, x_label, list(changes)), "", ""))
    if charts:
        caption = f"The {artifact.kind} over its training, {len(entries)} evaluations."
        if changes:
            caption += " Dashed: evaluations draw from another distribution, "
            caption += ", then ".join(changes.values()) + "."
        return [Figures(charts, "small", caption)]
    alt = f"Learning curves of the {artifact.kind}"
    found = files.figure(artifact, "learning_curve.png", alt=alt, caption=f"{alt}.")
    return [Figures([found])] if found else [Note(f"No learning curve of {artifact.name}.")]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def data_section(sources: Sources) -> Section:
    """Tell what the dataset holds and how it covers the task."""
    title, lead = (
        "What the student was shown",
        "The teacher’s episodes, with its mean and spread in every row.",
    )
    dataset = sources.chain.get("dataset")
    if dataset is None:
        missing = Note("No dataset in this report: `pipeline generate-dataset` makes one.")
        return Section("data", title, "", [missing])
    results = dataset.manifest.results
    facts = [
        ("Transitions", figure(results.get("rows")), f"of {figure(results.get('episodes'))} episodes"),
        ("Success", measured(results, "success"), "of all its episodes"),
    ]
    if results.get("clean_episodes"):
        clean = measured(results, "clean_success")
        facts.append(("Without noise", clean, f"of {results['clean_episodes']:,} episodes"))
    if "distinct_observations" in results:
        facts.append(("Distinct states", figure(results["distinct_observations"]), "share of the rows"))
    if results.get("coverage") is not None:
        cells = f"{results.get('occupied_cells', 0):,} cells occupied"
        facts.append(
            ("Coverage", figure(float(results["coverage"])), f"share of the maze’s free cells; {cells}")
        )
    alt = "Map of the states in the dataset and histograms of the distances to goals"
    caption = "Where the dataset’s states lie, and how far they are from their goals."
    found = sources.files.figure(dataset, "coverage.png", alt=alt, caption=caption)
    picture = Figures([found], "large") if found else Note("No picture of the coverage.")
    return Section("data", title, lead, [Facts(facts), picture])


def retention_section(sources: Sources) -> Section:
    """Compare teacher, student and policy in closed loop, and show the frontier."""
    chain = sources.chain
    blocks: list[Block] = []
    student = chain.get("student")
    performers = [(shown, found) for kind, shown in _PERFORMERS.items() if (found := chain.get(kind))]
    if (evaluation := chain.get("evaluation")) is not None:
        of = next(iter(evaluation.manifest.parents.values())).kind
        performers.append((f"{_PERFORMERS.get(of, of)} again", evaluation))
    rows = []
    for label, artifact in performers:
        results = artifact.manifest.results
        if results.get("success") is None or not (interval := results.get("success_interval")):
            continue
        counted = f"{label} ({results['episodes']:,})" if "episodes" in results else label
        ends, is_student = (interval[0], interval[1]), "teacher" not in label
        rows.append(Range(counted, measured(results, "success"), results["success"], ends, None, is_student))
    held = [
        (
            f"Goals held, {label}",
            measured(artifact.manifest.results, "goals_held"),
            "of several an episode",
        )
        for label, artifact in performers
        if "goals_held" in artifact.manifest.results
    ]
    caption = "Share of fresh episodes that reach their goal; in brackets how many, each network its own."
    chart = range_chart(rows, "success, 95 % interval", top_value=1.0) if rows else None
    figures = Figures([Figure("chart", chart, "", caption)]) if chart else None
    if student is None:
        blocks.append(Note("No student in this report: `pipeline distill` makes one."))
        blocks += [figures] if figures else []
        blocks += [Facts(held)] if held else []
    else:
        results = student.manifest.results
        note = f"of the teacher’s success, {figure(results.get('episodes'))} paired episodes"
        facts = [("Retention", measured(results, "retention"), note)]
        time_at_goal = measured(results, "time_at_goal_retention")
        facts.append(("Of time at goal", time_at_goal, "over the same episodes"))
        if results.get("teacher_success") is not None and results.get("success") is not None:
            both = f"{figure(results['success'])} beside {figure(results['teacher_success'])}"
            facts.append(("Success", both, "student and teacher, same starts and goals"))
        if "lost_episodes" in results and "gained_episodes" in results:
            changed = f"{results['lost_episodes']:,} lost, {results['gained_episodes']:,} gained"
            facts.append(("Episodes", changed, "that one of the two reaches and the other does not"))
        facts += held
        blocks.append(Split(Facts(facts), figures) if figures else Facts(facts))
    blocks += _frontier_blocks(sources)
    return Section("retention", "What the student kept", "", blocks)


def robustness_section(sources: Sources) -> Section:
    """Tell what is left where robot and world are not as the model says."""
    found = [
        (artifact, content)
        for kind in ("evaluation", "policy")
        if (artifact := sources.chain.get(kind)) is not None
        and artifact.file(ROBUSTNESS_FILE).is_file()
        and isinstance(content := sources.files.read_json(artifact, ROBUSTNESS_FILE), dict)
    ]
    title = "What is left when the robot differs from the model"
    if not found:
        note = Note("No robustness card: `pipeline evaluate --robustness` measures one.")
        return Section("robustness", title, "", [note])
    artifact, content = found[0]
    caption = (
        "Success with one factor held at a level, with 95 % intervals; shaded is what training varied, "
        f"dashed {KEPT:.0%} of the nominal success."
    )
    picture = sources.files.figure(
        artifact, ROBUSTNESS_PICTURE, alt="Success against the level of every factor", caption=caption
    )
    rows = [
        [
            level["factor"].replace("_", " "),
            "" if level["factor"] == NOMINAL else figure(level["value"]),
            "yes" if level["trained"] else "no",
            measured(level, "success"),
            figure(level["episodes"]),
        ]
        for level in content["levels"]
    ]
    columns = ["factor", "level", "within training", "success", "episodes"]
    table = Table("All levels", columns, rows, frozenset(columns[1:]), folded=True)
    blocks: list[Block] = [Figures([picture], "large")] if picture else []
    return Section("robustness", title, "", [*blocks, table])


def _frontier_blocks(sources: Sources) -> list[Block]:
    frontier, student = sources.chain.get("frontier"), sources.chain.get("student")
    table = sources.files.read_json(frontier, "frontier.json") if frontier else None
    if not isinstance(table, dict) or not (rows := [row for row in table["rows"] if row.get("p99_us")]):
        return [
            Note("No frontier of this teacher: `pipeline frontier` distils and times a grid of students.")
        ]
    chosen = network_size(student) if student else None
    front = []
    for row in rows:
        if row.get("on_front"):
            metric = "success" if row.get("retention") is None else "retention"
            size = f"p99 {row['p99_us']:.1f} µs, {figure(row.get('parameters'))} parameters"
            front.append((f"{row['depth']} × {row['width']}", f"{metric} {measured(row, metric)}", size))
    caption = (
        f"Each dot is a student{', as C code' if table.get('runtime') == 'c' else ''}; "
        "on the line nothing is both better and faster; the ring marks this report’s size."
    )
    columns = ["depth × width", "parameters", "success", "retention", "p50 µs", "p99 µs"]
    cells = [
        [
            f"{row['depth']} × {row['width']}",
            figure(row.get("parameters")),
            measured(row, "success"),
            measured(row, "retention"),
            f"{row['p50_us']:.1f}" if row.get("p50_us") else "",
            f"{row['p99_us']:.1f}",
        ]
        for row in rows
    ]
    shown = Table("All students of the frontier", columns, cells, frozenset(columns[1:]), folded=True)
    chart = Figure("chart", frontier_chart(table, chosen), "", caption)
    return [Split(Facts(front), Figures([chart])), shown]


def rollouts_section(sources: Sources) -> Section:
    """Show episodes: some to play, a video, and paths from above where the task has a plan."""
    chain, files = sources.chain, sources.files
    blocks: list[Block] = []
    if (rendering := chain.get("rendering")) is not None:
        results = rendering.manifest.results
        of = next(iter(rendering.manifest.parents.values()))
        if (recording := files.recording(rendering)) is not None:
            blocks.append(_player(recording, _PERFORMERS.get(of.kind, of.kind)))
        else:
            blocks.append(Note("No recording to play: `pipeline render` makes one."))
        said = f"{results.get('reached', '?')} of {results.get('episodes', '?')} episodes reach their goal"
        caption = f"The {_PERFORMERS.get(of.kind, of.kind)}: {said}."
        alt = f"Video of closed-loop episodes of {of.name}: {said}"
        found = [files.figure(rendering, "episodes.mp4", alt=alt, caption=caption)]
        strip = f"Key frames of the same episodes of {of.name}, a row an episode"
        found.append(files.figure(rendering, "strip.png", alt=strip, caption=f"{strip}."))
        if shown := [each for each in found if each]:
            blocks.append(Figures(shown, "large"))
    else:
        blocks.append(Note("No video: `pipeline render` makes one."))
    paths = []
    for kind in ("teacher", "student"):
        if (artifact := chain.get(kind)) is None:
            continue
        alt = f"Paths of the {kind} seen from above, with their goals"
        caption = f"Paths of the {kind} from above, blue where it reached its goal."
        if found_paths := files.figure(artifact, "rollouts.png", alt=alt, caption=caption):
            paths.append(found_paths)
    blocks.append(Figures(paths) if paths else Note("No paths from above: the task’s goals lie in no plane."))
    return Section("episodes", "How it moves", "", blocks)


def _player(recording: Mapping[str, Any], performer: str) -> Player:
    """Return recorded episodes to play, with a caption that says what they are and what is left out."""
    axes, others = recording["axes"], recording["goal_numbers"] - len(recording["axes"])
    caption = (
        f"Click a goal to see how the {performer} goes there, in an episode that was recorded: "
        f"{len(recording['episodes'])} starts and goals of {recording['distribution']}, as evaluation runs "
        "them, until two seconds after success."
    )
    if others > 0:
        spanned = " and ".join(axis["name"] for axis in axes)
        caption += f" The plan spans {spanned} of the goal; what else it says is as it was drawn."
    if recording["meshes"]:
        caption += " Meshes are simplified."
    if recording["left_out"]:
        caption += f" Not drawn: {', '.join(recording['left_out'])}."
    content = json.dumps(recording, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Player(content, caption)


def failures_section(sources: Sources) -> Section:
    """Show where the student fails and the teacher does not."""
    title, student = "Where it fails", sources.chain.get("student")
    if student is None:
        return Section("failures", title, "", [Note("No student in this report.")])
    failures = sources.files.read_json(student, "failures.json")
    if not isinstance(failures, list):
        missing = Note("No list of failures: this student was distilled before they were kept.")
        return Section("failures", title, "", [missing])
    counts = {
        who: sum(each.get("failed") == who for each in failures) for who in ("student", "teacher", "both")
    }
    rows = [
        ("Student alone", f"{counts['student']:,}", "the teacher reached the goal"),
        ("Teacher alone", f"{counts['teacher']:,}", "the student reached the goal"),
        ("Both", f"{counts['both']:,}", "neither reached the goal"),
    ]
    blocks: list[Block] = [Facts(rows)]
    if counts["student"]:
        alt = "Arrows from start to goal of the episodes in which the student alone fails"
        caption = "Start and goal of the episodes in which the student alone fails."
        found = sources.files.figure(student, "failures.png", alt=alt, caption=caption)
        if found:
            blocks = [Split(Facts(rows), Figures([found]))]
    else:
        blocks.append(Note("There is no episode in which the student alone fails."))
    episodes = figure(student.manifest.results.get("episodes"))
    return Section("failures", title, f"Of {episodes} paired episodes, same starts and goals.", blocks)


# -- Pictures of a task for its report: starts with their goals, in the scene or as arrows from above

_SCENES, _ARROWS = 3, 48
_WIDTH, _HEIGHT = 480, 360
_DISTRIBUTION = "evaluation"


def task_figures(source: Artifact) -> Figures | None:
    """Return pictures of the commands that episodes are evaluated on; None where the task cannot be read."""
    from PIL import Image

    from thousandfold.envs.pictures.scene_rendering import SceneRenderer
    from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

    try:
        task = load_task(source)
    except UserError:
        return None  # the section on the task says so

    def drawn(content: bytes, alt: str, caption: str = "") -> Figure:
        return inline_figure(content, ".png", alt=alt, caption=caption)

    figures, name = [], task.spec.name
    qpos, _, goals = task.sample_start(_DISTRIBUTION, np.random.default_rng(0), _SCENES)
    try:
        with SceneRenderer(task, _WIDTH, _HEIGHT) as renderer:
            for index, (start, goal) in enumerate(zip(qpos, goals, strict=True), 1):
                file = io.BytesIO()
                Image.fromarray(renderer.draw(start, goal)).save(file, "PNG", optimize=True)
                figures.append(drawn(file.getvalue(), f"Start {index} of {name} with its goal marked"))
    except NoOpenGLError:  # arrows from above instead
        simulator = CpuSimulator(task, _ARROWS, seed=0, distribution=_DISTRIBUTION)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "commands.png"
            facts = (name, f"{_ARROWS} episodes")
            starts, aims = simulator.achieved_goal, simulator.desired_goal
            draw_arrows(path, task, starts, aims, "From start to goal", facts)
            alt = f"Arrows from start to goal of {_ARROWS} episodes of {name}"
            caption = "Commands that episodes are evaluated on: from start to goal."
            return Figures([drawn(path.read_bytes(), alt, caption)])
    caption = "Commands that episodes are evaluated on: from a start to a goal, drawn in yellow-green."
    return Figures(figures, "small", caption)
