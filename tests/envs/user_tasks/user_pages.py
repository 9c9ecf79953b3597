"""A small model and a page of YAML about it, to be changed line by line."""

from __future__ import annotations

from pathlib import Path

ARM = """<mujoco model="arm">
  <option timestep="0.01"/>
  <worldbody>
    <body name="upper">
      <joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>
      <geom type="capsule" size=".02" fromto="0 0 0 .2 0 0"/>
      <body name="lower" pos=".2 0 0">
        <joint name="elbow" axis="0 1 0" range="0 120" damping="1"/>
        <geom type="capsule" size=".02" fromto="0 0 0 .2 0 0"/>
        <site name="fingertip" pos=".2 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="lift" joint="shoulder" kp="10" ctrlrange="-1 1"/>
    <position name="bend" joint="elbow" kp="10" ctrlrange="-0.5 1"/>
  </actuator>
  <keyframe><key name="home" qpos="0.25 0.5"/></keyframe>
</mujoco>
"""
# Its state is more than positions and velocities: an activation, a delayed control and a body that is moved
# from outside.
STATEFUL_ARM = (
    ARM.replace(
        '<position name="lift" joint="shoulder" kp="10" ctrlrange="-1 1"/>',
        '<intvelocity name="lift" joint="shoulder" kp="10" kv="1" ctrlrange="-1 1" actrange="-2 2"/>',
    )
    .replace('ctrlrange="-0.5 1"/>', 'ctrlrange="-0.5 1" delay="0.03" nsample="4"/>')
    .replace("</worldbody>", '<body name="marker" mocap="true" pos="0 1 0"/></worldbody>')
    .replace(
        'qpos="0.25 0.5"/>', 'qpos="0.25 0.5" act="0.25" ctrl="0 0.5" mpos="0.3 0.2 0.1" mquat="0 1 0 0"/>'
    )
)
PAGE = """name: my_arm
model: arm.xml
control_dt_s: 5e-2
episode_steps: 30
observation:
  - {field: qpos, unit: rad}
  - field: site_xpos
    object: fingertip
achieved_goal: {field: site_xpos, object: fingertip, unit: m}
goal: {box: {low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]}}
success: {radius: 0.05}
reset: {keyframe: home}
"""


MOVER = """<mujoco>
  <worldbody>
    <body name="mover" pos="0 0 .1">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom size=".1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" ctrlrange="-1 1"/><motor joint="y" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def walled_page(goals: str, layout: str = "##### #R#G# #####", radius: float = 0.2) -> str:
    """Return the page of a ball that slides in a maze of cells of 1 m, with its goals (x, y)."""
    return f"""name: mover
model: arm.xml
control_dt_s: 0.02
observation: {{field: qpos}}
achieved_goal: {{field: qpos, columns: [0, 1]}}
goal: {{list: {goals}}}
success: {{radius: {radius}}}
reset: {{joints: [x, y], positions: {{cells: {{kinds: R}}}}}}
maze: {{layout: "{layout}", scale: 1, wall_height: 0.5}}
"""


def write(folder: Path, page: str = PAGE, model: str = ARM) -> Path:
    """Write page and model; return the page's path."""
    (folder / "arm.xml").write_text(model)
    path = folder / "robot.yaml"
    path.write_text(page)
    return path


def changed(text: str, old: str, new: str) -> str:
    """Return `text` with `old`, which is there once, replaced."""
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def with_line(key: str, line: str) -> str:
    """Return the page with the line of a top-level key replaced."""
    lines = PAGE.splitlines()
    (index,) = [i for i, each in enumerate(lines) if each.startswith(f"{key}:")]
    return "\n".join([*lines[:index], line, *lines[index + 1 :]]) + "\n"
