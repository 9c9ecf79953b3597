"""Tasks that users bring: a MuJoCo model and a page of YAML. Docs: docs/user_tasks.md."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import (
    CompiledTask,
    orientation_spans,
    require_goals_fit,
    require_region_fits,
)
from thousandfold.envs.control_map import ControlMap
from thousandfold.envs.distributions import (
    BoxPositions,
    CellPositions,
    ConcatenatedPositions,
    ListPositions,
    PositionDistribution,
    RelativePositions,
    RingPositions,
    constant,
)
from thousandfold.envs.mazes import add_walls, cells
from thousandfold.envs.mujoco_log import compile_spec, quiet_mujoco
from thousandfold.envs.object_names import find_object, nearest_hint, object_name, object_names
from thousandfold.envs.orientations import ORIENTATION_COLUMNS, UP_COLUMNS, Orientations
from thousandfold.envs.position_servos import position_targets, servo_joint
from thousandfold.envs.randomization import FACTORS, Factor, Push, Variation
from thousandfold.envs.reachable_goals import ReachableGoals, require_drawable
from thousandfold.envs.senses import require_told_apart
from thousandfold.envs.start_states import StartStates, require_whole_state
from thousandfold.envs.task import (
    Command,
    EarlyEnd,
    EpisodeDistribution,
    GoalTask,
    MazePicture,
    Reset,
    ScenePicture,
    Sensor,
    SuccessRegion,
    Swing,
    TaskError,
    Term,
    clock,
    with_nominal,
)
from thousandfold.envs.term_columns import FACTORS_FIELD, TermColumns, TermResolver, is_orientation
from thousandfold.envs.user_tasks import user_schema as schema
from thousandfold.envs.user_tasks.model_xml import require_modest, with_place
from thousandfold.envs.user_tasks.task_yaml import Location, Page, read_page, shown
from thousandfold.envs.varied_model import VariedModel

SUFFIXES = (".yaml", ".yml")
_KINDS = {
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "cam": mujoco.mjtObj.mjOBJ_CAMERA,
    "eq": mujoco.mjtObj.mjOBJ_EQUALITY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "key": mujoco.mjtObj.mjOBJ_KEY,
    "sensor": mujoco.mjtObj.mjOBJ_SENSOR,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "tendon": mujoco.mjtObj.mjOBJ_TENDON,
}
_OWNER = "the task"  # how the core's errors begin; the file and the line take its place


def is_task_file(reference: str) -> bool:
    """Return whether a task is given by its file and not by its name."""
    return reference.endswith(SUFFIXES) or os.sep in reference


def load_user_task(path: str | Path, reserved: Collection[str] = ()) -> GoalTask:
    """Return the task that a YAML file describes. Nothing is compiled unless actions or success need that.

    Args:
        path: the file; `~` and relative paths are resolved.
        reserved: names that it must not have.

    Raises:
        TaskError: one line that names the file, the line and the entry that is wrong.
    """
    return _goal_task(*_read(path, reserved))


def compile_user_task(path: str | Path, reserved: Collection[str] = ()) -> CompiledTask:
    """Return the task of a YAML file with its model compiled.

    Raises:
        TaskError: as `load_user_task`; a model that MuJoCo refuses or that holds NaN; a name that the model
            does not have.
    """
    page, entry = _read(path, reserved)
    task = _goal_task(page, entry)
    try:
        with quiet_mujoco():
            compiled = CompiledTask(task)
    except TaskError as error:
        model = _compile(page, task.build_spec)
        for location, check in _checks(page, entry, task, model):
            _located(page, location, check)
        # The control step and the timestep are left.
        reason = str(error).removeprefix(f"Task {task.name!r}: ").removeprefix("control_dt_s ")
        raise page.error(("control_dt_s",), reason) from error
    _require_numbers(page, compiled.model)
    _require_whole_keyframes(page, entry, compiled)
    _require_scene_fits(page, compiled)
    return compiled


def file_stamps(path: str) -> tuple[tuple[str, int, int], ...]:
    """Return path, time of change and size of a task's page and of the XML files and meshes of its model."""
    page = read_page(path)
    files = [page.path]
    if isinstance(page.content.get("model"), str):
        files += model_files(page.file("model"))
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def model_files(model: Path) -> list[Path]:
    """Return a model's file and those that MuJoCo says it is made of."""
    try:
        require_modest(model)
        with quiet_mujoco():
            found = mujoco.mju_getXMLDependencies(_for_mujoco(model))
            return [model, *(Path(os.fsdecode(file.encode())) for file in found)]
    except (OSError, ValueError, mujoco.FatalError):  # damaged, or a file is missing: compiling it says which
        return [model]


