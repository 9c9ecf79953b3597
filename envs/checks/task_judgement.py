"""What looks wrong in a task before anything acts in it: its starts, its controls, its terms, its goals.

Each judgement is cheap enough for the start of a training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from thousandfold.envs.checks.random_rollout import first_few
from thousandfold.envs.checks.sense_judgement import judge_senses
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mujoco_log import quiet_mujoco
from thousandfold.envs.object_names import object_name, object_names
from thousandfold.envs.start_states import STATE
from thousandfold.envs.task import Term
from thousandfold.envs.user_tasks.task_yaml import task_place

_OBJECT = mujoco.mjtObj
_STARTS = 12  # looked at, of each episode distribution
_VIOLATED, _SETTLED_AFTER_S = 0.05, 0.5  # of an equality's own size
_BEYOND = 0.1  # of a joint's range
_APART = 0.05  # of a servo's actrange, or of 1 without
_DEEP = 1.0  # of the thinner geom's half thickness; twice that in a floor, where it is then as a whole
_ACTS_FOR, _NO_EFFECT = 10, 1e-9  # control steps
_GOALS = 256
# Fields that tell where an object is, and what of the model says which body it is on.
_PLACES: dict[str, tuple[mujoco.mjtObj, str | None]] = {
    "xpos": (_OBJECT.mjOBJ_BODY, None),
    "xquat": (_OBJECT.mjOBJ_BODY, None),
    "xmat": (_OBJECT.mjOBJ_BODY, None),
    "site_xpos": (_OBJECT.mjOBJ_SITE, "site_bodyid"),
    "site_xmat": (_OBJECT.mjOBJ_SITE, "site_bodyid"),
    "geom_xpos": (_OBJECT.mjOBJ_GEOM, "geom_bodyid"),
    "geom_xmat": (_OBJECT.mjOBJ_GEOM, "geom_bodyid"),
}


def judge_task(task: CompiledTask, seed: int) -> list[str]:
    """Return a line for each thing that looks wrong, with its place on the page of a user's task."""
    place = task_place(task.spec.file, ("model",))
    found = [f"{place}: MuJoCo says: {warning}." for warning in task.model_warnings]
    with quiet_mujoco():
        for name in task.spec.judged:
            if name == "training" or task.spec.distribution(name) != task.spec.distribution("training"):
                found += _judge_starts(task, name, seed)
                found += _judge_goals_apart(task, name, seed)
        found += _judge_controls(task, seed)
    return [*found, *_judge_terms(task), *judge_senses(task)]


# -- starts ---------------------------------------------------------------------------------------


@dataclass
class _Worst:
    """The worst of one kind of trouble for each object that has it: by name, a size to compare and a text."""

    found: dict[str, tuple[float, str]]

    def add(self, name: str, size: float, text: str) -> None:
        if size > self.found.get(name, (0.0, ""))[0]:
            self.found[name] = size, text

    def __str__(self) -> str:
        return first_few([text for _, text in sorted(self.found.values(), reverse=True)])


