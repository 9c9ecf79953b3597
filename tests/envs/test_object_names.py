"""What is printed as the name of an object is taken for it, for every kind, with names and without."""

from __future__ import annotations

import mujoco
import pytest
import yaml

from thousandfold.envs.object_names import as_written, find_object, object_count, object_name, object_names
from thousandfold.envs.task import TaskError

KINDS = [
    getattr(mujoco.mjtObj, f"mjOBJ_{kind}")
    for kind in ("JOINT", "ACTUATOR", "BODY", "SITE", "SENSOR", "GEOM", "TENDON", "EQUALITY", "KEY", "CAMERA")
]
JOINT, ACTUATOR, BODY, SITE = KINDS[:4]
# No name at all, and names that look like those which objects without one get.
UNNAMED = """<mujoco>
  <worldbody>
    <camera/><site/><geom size=".1"/>
    <body><freejoint/><geom size=".1"/><site pos=".1 0 0"/>
      <body><joint/><geom size=".1"/><site pos=".1 0 0"/></body>
    </body>
    <body pos="1 0 0"><joint/><joint axis="0 1 0"/><geom size=".1"/><site/></body>
  </worldbody>
  <tendon><fixed><joint joint="JOINT" coef="1"/></fixed></tendon>
  <equality><joint joint1="JOINT"/></equality>
  <actuator><motor joint="JOINT"/><motor joint="JOINT"/></actuator>
  <sensor><clock/><clock/></sensor>
  <keyframe><key/><key/></keyframe>
</mujoco>""".replace("<joint/>", '<joint name="JOINT"/>', 1).replace("JOINT", "turn")
LOOKALIKES = """<mujoco>
  <worldbody>
    <geom name="geom_1" size=".1"/><geom size=".1"/><site/><site name="site_0"/>
    <body name="trunk"><freejoint/><geom name="geom_1_unnamed" size=".1"/>
      <body name="leg"><joint/><geom size=".1"/>
        <body name="toe"><joint name="shin"/><geom size=".1"/></body></body>
      <body name="shin"><joint/><geom size=".1"/></body>
      <body name="joint_4"><joint/><joint axis="0 1 0"/><geom size=".1"/></body>
    </body>
    <body name="hook"><joint name="joint_6"/><joint/><geom size=".1"/></body>
    <body name="a b"><joint axis="1 0 0"/><geom size=".1"/></body>
  </worldbody>
  <actuator>
    <motor joint="shin"/><motor joint="shin"/><motor name="actuator_1" joint="shin"/>
    <motor name="0" joint="shin"/><motor name="actuator_1_unnamed" joint="shin"/>
  </actuator>
</mujoco>"""


def model_of(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml)


@pytest.mark.parametrize("xml", [UNNAMED, LOOKALIKES], ids=["unnamed", "lookalikes"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_printed_is_accepted_back(xml: str, kind: mujoco.mjtObj) -> None:
    model = model_of(xml)
    names = object_names(model, kind)
    assert len(names) == object_count(model, kind) and len(set(names)) == len(names)
    for index, name in enumerate(names):
        assert find_object(model, kind, name, "the task") == index
        assert object_name(model, kind, index) == name
        given = mujoco.mj_id2name(model, kind, index)
        assert not given or name == given, "a name that the model gives stays"


def test_names_of_what_has_none() -> None:
    model = model_of(LOOKALIKES)
    assert object_names(model, ACTUATOR) == [
        "actuator_0",
        "actuator_1_unnamed_unnamed",
        "actuator_1",
        "0",
        "actuator_1_unnamed",
    ]
    # A joint goes by its body where it is the only one, and no joint has that name.
    assert object_names(model, JOINT) == [
        "trunk",
        "leg",
        "shin",
        "joint_3",
        "joint_4",
        "joint_5",
        "joint_6",
        "joint_7",
        "a b",
    ]
    assert object_names(model_of(UNNAMED), KINDS[-2]) == ["keyframe_0", "keyframe_1"]


def test_names_as_a_page_needs_them() -> None:
    for name in (
        "elbow",
        "front left",
        "1",
        "1e3",
        "null",
        "True",
        "a: b",
        "#4",
        "- x",
        "[x]",
        "é",
        "it's",
        " x",
    ):
        assert yaml.safe_load(f"{{object: {as_written(name)}}}") == {"object": name}


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (
            SITE,
            "trunk",
            "no site named 'trunk'; 'trunk' is a joint and a body; it has site_0_unnamed, site_0.",
        ),
        (JOINT, "toe", "no joint named 'toe'; 'toe' is a body with the joint shin; it has trunk, leg, shin"),
        (JOINT, "hook", "'hook' is a body with the joints joint_6, joint_7; it has"),
        (JOINT, "world", "no joint named 'world'; 'world' is a body without a joint; it has trunk"),
        (ACTUATOR, "shin", "'shin' is a joint and a body; it has actuator_0, actuator_1_unnamed"),
        (BODY, "tow", "the model has no body named 'tow'; did you mean 'toe'? it has world, trunk"),
        (KINDS[8], "home", "the model has no keyframe named 'home'; it has none."),
    ],
)
def test_a_name_that_is_not_there(kind: mujoco.mjtObj, name: str, expected: str) -> None:
    with pytest.raises(TaskError) as raised:
        find_object(model_of(LOOKALIKES), kind, name, "the task")
    assert expected in str(raised.value)