def _read(path: str | Path, reserved: Collection[str]) -> tuple[Page, schema.TaskEntry]:
    page = read_page(path)
    entry = schema.validate(page)
    if entry.name in reserved:
        raise page.error(("name",), f"{entry.name!r} is a built-in task: choose another name")
    return page, entry


def _goal_task(page: Page, entry: schema.TaskEntry) -> GoalTask:
    model = page.file("model")
    if not model.exists():
        raise page.error(("model",), f"there is no file {shown(model)}")
    _located(page, ("model",), partial(require_modest, model))
    build_spec = partial(_build_spec, model, entry.options, entry.maze)
    student = entry.student_observation
    make = partial(
        GoalTask,
        name=entry.name,
        description=" ".join(entry.description.split()),
        build_spec=build_spec,
        observation=tuple(_term(term) for term in entry.observation),
        student_observation=None if student is None else tuple(_term(term) for term in student),
        achieved_goal=tuple(_term(term) for term in entry.achieved_goal),
        success=_success(page, entry, build_spec),
        distributions=_distributions(page, entry),
        control_dt_s=entry.control_dt_s,
        episode_steps=entry.episode_steps,
        hold_steps=entry.hold_steps,
        resample_every=entry.resample_every,
        early_end=tuple(EarlyEnd(_term(end.term), end.low, end.high) for end in entry.early_end),
        control=_control(page, entry, build_spec),
        action_delay=_steps(entry.action_delay),
        other_radii=entry.other_radii,
        maze=None if entry.maze is None else MazePicture(entry.maze.layout, entry.maze.scale),
        scene=_scene(entry),
        file=str(page.path),
    )
    try:
        return make()
    except TaskError as error:
        raise page.error(error.entry, str(error).removeprefix(f"Task {entry.name!r}: ")) from error


# -- the model ------------------------------------------------------------------------------------


def _for_mujoco(path: Path) -> str:
    """Return a path whose UTF-8, which is what MuJoCo opens under every locale, is the name of the file.

    Raises ValueError where no text is: the name holds other bytes.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise ValueError("its path is no UTF-8, and MuJoCo opens no other: rename it") from None


def _build_spec(model: Path, options: schema.OptionsEntry, maze: schema.MazeEntry | None) -> mujoco.MjSpec:
    """Return the user's model with the page's options and walls; MuJoCo's ValueError where it refuses."""
    with quiet_mujoco():
        spec = mujoco.MjSpec.from_file(_for_mujoco(model))
    if options.timestep_s is not None:
        spec.option.timestep = options.timestep_s
    if options.integrator is not None:
        spec.option.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{options.integrator.upper()}")
    if maze is not None and maze.wall_height is not None:
        add_walls(spec, maze.layout, maze.scale, maze.wall_height)
    return spec


def _compile(page: Page, build_spec: Callable[[], mujoco.MjSpec]) -> mujoco.MjModel:
    """Return the compiled model; raise TaskError where MuJoCo refuses it, or it holds NaN or no timestep."""
    try:
        model, _ = compile_spec(build_spec())
    except ValueError as error:
        file = page.file("model")
        raise page.error(
            ("model",), f"MuJoCo refuses {shown(file)}: {with_place(file, str(error))}"
        ) from error
    _require_numbers(page, model)
    if model.opt.timestep <= 0:
        reason = f"the timestep of {shown(page.file('model'))} (option timestep) must be above 0"
        raise page.error(("model",), f"{reason}, not {model.opt.timestep:g}")
    return model