def _judge_starts(task: CompiledTask, name: str, seed: int) -> list[str]:
    """Look at starts for violated equalities, geoms deep in one another and joints beyond their ranges."""
    model, data = task.model, mujoco.MjData(task.model)
    qpos, qvel, _ = task.sample_start(name, np.random.default_rng(seed), _STARTS)
    equalities, settled, overlaps, beyond, servos = (_Worst({}) for _ in range(5))
    for start in zip(qpos, qvel, strict=True):
        _put(task, data, name, *start)
        _add_violated(model, data, equalities)
        _add_overlaps(model, data, overlaps)
        _add_beyond(model, data, beyond)
        _add_servos_apart(model, data, servos)
    if model.neq:
        _put(task, data, name, qpos[0], qvel[0])
        mujoco.mj_step(model, data, min(500, round(_SETTLED_AFTER_S / model.opt.timestep)))
        mujoco.mj_forward(model, data)
        _add_violated(model, data, settled)
    place, found = task_place(task.spec.file, (name, "reset")), []
    if equalities.found:
        found.append(
            f"{place}: starts violate {equalities}: MuJoCo pulls these together in the first steps. Start "
            "where they hold, such as at a keyframe, and add noise to other joints alone (noise_joints)."
        )
    elif settled.found:
        found.append(
            f"after {_SETTLED_AFTER_S:g} s at action 0 the model violates {settled}: equalities or ranges of "
            "joints contradict one another, or actuators pull against them."
        )
    if overlaps.found:
        found.append(
            f"{place}: starts with {overlaps}: MuJoCo pushes them apart. Start higher or in another pose, or "
            "exclude the contact in the model."
        )
    if beyond.found:
        found.append(
            f"{place}: starts with {beyond}: MuJoCo pushes them back. Start at a keyframe or draw positions "
            "within the ranges."
        )
    if servos.found:
        found.append(
            f"{place}: starts with {servos}: it pulls the joint there in the first steps. Start at a "
            "keyframe whose `act` is where the joints are, and draw and disturb other joints (noise_joints)."
        )
    return found


def _put(
    task: CompiledTask, data: mujoco.MjData, distribution: str, qpos: np.ndarray, qvel: np.ndarray
) -> None:
    """Put a world into a start of a distribution, at action 0."""
    mujoco.mj_setState(task.model, data, task.start_state(distribution), STATE)
    data.qpos[:], data.qvel[:] = qpos, qvel
    start, clocks = task.control.start(data.ctrl[None], qpos[None]), task.control.clocks(np.zeros((1, 1)))
    data.ctrl[:] = task.control(np.zeros((1, task.action_dim), np.float32), start, clocks=clocks)[0]
    mujoco.mj_forward(task.model, data)


def _add_violated(model: mujoco.MjModel, data: mujoco.MjData, worst: _Worst) -> None:
    """Add the equalities that are violated by a share of the size of what they couple."""
    names = object_names(model, _OBJECT.mjOBJ_EQUALITY)
    rows = data.efc_type[: data.nefc] == mujoco.mjtConstraint.mjCNSTR_EQUALITY
    for row in np.flatnonzero(rows):
        index, by = int(data.efc_id[row]), float(np.abs(data.efc_pos[row]))
        size = by / _size_of_equality(model, index)
        if size > _VIOLATED:
            kind = mujoco.mjtEq(model.eq_type[index]).name.removeprefix("mjEQ_").lower()
            worst.add(names[index], size, f"the {kind} equality {names[index]!r} by {by:.2g}")


def _size_of_equality(model: mujoco.MjModel, index: int) -> float:
    """Return what a violation is measured by: a joint's range, a tendon's length, the size of the model."""
    kind, first = model.eq_type[index], int(model.eq_obj1id[index])
    if kind == mujoco.mjtEq.mjEQ_JOINT:
        if model.jnt_type[first] == mujoco.mjtJoint.mjJNT_HINGE:
            return 1.0
        if model.jnt_limited[first]:
            return float(np.ptp(model.jnt_range[first]))
    if kind == mujoco.mjtEq.mjEQ_TENDON:
        return float(np.ptp(model.tendon_range[first])) or float(abs(model.tendon_length0[first])) or 1.0
    return float(model.stat.extent)


def _add_overlaps(model: mujoco.MjModel, data: mujoco.MjData, worst: _Worst) -> None:
    """Add the contacts deeper than half of the thinner geom."""
    for contact in data.contact:
        if contact.exclude or contact.dist >= 0 or min(contact.geom) < 0:
            continue
        pair = sorted(map(int, contact.geom), key=lambda geom: _half_thickness(model, geom))
        size = -contact.dist / _half_thickness(model, pair[0])
        size /= 2.0 if _half_thickness(model, pair[1]) == np.inf else 1.0
        if size > _DEEP:
            one, other = (_geom_label(model, each) for each in pair)
            worst.add(f"{one}/{other}", size, f"{one} {-contact.dist:.2g} deep in {other}")


