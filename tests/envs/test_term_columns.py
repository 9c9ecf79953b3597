"""What the numbers of a task are called, and their units, against a model with a joint of every kind."""

from __future__ import annotations

import mujoco
import pytest

from thousandfold.envs.task import Term
from thousandfold.envs.term_columns import TermResolver, describe_elements, earlier_names

MODEL = mujoco.MjModel.from_xml_string("""<mujoco>
  <worldbody>
    <body name="hull"><freejoint name="root"/><geom size=".1"/><site name="nose"/>
      <body name="mast"><joint name="turn"/><geom size=".1"/>
        <body><joint name="hoist" type="slide"/><geom size=".1"/>
          <body name="ball"><joint type="ball"/><geom size=".1"/></body></body></body></body>
  </worldbody>
  <actuator><motor name="winch" joint="hoist"/><motor joint="turn"/></actuator>
  <sensor>
    <gyro name="rates" site="nose"/><jointvel name="lift" joint="hoist"/><actuatorfrc actuator="winch"/>
  </sensor>
</mujoco>""")


def described(term: Term) -> list[tuple[str, str]]:
    (columns,) = TermResolver(MODEL, "the task").resolve((term,))
    return [(each["name"], each["unit"]) for each in describe_elements(MODEL, columns)]


def test_positions_of_every_kind_of_joint() -> None:
    free = [(f"qpos:root[{i}]", "m" if i < 3 else "1") for i in range(7)]
    others = [("qpos:turn[0]", "rad"), ("qpos:hoist[0]", "m")]
    assert described(Term("qpos")) == [*free, *others, *((f"qpos:ball[{i}]", "1") for i in range(4))]


def test_velocities_and_forces_of_every_kind_of_joint() -> None:
    for field, linear, angular in (("qvel", "m/s", "rad/s"), ("qfrc_actuator", "N", "N m")):
        free = [(f"{field}:root[{i}]", linear if i < 3 else angular) for i in range(6)]
        others = [(f"{field}:turn[0]", angular), (f"{field}:hoist[0]", linear)]
        assert described(Term(field)) == [
            *free,
            *others,
            *((f"{field}:ball[{i}]", angular) for i in range(3)),
        ]


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Term("qpos", columns=(8, 7)), [("qpos:hoist[0]", "m"), ("qpos:turn[0]", "rad")]),
        (Term("qpos", "root", columns=(2,)), [("qpos:root[2]", "m")]),
        (Term("qpos", "turn", transform="sin"), [("sin(qpos:turn)[0]", "1")]),
        (Term("qpos", columns=(7,), transform="cos"), [("cos(qpos:turn)[0]", "1")]),
        (Term("qpos", columns=(7,), unit="turns"), [("qpos:turn[0]", "turns")]),
        (Term("xpos", columns=(2, 3, 11)), [
            ("xpos:world[2]", "m"), ("xpos:hull[0]", "m"), ("xpos:body_3[2]", "m")]),
        (Term("site_xpos", columns=(1,)), [("site_xpos:nose[1]", "m")]),
        (Term("xquat", columns=(4,)), [("xquat:hull[0]", "1")]),
        (Term("cinert", "mast", columns=(0, 6, 9)), [
            ("cinert:mast[0]", "kg m²"), ("cinert:mast[6]", "kg m"), ("cinert:mast[9]", "kg")]),
        (Term("cvel", "mast", columns=(0, 3)), [("cvel:mast[0]", "rad/s"), ("cvel:mast[3]", "m/s")]),
        (Term("ctrl"), [("ctrl:winch[0]", ""), ("ctrl:actuator_1[0]", "")]),
        (Term("sensordata", columns=(2, 3, 4)), [
            ("sensordata:rates[2]", "rad/s"), ("sensordata:lift[0]", "m/s"), ("sensordata:sensor_2[0]", "")]),
        (Term("xpos", "mast", (0,), "difference", Term("xpos", "hull", (0,))), [
            ("xpos:mast - xpos:hull[0]", "m")]),
    ],
)  # fmt: skip
def test_names_and_units(term: Term, expected: list[tuple[str, str]]) -> None:
    assert described(term) == expected


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Term("qpos", columns=(0, 7, 9)), ["qpos[0] root[0]", "qpos[7] turn", "qpos[9]"]),
        (Term("qpos", "root", columns=(2,)), ["qpos:root[2]"]),
        (Term("qpos", columns=(7,), transform="cos"), ["cos(qpos)[7] turn"]),
        (Term("site_xpos", columns=(1,)), ["site_xpos[1] nose[1]"]),
        (Term("ctrl"), ["ctrl[0] winch", "ctrl[1]"]),
    ],
)
def test_how_files_of_earlier_versions_call_them(term: Term, expected: list[str]) -> None:
    (columns,) = TermResolver(MODEL, "the task").resolve((term,))
    assert earlier_names(MODEL, columns) == expected