def _require_numbers(page: Page, model: mujoco.MjModel) -> None:
    """Raise TaskError where the model holds NaN: MuJoCo compiles some of it, and diverges at once."""
    arrays = [
        (prefix + name, np.atleast_1d(value))
        for prefix, owner in (("", model), ("option.", model.opt))
        for name in dir(owner)
        if not name.startswith("_") and isinstance(value := getattr(owner, name), np.ndarray | float)
    ]
    holding = [(name, array) for name, array in arrays if array.dtype.kind == "f" and np.isnan(array).any()]
    if holding:
        # The options are the user's own; what MuJoCo computed ends in 0, as actuator_acc0.
        name, array = min(
            holding, key=lambda each: (not each[0].startswith("option."), each[0].endswith("0"), each[0])
        )
        index = int(np.argwhere(np.isnan(array))[0][0])
        kind = _KINDS.get(name.partition("_")[0])
        owner = f"[{index}]" if kind is None else f" of {object_name(model, kind, index)!r}"
        raise page.error(("model",), f"{shown(page.file('model'))} holds NaN, in {name}{owner}")


def _require_whole_keyframes(page: Page, entry: schema.TaskEntry, compiled: CompiledTask) -> None:
    """Raise TaskError for a keyframe that episodes start at and that is too short: MuJoCo fills it up."""
    names = object_names(compiled.model, mujoco.mjtObj.mjOBJ_KEY)
    keys = dict(zip(names, compiled.spec.build_spec().keys, strict=True))
    for name, own in entry.episodes.items():
        keyframe = (own.reset or entry.reset).keyframe
        if keyframe not in keys:
            continue
        key, model = keys[keyframe], compiled.model
        for field, size in (
            ("qpos", model.nq), ("qvel", model.nv), ("act", model.na), ("ctrl", model.nu),
            ("mpos", 3 * model.nmocap), ("mquat", 4 * model.nmocap),
        ):  # fmt: skip
            given = len(getattr(key, field))
            if given not in (0, size):
                place = (*_section(name, own.reset), "reset", "keyframe")
                raise page.error(place, f"{keyframe!r} gives {given} of the model's {size} {field}")


def _require_scene_fits(page: Page, compiled: CompiledTask) -> None:
    scene = compiled.spec.scene
    if scene.follow is not None:
        body = mujoco.mjtObj.mjOBJ_BODY
        _located(page, ("scene", "follow"), partial(find_object, compiled.model, body, scene.follow, _OWNER))
    if scene.goal_position and max(scene.goal_position) >= compiled.goal_dim:
        place, highest = ("scene", "goal_position"), compiled.goal_dim - 1
        raise page.error(place, f"there is no number {max(scene.goal_position)}, the last one is {highest}")


# -- from entries to parts of a task --------------------------------------------------------------


def _term(entry: schema.TermEntry) -> Term:
    sensor = _sensor(entry) if isinstance(entry, schema.SensedEntry) else None
    if isinstance(entry, schema.SensedEntry) and entry.clock is not None:
        return replace(clock(entry.clock), sensor=sensor)
    for pose, columns in ((entry.orientation, ORIENTATION_COLUMNS), (entry.up, UP_COLUMNS)):
        if pose is not None:
            field = {"body": "xmat", "site": "site_xmat", "geom": "geom_xmat"}[pose.kind]
            return Term(field, pose.object, columns, unit=entry.unit, frame=entry.frame, sensor=sensor)
    if isinstance(entry, schema.SensedEntry) and entry.factors is not None:
        return Term(FACTORS_FIELD, entry.factors, unit=entry.unit, sensor=sensor)
    assert entry.field is not None
    minus = None if entry.minus is None else _term(entry.minus)
    default = "identity" if minus is None else "difference"
    columns = None if entry.columns is None else tuple(entry.columns)
    transform = entry.transform or default
    return Term(entry.field, entry.object, columns, transform, minus, entry.unit, entry.frame, sensor)


def _sensor(entry: schema.SensedEntry) -> Sensor | None:
    """Return how a term is sensed; None where the page says nothing of it."""
    sensor = Sensor(
        entry.noise,
        entry.noise_kind,
        entry.bias,
        entry.quantum,
        _steps(entry.delay),
        entry.dropout,
        entry.history,
    )
    return None if sensor == Sensor() else sensor


