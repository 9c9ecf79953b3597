"""Fuzzing of what people write: python -m tests.fuzz.task_yaml --minutes 20.

A case's first line says what the rest is: a task's page, the XML of a model, a preset, or values of --set.
"""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.runner import damaged, main
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.settings import _read_preset, resolve_settings, split_overrides
from thousandfold.stages.stage_settings import settings_by_kind

CLASSES = settings_by_kind()  # which imports the stages
ROOT = Path(__file__).resolve().parents[2]
MODEL = """<mujoco model="arm">
  <option timestep="0.01" integrator="implicitfast"/>
  <size memory="1M" nuser_geom="2"/>
  <default><joint damping="0.5" armature="0.01"/></default>
  <asset><hfield name="h" nrow="3" ncol="4" size="1 1 1 1"/><mesh name="m" builtin="cone" params="8 .5"/>
    <texture name="t" type="2d" builtin="flat" width="8" height="8"/></asset>
  <worldbody>
    <replicate count="3" offset="0 0 .1"><geom size=".01" contype="0" conaffinity="0" user="1 2"/></replicate>
    <body name="l1" pos="0 0 0.5"><joint name="j1" axis="0 0 1" range="-2 2"/>
      <geom type="capsule" size="0.03" fromto="0 0 0 0.4 0 0" mass="1"/>
      <body name="l2" pos="0.4 0 0"><joint name="j2" axis="0 0 1" range="-2 2"/>
        <geom type="capsule" size="0.03" fromto="0 0 0 0.4 0 0" mass="1"/><site name="tip" pos="0.4 0 0"/>
      </body></body>
  </worldbody>
  <actuator><motor name="m1" joint="j1" gear="5" ctrlrange="-1 1"/>
    <motor name="m2" joint="j2" gear="5" ctrlrange="-1 1"/></actuator>
  <sensor><framepos objtype="site" objname="tip"/></sensor>
  <keyframe><key name="home" qpos="0.1 0.2"/></keyframe>
</mujoco>
"""
PAGE = """name: arm
description: reach a point
model: model.xml
control_dt_s: 0.05
episode_steps: 40
options: {timestep_s: 0.01, integrator: RK4}
observation: [{field: qpos, unit: rad}, {field: qvel}, {field: qpos, transform: cos, object: j1}]
achieved_goal:
  - field: site_xpos
    object: tip
    columns: [0, 1]
goal: {ring: {low: 0.3, high: 0.7}}
evaluation: {goal: {list: [[0.1, 0.5], [0.3, 0.4]]}}
success: [{radius: 0.1, slice: [0, 2]}]
early_end: [{term: {field: qpos, object: j1}, low: -3, high: 3}]
reset: {keyframe: home, qpos_noise: 0.1, noise_joints: [j1]}
action: [{actuator: m1}, {actuator: m2, low: -0.5, high: 1}]
maze: {layout: "##### #RG.# #####", scale: 4}
scene: {follow: l1, distance: 2}
"""
PRESET = (ROOT / "pipeline" / "presets" / "smoke.yaml").read_text()
SET = (
    "train_teacher.depth=8\ndistill.objective=kl\nbenchmark.rates_hz=[50, 1000]\nexport_onnx.variants=int8\n"
)
EXAMPLES = {
    "page": [PAGE, *(path.read_text() for path in ROOT.glob("examples/*/*.yaml"))],
    "model": [MODEL],
    "preset": [PRESET],
    "set": [SET],
}
ODD = [
    "", "0", "-1", "1e12", "1e-300", "1e308", "-1e308", "1e999", ".nan", ".inf", "nan", "inf", "010",
    "1_000", "0x10", "99999999999999999999", "2000000000", "9" * 500, "true", "null", "~", "[]", "{}", "''",
    '""', "*a", "&a [*a]", "&a", "<<", "? a", "- ", "[" * 100, "{a: " * 50, "- " * 60,
    "!!python/object:os.system", "!!int x", "!!set {a}", '"\\0"', "\\0", "\x7f", "é", "\u2028", "\ud7ff",
    "#", ": ", "|", ">", "%TAG", "---", "...", "~nobody-here/x", "/dev/zero", "/", "..", "a" * 300, "qpos",
    "xpos", "site_xpos", "sensordata", "tip", "j1", "world", "range", "position_target", '"', "'", "<", ">",
    "/>", "<!--", "&amp;", "&#0;", "0 0", "1 2 3 4 5 6 7 8 9", '<replicate count="100000">', "<frame>",
    '<include file="model.xml"/>', '<attach model="x" body="b"/>',
    '<flexcomp name="f" type="grid" count="90 90 90" spacing=".1 .1 .1"/>', '<size nkey="2000000000"/>',
]  # fmt: skip
"""What goes in the place of a word."""
_WORD = re.compile(r"[^\s\"'<>=/{}\[\],:]+|[\"'<>=/{}\[\],:]")


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """Draw an example, of which words and lines are changed, left out, repeated or exchanged."""
    kind = draw(st.sampled_from(sorted(EXAMPLES)))
    text = draw(st.sampled_from(EXAMPLES[kind]))
    for _ in range(draw(st.sampled_from([1, 1, 2, 2, 3, 5]))):
        words = list(_WORD.finditer(text))
        lines = text.splitlines(keepends=True)
        if not words or not lines:
            break
        word, other = draw(st.sampled_from(words)), draw(st.sampled_from(words))
        at, line = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(lines))
        match draw(
            st.sampled_from(["odd", "odd", "odd", "other", "out", "line out", "line twice", "indent"])
        ):
            case "odd":
                text = text[: word.start()] + draw(st.sampled_from(ODD)) + text[word.end() :]
            case "other":
                text = text[: word.start()] + other.group() + text[word.end() :]
            case "out":
                text = text[: word.start()] + text[word.end() :]
            case "line out":
                text = "".join(lines[:at] + lines[at + 1 :])
            case "line twice":
                text = "".join([*lines[:at], line, *lines[at:]])
            case _:
                text = "".join([*lines[:at], "  ", *lines[at:]])
    return f"{kind}\n".encode() + text.encode("utf-8", "surrogatepass")


def read(path: Path) -> None:
    """Read a case as the command line does."""
    kind, _, content = path.read_bytes().partition(b"\n")
    folder = path.parent
    if kind == b"set":
        overrides = [line for line in content.decode("utf-8", "surrogateescape").split("\n") if line]
        classes = {"train_teacher": "teacher", "distill": "student", "export_onnx": "policy"}
        classes |= {"generate_dataset": "dataset", "benchmark": "benchmark", "report": "report"}
        sorted_by_stage = split_overrides(overrides, classes)
        for section, own in sorted_by_stage.items():
            resolve_settings(CLASSES[classes[section]], section, overrides=own)
    elif kind == b"preset":
        (folder / "preset.yaml").write_bytes(content)
        _read_preset(folder / "preset.yaml")
    else:
        (folder / "task.yaml").write_bytes(PAGE.encode() if kind == b"model" else content)
        (folder / "model.xml").write_bytes(content if kind == b"model" else MODEL.encode())
        compile_task(str(folder / "task.yaml"))


CASES = written() | written() | damaged(written(), most=3)

if __name__ == "__main__":
    main("tests.fuzz.task_yaml:read", CASES, ".txt")