def _half_thickness(model: mujoco.MjModel, geom: int) -> float:
    endless = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    if mujoco.mjtGeom(model.geom_type[geom]) in endless:
        return np.inf
    return float(model.geom_aabb[geom][3:].min())


def _geom_label(model: mujoco.MjModel, geom: int) -> str:
    """Return ``geom 'foot'``, or ``a geom of 'shin'`` for one without a name."""
    if name := mujoco.mj_id2name(model, _OBJECT.mjOBJ_GEOM, geom):
        return f"geom {name!r}"
    return f"a geom of {object_name(model, _OBJECT.mjOBJ_BODY, int(model.geom_bodyid[geom]))!r}"


def _add_beyond(model: mujoco.MjModel, data: mujoco.MjData, worst: _Worst) -> None:
    """Add the slides and hinges that start beyond their range."""
    names = object_names(model, _OBJECT.mjOBJ_JOINT)
    single = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    for joint in np.flatnonzero(model.jnt_limited):
        if mujoco.mjtJoint(model.jnt_type[joint]) not in single:
            continue
        value, (low, high) = float(data.qpos[model.jnt_qposadr[joint]]), map(float, model.jnt_range[joint])
        size = max(low - value, value - high) / max(high - low, 1e-9)
        if size > _BEYOND:
            text = f"joint {names[joint]!r} at {value:.3g}, beyond its range {low:.3g} to {high:.3g}"
            worst.add(names[joint], size, text)


def _add_servos_apart(model: mujoco.MjModel, data: mujoco.MjData, worst: _Worst) -> None:
    """Add the servos that integrate their control (`intvelocity`) and whose target is not where they are."""
    names = object_names(model, _OBJECT.mjOBJ_ACTUATOR)
    for index in range(model.nu):
        stiffness = float(model.actuator_gainprm[index, 0])
        by_length = float(model.actuator_biasprm[index, 1])
        integrates = model.actuator_dyntype[index] == mujoco.mjtDyn.mjDYN_INTEGRATOR
        affine = model.actuator_biastype[index] == mujoco.mjtBias.mjBIAS_AFFINE
        if not (integrates and affine and by_length < 0 < stiffness):
            continue
        last = int(model.actuator_actadr[index] + model.actuator_actnum[index]) - 1
        target = stiffness * float(data.act[last]) / -by_length
        at = float(data.actuator_length[index])
        room = float(np.ptp(model.actuator_actrange[index])) if model.actuator_actlimited[index] else 1.0
        size = abs(target - at) / room
        if size > _APART:
            worst.add(names[index], size, f"servo {names[index]!r} at {at:.3g} and its `act` at {target:.3g}")


# -- goals, controls, terms -----------------------------------------------------------------------


def _judge_goals_apart(task: CompiledTask, name: str, seed: int) -> list[str]:
    """Return a line where goals differ and one place meets them all."""
    goals = task.sample_start(name, np.random.default_rng(seed), _GOALS)[2]
    middle = (goals.max(0) + goals.min(0)) / 2
    if (goals == goals[0]).all() or not task.is_success(np.tile(middle, (len(goals), 1)), goals).all():
        return []
    place, radius = task_place(task.spec.file, (name, "goal")), task.spec.success[0].radius
    return [
        f"{place}: the success radius {radius:g} covers all goals: a policy that stays in their middle meets "
        "every one."
    ]