def _steps(delay: int | schema.DrawnStepsEntry) -> tuple[int, int]:
    """Return the least and the most control steps of a delay."""
    return (delay, delay) if isinstance(delay, int) else (delay.low, delay.high)


def _success(
    page: Page, entry: schema.TaskEntry, build_spec: Callable[[], mujoco.MjSpec]
) -> tuple[SuccessRegion, ...]:
    """Return the regions of the page, one each of what a radius compares and of every orientation."""
    terms = [_term(term) for term in entry.achieved_goal]
    if not any(map(is_orientation, terms)) and all(each.angle is None for each in entry.success):
        return tuple(_region(each, *(each.part or (0,))) for each in entry.success)
    resolver, goal = TermResolver(_compile(page, build_spec), _OWNER), []
    for index, term in enumerate(terms):
        (resolved,) = _located(page, ("achieved_goal", index), partial(resolver.resolve, (term,)))
        start = goal[-1].stop if goal else 0
        goal.append(replace(resolved, start=start, stop=start + resolved.stop))
    return tuple(
        region
        for index, each in enumerate(entry.success)
        for region in _located(page, ("success", index), partial(_pose_regions, each, goal))
    )


def _region(entry: schema.SuccessEntry, start: int, stop: int | None = None) -> SuccessRegion:
    assert entry.radius is not None
    return SuccessRegion(entry.radius, start, stop, points=entry.points, scale=tuple(entry.scale or ()))


def _pose_regions(entry: schema.SuccessEntry, goal: list[TermColumns]) -> list[SuccessRegion]:
    """Return the regions of an entry for a goal of these terms, some of which are orientations."""
    found: list[SuccessRegion] = []
    start, stop = entry.part or (0, goal[-1].stop)
    numbers = range(start, min(stop, goal[-1].stop))
    spans = [span for span in orientation_spans(goal) if span.start < stop and start < span.stop]
    rest = [number for number in numbers if not any(s.start <= number < s.stop for s in spans)]
    for span in spans:
        if not start <= span.start < span.stop <= stop:
            place = f"numbers {span.start} to {span.stop - 1} of the goal"
            raise TaskError(
                f"the slice cuts an orientation, {place}: take in all of them, or none.", ("slice",)
            )
    if entry.radius is not None:
        if spans and entry.angle is None:
            raise TaskError(
                "orientations are compared by an angle: give `angle`, in radians, beside the radius, or a "
                "`slice` without them."
            )
        if rest != list(range(rest[0], rest[-1] + 1) if rest else ()) or not rest:
            raise TaskError(
                "a radius regards numbers in a row that are no orientation: give a region with a `slice` for "
                "each object."
                if rest
                else "there are no numbers but those of orientations: give `angle` alone."
            )
        found.append(_region(entry, rest[0], rest[-1] + 1))
    if entry.angle is not None and not spans:
        raise TaskError(
            "there is no orientation to compare: add `orientation: {object: …}` to achieved_goal.", ("angle",)
        )
    if entry.angle is not None:
        found += [SuccessRegion(entry.angle, each.start, each.stop, kind="orientation") for each in spans]
    return found


def _distributions(page: Page, entry: schema.TaskEntry) -> dict[str, EpisodeDistribution]:
    """Return those of the page's sections; where one of them varies, `with_nominal` as well."""
    episodes = {name: _episodes(page, entry, name) for name in entry.episodes}
    return with_nominal(episodes) if any(each.varies for each in episodes.values()) else episodes


def _episodes(page: Page, entry: schema.TaskEntry, name: str) -> EpisodeDistribution:
    own = entry.episodes[name]
    reset = own.reset or entry.reset
    goal = own.goal or entry.goal or []
    positions = None
    if reset.positions is not None:
        place = (*_section(name, own.reset), "reset", "positions")
        positions = _distribution(page, place, reset.positions, entry.maze)
    starts = Reset(
        joints=tuple(reset.joints),
        position=positions,
        keyframe=reset.keyframe,
        qpos_noise=reset.qpos_noise,
        qvel_noise=reset.qvel_noise,
        noise_joints=None if reset.noise_joints is None else tuple(reset.noise_joints),
    )
    place = (*_section(name, own.goal), "goal")
    goals = _distribution(page, place, goal, entry.maze)
    randomize = entry.randomize if own.randomize is None else own.randomize
    return EpisodeDistribution(starts, goals, tuple(_variations(randomize)))


def _variations(entry: schema.RandomizeEntry) -> Iterator[Variation]:
    for name, kind in FACTORS.items():
        given: Any = getattr(entry, name) or []
        for each in given if isinstance(given, list) else [given]:
            values = each.model_dump()
            if kind.objects is not None:
                values["objects"] = tuple(values.pop(kind.objects))
            yield Factor(name, **values)
    for push in entry.push:
        (soonest, latest), (slowest, fastest) = push.every_s, push.speed
        yield Push((soonest, latest), (slowest, fastest), push.body)


def _distribution(
    page: Page, place: Location, entries: list[schema.DistributionEntry], maze: schema.MazeEntry | None
) -> PositionDistribution:
    """Return the distribution of one entry, or of several side by side."""
    for index, entry in enumerate(entries if len(entries) > 1 else ()):
        if entry.reachable is not None:
            raise page.error((*place, index), "reachable gives all numbers of a goal, and has none beside it")
    parts = [
        _located(page, (*place, index), partial(_part, entry, maze)) for index, entry in enumerate(entries)
    ]
    return parts[0] if len(parts) == 1 else ConcatenatedPositions(tuple(parts))


def _part(entry: schema.DistributionEntry, maze: schema.MazeEntry | None) -> PositionDistribution:
    if entry.box is not None:
        return BoxPositions(tuple(entry.box.low), tuple(entry.box.high))
    if entry.positions is not None:
        return ListPositions(tuple(tuple(each) for each in entry.positions))
    if entry.ring is not None:
        ring = RingPositions(entry.ring.low, entry.ring.high, (entry.ring.center[0], entry.ring.center[1]))
        return ring if entry.ring.z is None else ConcatenatedPositions((ring, constant(entry.ring.z)))
    if entry.orientation is not None:
        turned = entry.orientation
        return Orientations(
            tuple(tuple(each) for each in turned.quat),
            within=turned.within,
            axis=None if turned.axis is None else tuple(turned.axis),
            low=turned.low or 0.0,
            high=turned.high or 0.0,
        )
    if entry.relative is not None:
        return RelativePositions(_part(entry.relative, maze))
    if entry.reachable is not None:
        drawn = entry.reachable
        low, high = ((), ()) if drawn.within is None else (drawn.within.low, drawn.within.high)
        joints = None if drawn.joints is None else tuple(drawn.joints)
        return ReachableGoals(joints, drawn.margin, drawn.collision_free, tuple(low), tuple(high))
    if entry.cells is None:
        raise TaskError("no distribution")
    layout = entry.cells.layout or (maze and maze.layout)
    scale = entry.cells.scale or (maze and maze.scale)
    if layout is None or scale is None:
        raise TaskError("cells need a layout and a scale, their own or those of `maze`")
    plane = CellPositions(cells(layout, entry.cells.kinds, scale), entry.cells.jitter)
    return plane if entry.cells.z is None else ConcatenatedPositions((plane, constant(entry.cells.z)))


def _control(
    page: Page, entry: schema.TaskEntry, build_spec: Callable[[], mujoco.MjSpec]
) -> tuple[Command, ...] | None:
    if entry.action == "range":
        return None
    if entry.action == "position_target":
        model = _compile(page, build_spec)
        return _located(page, ("action",), lambda: position_targets(model))
    commands: list[schema.CommandEntry] = entry.action  # pyright: ignore[reportAssignmentType]
    model = _compile(page, build_spec) if any(_needs_model(each) for each in commands) else None
    keyframes = {(own.reset or entry.reset).keyframe for own in entry.episodes.values()}
    found = []
    for place, actuator in _commanded(page, commands, model):
        if commands[place].kind == "offset" and commands[place].about is None and len(keyframes) > 1:
            raise page.error(
                ("action", place),
                f"{' and '.join(entry.episodes)} start in different keyframes: say what it moves `about`",
            )
        found.append(_command(commands[place], actuator, model, next(iter(keyframes))))
    return tuple(found)