def _judge_controls(task: CompiledTask, seed: int) -> list[str]:
    """Return a line where actions have no effect, or command what MuJoCo cuts off."""
    model, control, found = task.model, task.control, []
    if not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL:
        cut = _Worst({})
        for index, name in enumerate(control.actuators):
            low, high = sorted((float(control.low[index]), float(control.high[index])))
            lowest, highest = map(float, model.actuator_ctrlrange[index])
            over = max(lowest - low, high - highest) / max(highest - lowest, 1e-9)
            if model.actuator_ctrllimited[index] and over > 1e-3:
                held = f"is held at {low:.3g}" if low == high else f"is commanded {low:.3g} to {high:.3g}"
                text = f"actuator {name!r} {held}, beyond {lowest:.3g} to {highest:.3g}"
                cut.add(name, over, text)
        if cut.found:
            place = task_place(task.spec.file, ("action",))
            found.append(f"{place}: MuJoCo cuts controls to their ctrlrange: {cut}.")
    beyond = _Worst({})
    for index, (name, command) in enumerate(zip(control.actuators, control.commands, strict=True)):
        if command.swing is None:
            continue
        about, reach = float(control.base[index]), abs(command.swing.amplitude)
        over = reach - min(about - float(control.least[index]), float(control.most[index]) - about)
        if over > 0:
            beyond.add(name, over, f"actuator {name!r} swings by {reach:.3g} about {about:.3g}")
    if beyond.found:
        place = task_place(task.spec.file, ("action",))
        found.append(f"{place}: swings leave the range of their actuator and are cut off there: {beyond}.")
    idle = [repr(control.actions[action]) for action in _idle_actions(task, seed)]
    if idle:
        found.append(
            f"nothing moves with the action of actuator {first_few(idle)}: hold it, or see whether its gear, "
            "gain and forcerange, or a disabled group keep it from acting."
        )
    return found


def _idle_actions(task: CompiledTask, seed: int) -> Iterator[int]:
    """Yield which actions lead to the same motion at −1 and at +1, over some control steps of two starts.

    Adhesion acts on contacts alone and is not judged.
    """
    model, data = task.model, mujoco.MjData(task.model)
    starts = list(zip(*task.sample_start("training", np.random.default_rng(seed), 2)[:2], strict=True))
    alone = np.eye(task.action_dim, dtype=np.float32)
    adhesive = model.actuator_trntype == mujoco.mjtTrn.mjTRN_BODY
    for action, name in enumerate(task.control.actions):
        if adhesive[task.control.actuators.index(name)]:
            continue
        for start in starts:
            moved = []
            for extreme in (-alone[action], alone[action]):
                _put(task, data, "training", *start)
                for step in range(_ACTS_FOR):
                    clocks = task.control.clocks(np.array([[step * task.spec.control_dt_s]]))
                    data.ctrl[:] = task.control(extreme[None], data.ctrl[None], clocks=clocks)[0]
                    mujoco.mj_step(model, data, task.frame_skip)
                moved.append(np.concatenate([data.qpos, data.qvel]))
            if np.abs(moved[0] - moved[1]).max(initial=0.0) > _NO_EFFECT:
                break
        else:
            yield action


def _judge_terms(task: CompiledTask) -> list[str]:
    """Return a line where terms of an observation are there twice, or read what is fixed to the world."""
    found = []
    student = task.spec.student_observation or ()
    for part, terms in (("observation", task.spec.observation), ("student_observation", student)):
        seen = list[Term]()
        for index, term in enumerate(terms):
            place = task_place(task.spec.file, (part, index))
            if term in seen:
                found.append(f"{place}: this term is listed twice.")
            elif term.minus is None and _is_fixed(task.model, term):
                found.append(
                    f"{place}: {term.object!r} is fixed to the world, and what is read of it never changes."
                )
            seen.append(term)
    return found


def _is_fixed(model: mujoco.MjModel, term: Term) -> bool:
    """Return whether a term reads the place of one object that nothing can move."""
    if term.object is None or term.field not in _PLACES or term.frame is not None:
        return False
    kind, owner = _PLACES[term.field]
    index = object_names(model, kind).index(term.object)
    body = index if owner is None else int(getattr(model, owner)[index])
    return bool(model.body_weldid[body] == 0 and model.body_mocapid[model.body_rootid[body]] < 0)