def _needs_model(entry: schema.CommandEntry) -> bool:
    return entry.actuators is not None or (entry.kind == "offset" and entry.about is None)


def _commanded(
    page: Page, commands: Sequence[schema.CommandEntry], model: mujoco.MjModel | None
) -> list[tuple[int, str]]:
    """Return which entry says what of which actuator, in the order of the actions.

    What is said of an actuator by its name goes before patterns, a later pattern before an earlier one.

    Raises:
        TaskError: a name or pattern means no actuator, or others say all that an entry would.
    """
    names = [] if model is None else object_names(model, mujoco.mjtObj.mjOBJ_ACTUATOR)
    by_name: list[tuple[int, str]] = []
    by_pattern: dict[str, int] = {}
    for place, entry in enumerate(commands):
        if entry.actuator is not None:
            by_name.append((place, entry.actuator))
        for index, pattern in enumerate(entry.actuators or ()):
            if pattern in names:
                by_name.append((place, pattern))
                continue
            matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                raise page.error(
                    ("action", place, "actuators", index),
                    f"no actuator is called {pattern!r}; {nearest_hint(pattern, names)}valid: "
                    f"{', '.join(names)}",
                )
            by_pattern |= dict.fromkeys(matching, place)
    named = {name for _, name in by_name}
    found = [(place, name) for name, place in by_pattern.items() if name not in named]
    found += by_name
    idle = set(range(len(commands))) - {place for place, _ in found}
    for place in sorted(idle):
        raise page.error(
            ("action", place),
            "other entries say all of it: put patterns that mean more before those that mean less",
        )
    return found


def _command(
    entry: schema.CommandEntry, actuator: str, model: mujoco.MjModel | None, keyframe: str | None
) -> Command:
    """Return what an entry says of one actuator; an offset is about the keyframe that episodes start in."""
    if entry.hold is not None:
        return Command(actuator, "hold", entry.hold)
    about = entry.about
    if about is None and entry.kind == "offset" and keyframe is not None and model is not None:
        about = _in_keyframe(model, actuator, keyframe)
    return Command(
        actuator,
        entry.kind,
        entry.low,
        entry.high,
        about=about,
        scale=entry.scale,
        swing=None if entry.swing is None else Swing(**entry.swing.model_dump()),
        max_rate=entry.max_rate,
        smoothing_s=entry.smoothing_s,
    )


def _in_keyframe(model: mujoco.MjModel, actuator: str, keyframe: str) -> float | None:
    """Return what an actuator is sent in a keyframe: where the joint of a position servo is there.

    None where there is no such actuator or keyframe, which is told elsewhere.
    """
    try:
        index = find_object(model, mujoco.mjtObj.mjOBJ_ACTUATOR, actuator, _OWNER)
        key = find_object(model, mujoco.mjtObj.mjOBJ_KEY, keyframe, _OWNER)
    except TaskError:
        return None
    if (servo := servo_joint(model, index)) is not None:
        return servo.gear * float(model.key_qpos[key, servo.column])
    return float(model.key_ctrl[key, index])


def _scene(entry: schema.TaskEntry) -> ScenePicture:
    values: dict[str, Any] = entry.scene.model_dump(exclude={"goal_position", "lookat"})
    if entry.scene.lookat is not None:
        x, y, z = entry.scene.lookat
        values["lookat"] = (x, y, z)
    given = entry.scene.goal_position
    position = _positional_columns(entry.achieved_goal[0]) if given is None else tuple(given)
    return ScenePicture(**values, goal_position=position or None)


def _positional_columns(term: schema.TermEntry) -> tuple[int, ...]:
    """Return which numbers of a goal are x, y and z, where its first term is the position of something."""
    columns = term.columns or [0, 1, 2]
    if term.frame is not None:
        return ()
    is_position = term.field in ("xpos", "site_xpos", "geom_xpos") and term.object is not None
    is_position = is_position and term.minus is None
    is_position = is_position or (term.field == "qpos" and term.columns in ([0, 1], [0, 1, 2]))
    return tuple(range(len(columns))) if is_position and columns == list(range(len(columns))) else ()


# -- where an error comes from --------------------------------------------------------------------


def _located(page: Page, location: Location, call: Callable[[], Any]) -> Any:
    """Return what `call` returns; tell a TaskError by the file, the line and the entry."""
    try:
        return call()
    except TaskError as error:
        raise page.error((*location, *error.entry), str(error).removeprefix(f"{_OWNER}: ")) from error


def _checks(
    page: Page, entry: schema.TaskEntry, task: GoalTask, model: mujoco.MjModel
) -> Iterator[tuple[Location, Callable[[], Any]]]:
    """Yield the entries that must suit the model, each with what raises TaskError where it does not."""
    yield ("model",), partial(require_whole_state, model, _OWNER)
    student = task.student_observation or ()
    varied = partial(
        VariedModel, model, task.build_spec, owner=_OWNER, control_dt_s=task.control_dt_s,
        episode_steps=task.episode_steps,
    )  # fmt: skip
    observed = factors = None
    for name, own in entry.episodes.items():
        place, varies = (*_section(name, own.randomize), "randomize"), task.distributions[name].varies
        yield place, partial(varied, varies=varies, observed=observed)
        if observed is None and any(each.field == FACTORS_FIELD for each in (*task.observation, *student)):
            observed = varied(varies=varies)
            factors = observed.factor_elements
    resolver, observer = TermResolver(model, _OWNER), TermResolver(model, _OWNER, factors)
    parts = (("observation", task.observation), ("student_observation", student))
    for key, terms in (*parts, ("achieved_goal", task.achieved_goal)):
        for index, term in enumerate(terms):
            reader = resolver if key == "achieved_goal" else observer
            yield (key, index), partial(reader.resolve, (term,))
    for key, terms in parts:
        if terms:
            yield (), partial(require_told_apart, model, observer.resolve(terms), key, _OWNER)
    for index, end in enumerate(task.early_end):
        yield ("early_end", index, "term"), partial(resolver.resolve, (end.term,))
    yield ("action",), partial(_require_controls, page, entry, model, task)
    goal = resolver.resolve(task.achieved_goal)
    for index, region in enumerate(task.success):
        place = ("success", index) if len(task.success) == len(entry.success) else ("success",)
        yield place, partial(require_region_fits, region, goal, _OWNER)
    for name, own in entry.episodes.items():
        episodes = task.distributions[name]
        starts = partial(StartStates, model, episodes.starts, _OWNER, task.has_clock)
        yield (*_section(name, own.reset), "reset"), starts
        yield (*_section(name, own.goal), "goal"), partial(_require_goals, model, task, name, goal)


def _require_goals(model: mujoco.MjModel, task: GoalTask, name: str, goal: Sequence[TermColumns]) -> None:
    starts = StartStates(model, task.distribution(name).starts, _OWNER)
    require_goals_fit(require_drawable(model, task, name, starts, _OWNER), goal, _OWNER)


def _require_controls(page: Page, entry: schema.TaskEntry, model: mujoco.MjModel, task: GoalTask) -> None:
    try:
        ControlMap(model, task.control, _OWNER, task.control_dt_s)
    except TaskError as error:
        if error.entry and isinstance(entry.action, list):  # an entry may command several
            first, *rest = error.entry
            place = _commanded(page, entry.action, model)[int(first)][0]
            raise TaskError(str(error), (place, *rest)) from None
        if task.control is None and model.nu > 0:
            with contextlib.suppress(TaskError):
                position_targets(model)
                hint = "`action: position_target` takes the ranges of what the servos move."
                error = TaskError(f"{error} {hint}", error.entry)
        raise error from None


def _section(name: str, own: Any) -> tuple[str, ...]:
    """Return where a part of some episodes stands: in their own section, or with the whole task."""
    return () if own is None else (name,)
