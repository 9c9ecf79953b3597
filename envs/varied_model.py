"""A model that varies from episode to episode: what is drawn for a world, and the fields of its model.

One function of the host draws for every simulator, `VariedModel.sample`: a row a world holds what was drawn,
the fields of the model that it changes, the constants that MuJoCo derives from them (`mj_setConst`), and the
pushes.
"""

from __future__ import annotations

import fnmatch
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch, SimulationError

from thousandfold.envs.mujoco_log import compile_spec, quiet_mujoco
from thousandfold.envs.object_names import find_object, nearest_hint, object_names
from thousandfold.envs.randomization import FACTORS, NORMAL_REACH, Factor, Push, Variation
from thousandfold.envs.task import TaskError
from thousandfold.envs.term_columns import as_slice
from thousandfold.ground.errors import nearest_name
from thousandfold.ground.machine import usable_cpus

MOST_PUSHES = 1000
"""pushes of one body within an episode"""
_CHUNK, _MOST_CHUNK, _PROBES = 64, 1024, 16  # worlds at once, on one thread and on all; trial draws
_deriving = threading.Lock()  # a batch serves one thread at a time
_OBJECT, _JOINT = mujoco.mjtObj, mujoco.mjtJoint
_KINDS = {
    "bodies": _OBJECT.mjOBJ_BODY,
    "geoms": _OBJECT.mjOBJ_GEOM,
    "joints": _OBJECT.mjOBJ_JOINT,
    "actuators": _OBJECT.mjOBJ_ACTUATOR,
}
_ONE = {"bodies": "body", "geoms": "geom", "joints": "joint", "actuators": "actuator"}
_SINGLE = (int(_JOINT.mjJNT_SLIDE), int(_JOINT.mjJNT_HINGE))
_JOINT_TRANSMISSIONS = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
_GAIN, _BIAS = mujoco.mjtGain, mujoco.mjtBias
_SIZED = tuple(
    int(kind)
    for kind in (
        mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_ELLIPSOID,
        mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX,
    )
)  # fmt: skip


class ModelField(NamedTuple):
    """Where a row holds a field of the model: ``row[columns].reshape(shape)``."""

    columns: slice
    shape: tuple[int, ...]


class _Drawn(NamedTuple):
    """A factor with the objects that it varies.

    Attributes:
        factor: as written.
        ids: (objects,) of the model.
        names: theirs.
        columns: of its draws, in the order of objects and of the numbers of each.
        write: writes what was drawn into fields of the model.
    """

    factor: Factor
    ids: np.ndarray
    names: list[str]
    columns: slice
    write: Writer

    def first_columns(self) -> Iterator[tuple[int, int]]:
        """Yield each object's id and the column of its first number."""
        numbers = len(FACTORS[self.factor.name].numbers)
        alike = self.columns.stop - self.columns.start == numbers  # one draw for all
        for index, id in enumerate(self.ids.tolist()):
            yield id, self.columns.start + (0 if alike else numbers * index)


class _Pushed(NamedTuple):
    """A push with the joint velocities that it changes, and how many of it an episode has at most."""

    push: Push
    dofs: list[int]
    count: int


class VariedModel:
    """What varies, bound to a model.

    Attributes:
        model: what simulators run. It is the task's own, but for bodies whose centre of mass moves: MuJoCo
            compiles the simplest of these as bodies whose centre of mass stays where it is.
        factor_names: what is drawn for a world, such as ``mass`` or ``joint_zero:elbow``.
        fields: the fields of `mujoco.MjModel` that vary, ``opt.gravity`` among them, and where a row of
            `sample` holds them.
        pushed_dofs: the joint velocities that pushes change, (pushed,) int.
        told: the columns of a row that observations read as factors: those of `observed`.
        width: of a row.

    Args:
        model: the compiled model.
        build_spec: makes another of it.
        varies: factors and pushes.
        owner: how errors begin.
        control_dt_s: seconds of a control step.
        episode_steps: control steps of an episode.
        observed: what varies in training, whose factors observations read. A row ends with these as they are
            here, be they drawn otherwise, for other objects, or not at all; None: they are its own.

    Raises:
        TaskError: an object that is not there or cannot vary so, or bounds that the model cannot have.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        build_spec: Callable[[], mujoco.MjSpec],
        varies: Sequence[Variation],
        owner: str,
        *,
        control_dt_s: float,
        episode_steps: int,
        observed: VariedModel | None = None,
    ) -> None:
        self._made_with = (model, build_spec, varies, owner, control_dt_s, episode_steps, observed)
        self._base, self._owner, self._control_dt_s = model, owner, control_dt_s
        self._drawn = list(self._resolve([each for each in varies if isinstance(each, Factor)]))
        pushes = [each for each in varies if isinstance(each, Push)]
        self._pushed = [self._resolve_push(*each, episode_steps) for each in enumerate(pushes)]
        self.factor_names = self._name_draws()
        self.model = self._movable_model(build_spec)
        self._scratch: Batch | None = None
        self.pushed_dofs = np.unique([dof for each in self._pushed for dof in each.dofs]).astype(int)
        self._push_count = sum(each.count for each in self._pushed)
        self.fields = self._lay_out()
        first = max([len(self.factor_names), *(field.columns.stop for field in self.fields.values())])
        self._pushes = slice(first, first + self._push_count * (1 + len(self.pushed_dofs)))
        self._observed, self.told = None, slice(0, len(self.factor_names))
        if observed is not None and [each.factor for each in observed._drawn] != [
            each.factor for each in self._drawn
        ]:
            self._observed = self._as_told(observed)
            self.told = slice(self._pushes.stop, self._pushes.stop + len(observed.factor_names))
        self.width = max(self._pushes.stop, self.told.stop)
        self._nominal = np.zeros(self.width)
        for name, field in self._written:
            self._nominal[field.columns] = _own(self.model, name).ravel()

    def __getstate__(self) -> tuple[Any, ...]:
        """Return what pickle makes another of."""
        return self._made_with

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Become what `__getstate__` was told of."""
        *arguments, control_dt_s, episode_steps, observed = state
        self.__init__(*arguments, control_dt_s=control_dt_s, episode_steps=episode_steps, observed=observed)

    # -- draws ------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return what is drawn for the episodes of some worlds, (count, width), float64.

        A row holds the factors, in the order of `factor_names`; then the model's `fields`; then the pushes;
        then the factors that are told, where these are others.
        """
        return self.completed(self.sample_alone(rng, count))

    def sample_alone(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return rows as of `sample` that hold no fields of the model yet, but the model's own."""
        rows = np.empty((count, self.width))
        rows[:] = self._nominal
        rows[:, : len(self.factor_names)] = self._sample_factors(rng, count)
        self._sample_pushes(rng, rows[:, self._pushes])
        return rows

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of `sample_alone` with the fields that follow from their factors; in place."""
        factors = rows[:, : len(self.factor_names)]
        fields = {name: rows[:, columns].reshape(-1, *shape) for name, (columns, shape) in self._written}
        self._write(fields, factors)
        if self._observed is not None:
            weights, alone = self._observed
            rows[:, self.told] = factors @ weights + alone
        if self._derived:
            self._derive(fields, {name: rows[:, columns] for name, (columns, _) in self._derived})
        return rows

    def kicks(self, rows: Any, step: Any, xp: Any = np) -> Any:
        """Return what pushes add to the velocities of `pushed_dofs` before a control step, (count, pushed).

        Args:
            rows: (count, width).
            step: (count,), control steps since the episode began.
            xp: the module of the arrays, `numpy` or `torch`.
        """
        first = self._pushes.start + self._push_count
        due = rows[:, self._pushes.start : first] == step[:, None]
        kicks = rows[:, first : self._pushes.stop].reshape(*due.shape, len(self.pushed_dofs))
        return xp.where(due[:, :, None], kicks, xp.zeros_like(kicks)).sum(1)

    def push_steps(self, rows: np.ndarray) -> np.ndarray:
        """Return before which control steps worlds are pushed, (count, pushes) int."""
        first = self._pushes.start
        return rows[:, first : first + self._push_count].astype(np.int64)

    def _sample_factors(self, rng: np.random.Generator, count: int) -> np.ndarray:
        drawn = [np.zeros((count, 0))]
        for each in self._drawn:
            if each.factor.name == "gravity_tilt":
                tilt, towards = each.factor.sample(rng, (count,)), rng.uniform(0.0, 2 * np.pi, count)
                drawn.append(tilt[:, None] * np.stack([np.cos(towards), np.sin(towards)], axis=1))
            else:
                width = each.columns.stop - each.columns.start
                drawn.append(each.factor.sample(rng, (count, width)))
        return np.concatenate(drawn, axis=1)

    def _sample_pushes(self, rng: np.random.Generator, rows: np.ndarray) -> None:
        """Fill in the control steps of pushes, (count, pushes), and the velocities they add, side by side."""
        count, first = len(rows), 0
        kicks = rows[:, self._push_count :].reshape(count, self._push_count, len(self.pushed_dofs))
        for push, dofs, most in self._pushed:
            own = slice(first, first + most)
            pauses = rng.uniform(*push.every_s, (count, most))
            rows[:, own] = np.maximum(np.rint(pauses.cumsum(1) / self._control_dt_s), 1)
            towards = rng.standard_normal((count, most, len(dofs)))
            towards /= np.sqrt((towards * towards).sum(2, keepdims=True))
            speed = rng.uniform(*push.speed, (count, most, 1))
            kicks[:, own, np.searchsorted(self.pushed_dofs, dofs)] = speed * towards
            first += most

    def _as_told(self, observed: VariedModel) -> tuple[np.ndarray, np.ndarray]:
        """Return what gives the factors of `observed`: ``factors @ weights + alone``.

        An object's number is what is drawn for it here, in the way that `observed` draws it, and the model's
        own where nothing is. Where objects of one number have several, it is their mean.

        Returns:
            weights (factors, factors of `observed`) and alone (factors of `observed`,).
        """
        own: dict[tuple[str, int], tuple[_Drawn, int]] = {}
        for each in self._drawn:
            own |= {(each.factor.name, int(id)): (each, column) for id, column in each.first_columns()}
        shape = len(self.factor_names), len(observed.factor_names)
        weights, alone, objects = np.zeros(shape), np.zeros(shape[1]), np.zeros(shape[1])
        for told in observed._drawn:
            name, kind = told.factor.name, FACTORS[told.factor.name]
            for id, first in told.first_columns():
                usual = 1.0 if kind.relative else 0.0
                in_model = _own_number(self._base, name, int(id)) if kind.absolute else usual
                here, column = own.get((name, int(id)), (None, 0))
                for number in range(len(kind.numbers)):
                    objects[first + number] += 1
                    if here is None:
                        alone[first + number] += usual if told.factor.relative else in_model
                        continue
                    by = 1.0
                    if told.factor.relative and not here.factor.relative:
                        if in_model == 0:
                            raise TaskError(
                                f"{self._owner}: {name} is 0 in the model, and cannot be observed as a share "
                                "of that: if training draws it too, set `relative: false`."
                            )
                        by = 1.0 / in_model
                    elif here.factor.relative and not told.factor.relative:
                        by = in_model
                    weights[column + number, first + number] += by
        return weights / objects, alone / objects

    # -- fields of the model ----------------------------------------------------------------------

    def _lay_out(self) -> dict[str, ModelField]:
        """Return where a row holds the fields that vary; trial draws tell which constants are among them."""
        factors = self._sample_factors(np.random.default_rng(0), _PROBES)
        written = _FieldRows(self.model, _PROBES)
        self._write(written, factors)
        found = dict(written)
        if not set(written).isdisjoint(mujoco.MjModel._setconst_inputs):
            with _deriving:
                scratch = self._scratch_batch(_PROBES)
                self._set_constants(scratch, written, slice(0, _PROBES))
                found |= _changed_constants(scratch, _PROBES, written)
        stop, fields = len(self.factor_names), {}
        for name, values in found.items():
            size = math.prod(values.shape[1:])
            fields[name] = ModelField(slice(stop, stop + size), values.shape[1:])
            stop += size
        self._written = [(name, fields[name]) for name in written]
        self._derived = [(name, field) for name, field in fields.items() if name not in written]
        return fields

    def _write(self, fields: Mapping[str, np.ndarray], factors: np.ndarray) -> None:
        """Write factors (count, factors) into fields of the model; constants do not follow yet."""
        for each in self._drawn:
            values, numbers = factors[:, each.columns], len(FACTORS[each.factor.name].numbers)
            each.write(fields, values if numbers == 1 else values.reshape(len(values), -1, numbers))

    def _derive(self, written: Mapping[str, np.ndarray], derived: Mapping[str, np.ndarray]) -> None:
        """Fill in the constants that MuJoCo derives from what is written, (count, numbers) each."""
        count = len(next(iter(written.values())))
        with _deriving:
            scratch = self._scratch_batch(count)
            for start in range(0, count, scratch.nsim):
                worlds = slice(start, min(start + scratch.nsim, count))
                size = worlds.stop - start
                self._set_constants(scratch, written, worlds)
                for name, values in derived.items():
                    constants = scratch.expanded(name)
                    assert constants is not None
                    values[worlds] = constants.reshape(scratch.nsim, -1)[:size]

    def _set_constants(self, scratch: Batch, written: Mapping[str, np.ndarray], worlds: slice) -> None:
        """Let MuJoCo derive the constants of some worlds, as the first ones of a batch."""
        size = worlds.stop - worlds.start
        for name, values in written.items():
            scratch.expand(name)[:size] = values[worlds]
        with quiet_mujoco():
            try:
                scratch.set_const(None if size == scratch.nsim else np.arange(size))
            except SimulationError as error:
                raise TaskError(f"{self._owner}: MuJoCo refuses a model that varies: {error}") from None

    def _scratch_batch(self, count: int) -> Batch:
        """Return what derives the constants of some worlds: kept for a few, for many made on all threads.

        The one that is kept has no thread of its own, which a process that is forked would lack.
        """
        if count > 4 * _CHUNK:
            return Batch(self.model, min(count, _MOST_CHUNK), usable_cpus())
        if self._scratch is None:
            self._scratch = Batch(self.model, _CHUNK, 1)
        return self._scratch

    def _movable_model(self, build_spec: Callable[[], mujoco.MjSpec]) -> mujoco.MjModel:
        """Return the model with a general inertia for the bodies whose centre of mass moves."""
        moved = [each.ids for each in self._drawn if each.factor.name == "center_of_mass"]
        ids = np.concatenate([np.zeros(0, int), *moved])
        if not self._base.body_simple[ids].any():
            return self._base
        spec = build_spec()
        names = object_names(self._base, _OBJECT.mjOBJ_BODY)
        compile_spec(spec)  # gives the bodies their ids
        for body in spec.bodies:
            if body.id in ids:
                body.simple = False
        model, _ = compile_spec(spec)
        if object_names(model, _OBJECT.mjOBJ_BODY) != names or model.body_simple[ids].any():
            raise TaskError(
                f"{self._owner}: MuJoCo keeps the centre of mass of {names[int(ids[0])]!r} where it is: "
                "leave the body out.",
                ("center_of_mass",),
            )
        return model

    # -- names ------------------------------------------------------------------------------------

    def _resolve(self, factors: Sequence[Factor]) -> Iterator[_Drawn]:
        """Yield the factors with their objects; a later factor goes before an earlier one of the name."""
        places, stop = list[tuple[str, int]](), 0
        for factor in factors:
            places.append((factor.name, [name for name, _ in places].count(factor.name)))
        owners: dict[tuple[str, int], int] = {}
        for index, (factor, place) in enumerate(zip(factors, places, strict=True)):
            _require_bounds(factor, place, self._owner)
            for each in self._objects(factor, place):
                owners[factor.name, each] = index
        for index, (factor, place) in enumerate(zip(factors, places, strict=True)):
            kind = FACTORS[factor.name]
            ids = sorted(each for (_, each), owner in owners.items() if owner == index)
            if kind.objects is None:
                names = [""]
            elif not ids:
                raise TaskError(
                    f"{self._owner}: later entries override all of it: put general patterns before specific "
                    "that mean less",
                    place,
                )
            else:
                every = object_names(self._base, _KINDS[kind.objects])
                names = [every[each] for each in ids]
            each = kind.each if factor.each is None else factor.each
            start, stop = stop, stop + len(kind.numbers) * (len(names) if each else 1)
            found, own = np.array(ids, int), np.arange(len(ids)) if each else np.zeros(len(ids), int)
            write = _WRITE[factor.name](self._base, factor, found, own)
            yield _Drawn(factor, found, names, slice(start, stop), write)

    def _objects(self, factor: Factor, place: tuple[str, int]) -> list[int]:
        """Return the ids of the objects that a factor varies.

        Raises:
            TaskError: a name or pattern means none, or one that cannot vary so.
        """
        kind = FACTORS[factor.name]
        if factor.name == "gravity_tilt":
            if not self._base.opt.gravity.any():
                raise TaskError(f"{self._owner}: the model has no gravity to tilt", place)
            return [0]
        assert kind.objects is not None
        names, found = object_names(self._base, _KINDS[kind.objects]), list[int]()
        for index, pattern in enumerate(factor.objects):
            entry = (*place, kind.objects, index)
            if pattern in names:
                chosen = [find_object(self._base, _KINDS[kind.objects], pattern, self._owner)]
            else:
                chosen = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
            if not chosen:
                raise TaskError(
                    f"{self._owner}: no {_ONE[kind.objects]} is called {pattern!r}; "
                    f"{nearest_hint(pattern, names)}valid: {', '.join(names)}",
                    entry,
                )
            reasons = {each: _obstacle(self._base, factor, each) for each in chosen}
            able = [each for each, reason in reasons.items() if reason is None]
            if not able:
                raise TaskError(f"{self._owner}: {names[chosen[0]]!r} {reasons[chosen[0]]}", entry)
            found += able
        return sorted(set(found))

    def _name_draws(self) -> list[str]:
        found = []
        for factor, _, names, columns, _ in self._drawn:
            kind, one = FACTORS[factor.name], len(FACTORS[factor.name].numbers)
            objects = names
            if columns.stop - columns.start != one * len(names) or not kind.objects:  # a draw for all
                alone = [each.factor.name for each in self._drawn].count(factor.name) == 1
                objects = [""] if alone else [",".join(factor.objects)]
            for name in objects:
                found += [":".join(filter(None, (factor.name, name, number))) for number in kind.numbers]
        return found

    @property
    def factor_elements(self) -> list[tuple[str, str]]:
        """Name and unit of what is drawn; ``1`` for what multiplies the model's own number.

        It is empty where objects that share a number differ in it, as joints that slide and that turn do.
        """
        found = []
        for each in self._drawn:
            kind, units = FACTORS[each.factor.name], dict[int, set[str]]()
            for id, column in each.first_columns():
                unit = "1" if kind.relative and each.factor.relative else kind.unit
                linear, _, turning = unit.partition(" or ")
                slides = kind.objects == "joints" and self._base.jnt_type[id] == _JOINT.mjJNT_SLIDE
                units.setdefault(column, set()).add(linear if slides or not turning else turning)
            for those in units.values():
                found += [those.pop() if len(those) == 1 else ""] * len(kind.numbers)
        return list(zip(self.factor_names, found, strict=True))

    def _resolve_push(self, index: int, push: Push, episode_steps: int) -> _Pushed:
        place, model = ("push", index), self._base
        (soonest, latest), (slowest, fastest) = push.every_s, push.speed
        if not self._control_dt_s <= soonest <= latest < np.inf:
            raise TaskError(
                f"{self._owner}: every_s must be two times in seconds, the second no less than the "
                f"first, and both at least the control step of {self._control_dt_s:g} s, "
                f"not {soonest:g} and {latest:g}",
                (*place, "every_s"),
            )
        if not 0 <= slowest <= fastest < np.inf:
            raise TaskError(
                f"{self._owner}: speed must be at least 0, and the second no less than the first, not "
                f"{slowest:g} and {fastest:g}",
                (*place, "speed"),
            )
        count = math.floor(episode_steps * self._control_dt_s / soonest)
        if count > MOST_PUSHES:
            raise TaskError(
                f"{self._owner}: an episode of {episode_steps * self._control_dt_s:g} s has more than "
                f"{MOST_PUSHES:,} pushes {soonest:g} s apart",
                (*place, "every_s"),
            )
        names = object_names(model, _OBJECT.mjOBJ_BODY)
        dofs = {body: _pushable_dofs(model, body) for body in range(model.nbody)}
        able = [body for body in dofs if dofs[body]]
        if push.body is not None:
            try:
                body = find_object(model, _OBJECT.mjOBJ_BODY, push.body, self._owner)
            except TaskError as error:
                raise error.within(*place, "body") from None
            if not dofs[body]:
                others = ", ".join(names[each] for each in able) or "none"
                raise TaskError(
                    f"{self._owner}: {push.body!r} has no free joint and no slide joint of its own, so that "
                    f"a push cannot move it; bodies that have one: {others}",
                    (*place, "body"),
                )
            return _Pushed(push, dofs[body], count)
        if not able:
            raise TaskError(
                f"{self._owner}: no body has a free joint or a slide joint to push it along", place
            )
        free = [body for body in able if model.body_dofnum[body] == 6 and len(dofs[body]) == 2]
        if len(free or able) != 1:
            others = ", ".join(names[each] for each in free or able)
            raise TaskError(f"{self._owner}: say which body is pushed: {others}", place)
        return _Pushed(push, dofs[(free or able)[0]], count)

    # -- what tables and checks say ---------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """Return an entry for each factor and each push: what varies, of how many objects, and how."""
        found = []
        for factor, ids, names, columns, _ in self._drawn:
            kind, (low, high) = FACTORS[factor.name], factor.bounds
            how = "added" if not kind.relative else "relative" if factor.relative else "absolute"
            unit = "" if how == "relative" else kind.unit
            found.append({
                "factor": factor.name,
                "objects": None if kind.objects is None else _counted(len(ids), kind.objects),
                "names": names if kind.objects else [],
                "drawn": factor.distribution, "how": how, "low": low, "high": high, "unit": unit,
                "numbers": columns.stop - columns.start,
            })  # fmt: skip
        for push, dofs, count in self._pushed:
            low, high = push.speed
            body = object_names(self._base, _OBJECT.mjOBJ_BODY)[int(self._base.dof_bodyid[dofs[0]])]
            found.append({
                "factor": "push", "objects": f"body {body}", "names": [body], "drawn": "uniform",
                "how": f"every {push.every_s[0]:g} to {push.every_s[1]:g} s", "low": low, "high": high,
                "unit": "m/s", "numbers": count,
            })  # fmt: skip
        return found


def _counted(number: int, objects: str) -> str:
    return f"{number} {_ONE[objects] if number == 1 else objects}"


class DrawStream:
    """What varies, drawn for one episode after another; many at a time, which takes a fraction of the time.

    How many episodes are asked for at once changes nothing of what they get.

    Args:
        varied: what varies.
        rng: the generator to draw from; a stream's own.
    """

    def __init__(self, varied: VariedModel, rng: np.random.Generator) -> None:
        self._varied, self._rng = varied, rng
        self._before = rng.bit_generator.state  # the last block
        self._block, self._taken = np.zeros((0, varied.width)), 0

    def take(self, count: int) -> np.ndarray:
        """Return the rows of the next episodes, (count, width)."""
        blocks = [self._block[self._taken :]]
        missing = -(-(count - len(blocks[0])) // _CHUNK)
        if missing > 0:
            drawn = []
            for _ in range(missing):
                self._before = self._rng.bit_generator.state
                drawn.append(self._varied.sample_alone(self._rng, _CHUNK))
            fresh = self._varied.completed(np.concatenate(drawn))
            blocks.append(fresh)
            self._taken = count - len(blocks[0]) - (missing - 1) * _CHUNK
            self._block = fresh[-_CHUNK:]
        else:
            self._taken += count
        return np.concatenate(blocks)[:count]

    @property
    def state(self) -> tuple[np.random.Generator, int]:
        """The generator as it was before the block at hand, and how many rows of that are taken."""
        rng = np.random.Generator(np.random.PCG64())
        rng.bit_generator.state = self._before
        return rng, self._taken

    @classmethod
    def from_state(cls, varied: VariedModel, rng: np.random.Generator, taken: int) -> DrawStream:
        """Return the stream whose `state` this is, which goes on as that one would."""
        stream = cls(varied, rng)
        if taken:
            stream.take(taken)
        return stream


class _FieldRows(dict[str, np.ndarray]):
    """Fields of a model for some worlds, (count, …), each the model's own until it is written to."""

    def __init__(self, model: mujoco.MjModel, count: int) -> None:
        self._model, self._count = model, count

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = rows = np.repeat(_own(self._model, name)[None].astype(float), self._count, axis=0)
        return rows


def _own(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Return the model's own of a field of `VariedModel.fields`."""
    owner = model.opt if name.startswith("opt.") else model
    return np.asarray(getattr(owner, name.removeprefix("opt.")))


def _changed_constants(scratch: Batch, count: int, written: Collection[str]) -> dict[str, np.ndarray]:
    """Return the constants, of all worlds of a batch, that MuJoCo has derived anew for the first of them."""
    found = {}
    for name in sorted(MODEL_FIELDS.intersection(mujoco.MjModel._setconst_outputs) - set(written)):
        values = scratch.expanded(name)
        if values is not None:
            own = _own(scratch.model, name).reshape(-1)[: values[0].size]
            if (values[:count].reshape(count, -1) != own).any():
                found[name] = values
    return found


# -- what may vary --------------------------------------------------------------------------------


def _require_bounds(factor: Factor, place: tuple[str, int], owner: str) -> None:
    """Raise TaskError where a factor is none, or its bounds are none that a model can have."""
    if factor.name not in FACTORS:
        nearest = nearest_name(factor.name, FACTORS)
        hint = f"did you mean {nearest!r}?" if nearest else f"valid: {', '.join(FACTORS)}"
        raise TaskError(f"{owner}: there is no factor {factor.name!r}; {hint}", place)
    kind, normal = FACTORS[factor.name], factor.distribution == "normal"
    if normal and (factor.mean is None or factor.std is None):
        raise TaskError(f"{owner}: normal draws need a mean and a std", place)
    if not normal and (factor.low is None or factor.high is None):
        raise TaskError(f"{owner}: {factor.distribution} draws need a low and a high", place)
    if not normal and (factor.mean is not None or factor.std is not None):
        raise TaskError(f"{owner}: mean and std are those of `distribution: normal`", place)
    if factor.std is not None and factor.std < 0:
        raise TaskError(f"{owner}: std must be at least 0, not {factor.std:g}", (*place, "std"))
    if not factor.relative and not kind.absolute:
        raise TaskError(f"{owner}: {factor.name} cannot be absolute", (*place, "relative"))
    low, high = factor.bounds
    if not (np.isfinite(low) and np.isfinite(high)):
        raise TaskError(f"{owner}: low and high must be numbers, not {low:g} and {high:g}", place)
    if low > high:
        reach = f" within {NORMAL_REACH:g} std of the mean" if normal else ""
        raise TaskError(f"{owner}: low is above high: {low:g} and {high:g}{reach}", place)
    what = f"{factor.name} is drawn from {low:g} to {high:g}"
    if factor.distribution == "log_uniform" and low <= 0:
        raise TaskError(f"{owner}: {what}: log_uniform needs a low above 0", (*place, "low"))
    if kind.least is not None and (low < kind.least or (low == kind.least and not kind.may_be_least)):
        least = f"at least {kind.least:g}" if kind.may_be_least else f"above {kind.least:g}"
        clipped = f" ({NORMAL_REACH:g} std below the mean): give a low" if normal else ""
        raise TaskError(f"{owner}: {what}{clipped}, and must be {least}", (*place, "low"))
    if factor.name == "gravity_tilt" and high > np.pi:
        raise TaskError(f"{owner}: {what}, and must be at most pi, which is upside down", (*place, "high"))


def _obstacle(model: mujoco.MjModel, factor: Factor, index: int) -> str | None:
    """Return why an object cannot vary so, as what follows its name; None where it can."""
    match factor.name:
        case "mass" | "inertia" | "center_of_mass":
            if model.body_mass[index] == 0:
                return "has no mass"
            if model.body_weldid[index] == 0:
                return "is fixed to the world, where its mass means nothing"
        case "friction":
            paired = index in model.pair_geom1 or index in model.pair_geom2
            if not (model.geom_contype[index] or model.geom_conaffinity[index] or paired):
                return "touches nothing (contype and conaffinity 0, and no pair), so that it has no friction"
            if factor.relative and not paired and model.geom_friction[index, 0] == 0:
                return "has no friction to multiply: say `relative: false`"
        case "damping" | "armature":
            dofs = _dofs(model, index)
            own = model.dof_damping if factor.name == "damping" else model.dof_armature
            poly = factor.name == "damping" and model.dof_dampingpoly[dofs].any()
            if factor.relative and not own[dofs].any() and not poly:
                return f"has no {factor.name} to multiply: say `relative: false`"
            if not factor.relative and int(model.jnt_type[index]) == _JOINT.mjJNT_FREE:
                return f"is a free joint, which has no {factor.name} of its own"
        case "gain":
            if int(model.actuator_gaintype[index]) not in (_GAIN.mjGAIN_FIXED, _GAIN.mjGAIN_AFFINE):
                return "is no motor and no servo of a fixed or affine gain; its strength may vary"
            if model.actuator_gainprm[index, 0] == 0:
                return "has a gain of 0"
        case "strength":
            has_one = model.actuator_forcelimited[index] or _limited_joint(model, index) is not None
            muscle = model.actuator_gaintype[index] == _GAIN.mjGAIN_MUSCLE
            if not (has_one or muscle or model.actuator_biastype[index] == _BIAS.mjBIAS_NONE):
                return "has no largest force: give it a forcerange, or vary its gain"
        case "size":
            if int(model.geom_type[index]) not in _SIZED:
                kind = mujoco.mjtGeom(int(model.geom_type[index])).name.removeprefix("mjGEOM_").lower()
                return f"is a {kind}: only spheres, capsules, ellipsoids, cylinders and boxes vary in size"
        case "joint_zero":
            if int(model.jnt_type[index]) not in _SINGLE:
                return "is no slide and no hinge"
            wraps = model.wrap_objid[model.wrap_type == mujoco.mjtWrap.mjWRAP_JOINT]
            if index in wraps:
                return "is part of a fixed tendon, whose length would follow its sensor"
    return None


def _dofs(model: mujoco.MjModel, joint: int) -> np.ndarray:
    first = int(model.jnt_dofadr[joint])
    size = {int(_JOINT.mjJNT_FREE): 6, int(_JOINT.mjJNT_BALL): 3}.get(int(model.jnt_type[joint]), 1)
    return np.arange(first, first + size)


def _own_number(model: mujoco.MjModel, factor: str, index: int) -> float:
    """Return what an object of the model has where a draw may take its place."""
    match factor:
        case "mass":
            return float(model.body_mass[index])
        case "friction":
            return float(model.geom_friction[index, 0])
        case "gain":
            return float(model.actuator_gainprm[index, 0])
    return float(getattr(model, f"dof_{factor}")[_dofs(model, index)[0]])


def _limited_joint(model: mujoco.MjModel, actuator: int) -> int | None:
    """Return the joint that an actuator moves where that limits the force of its actuators."""
    if int(model.actuator_trntype[actuator]) not in _JOINT_TRANSMISSIONS:
        return None
    joint = int(model.actuator_trnid[actuator, 0])
    return joint if model.jnt_actfrclimited[joint] else None


def _pushable_dofs(model: mujoco.MjModel, body: int) -> list[int]:
    """Return the velocities of a body that a push may change; none where it has no joint for that."""
    first, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
    joints = range(first, first + count) if count else range(0)
    if count and model.jnt_type[first] == _JOINT.mjJNT_FREE:
        start = int(model.jnt_dofadr[first])
        return [start, start + 1]
    return [int(model.jnt_dofadr[each]) for each in joints if model.jnt_type[each] == _JOINT.mjJNT_SLIDE]


# -- how factors are written ----------------------------------------------------------------------

Fields = Mapping[str, np.ndarray]
"""Fields of the models of some worlds, (count, …) each, to write to."""
Writer = Callable[[Fields, np.ndarray], None]
"""Writes what was drawn, (count, objects or 1), with numbers where an object has several."""


def _write_mass(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    bodies, scale = as_slice(ids), 1.0 if factor.relative else 1.0 / model.body_mass[ids]

    def write(fields: Fields, values: np.ndarray) -> None:
        ratio = values * scale
        fields["body_mass"][:, bodies] *= ratio
        fields["body_inertia"][:, bodies] *= ratio[:, :, None]

    return write


def _write_inertia(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    bodies = as_slice(ids)

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["body_inertia"][:, bodies] *= values[:, :, None]

    return write


def _write_center(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    bodies = as_slice(ids)

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["body_ipos"][:, bodies] += values

    return write


def _write_friction(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    geoms, alone = as_slice(ids), model.geom_friction[ids, 0] if factor.relative else 1.0
    pairs = [
        (pair, draw, model.pair_friction[pair, :2] if factor.relative else np.ones(2))
        for geom, draw in zip(ids, own, strict=True)
        for pair in np.flatnonzero((model.pair_geom1 == geom) | (model.pair_geom2 == geom))
    ]

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["geom_friction"][:, geoms, 0] = values * alone
        for pair, draw, friction in pairs:
            fields["pair_friction"][:, pair, :2] = values[:, draw, None] * friction

    return write


def _write_joint_field(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    name, dofs = f"dof_{factor.name}", [_dofs(model, joint) for joint in ids]
    chosen, draws = as_slice(np.concatenate(dofs)), np.repeat(own, [len(each) for each in dofs])
    alone = getattr(model, name)[chosen] if factor.relative else 1.0
    nonlinear = factor.name == "damping" and factor.relative and bool(model.dof_dampingpoly[chosen].any())

    def write(fields: Fields, values: np.ndarray) -> None:
        fields[name][:, chosen] = values[:, draws] * alone
        if nonlinear:
            fields["dof_dampingpoly"][:, chosen] *= values[:, draws, None]

    return write


def _write_gain(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    scale = np.ones(len(ids)) if factor.relative else 1.0 / model.actuator_gainprm[ids, 0]
    # The whole law of a servo's force: one that is stiffer still stops where it is told to.
    affine = model.actuator_biastype[ids] == _BIAS.mjBIAS_AFFINE
    biased, of_biased = ids[affine], own[affine]

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["actuator_gainprm"][:, ids, :3] *= (values * scale)[:, :, None]
        if len(biased):
            fields["actuator_biasprm"][:, biased, :3] *= (values[:, of_biased] * scale[affine])[:, :, None]

    return write


def _write_strength(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    """What limits an actuator's force, its own range and its joint's; the gain of a motor without a limit."""
    draws, limited = dict(zip(ids.tolist(), own.tolist(), strict=True)), model.actuator_forcelimited
    joints = {joint: draws[each] for each in draws if (joint := _limited_joint(model, each)) is not None}
    free = [each for each in draws if not limited[each] and _limited_joint(model, each) is None]
    muscles = [each for each in free if model.actuator_gaintype[each] == _GAIN.mjGAIN_MUSCLE]
    targets = [("actuator_forcerange", [each for each in draws if limited[each]], draws, slice(None))]
    targets += [("jnt_actfrcrange", list(joints), joints, slice(None))]
    targets += [("actuator_gainprm", [each for each in free if each not in muscles], draws, slice(3))]
    for peak in (2, 3):  # a muscle's peak force, and what gives it one where that is below 0
        given = [each for each in muscles if (model.actuator_gainprm[each, 2] < 0) == (peak == 3)]
        targets += [(name, given, draws, slice(peak, peak + 1)) for name in _MUSCLE_FIELDS]
    steps = [
        (name, np.array(chosen), np.array([by[each] for each in chosen]), numbers)
        for name, chosen, by, numbers in targets
        if chosen
    ]

    def write(fields: Fields, values: np.ndarray) -> None:
        for name, chosen, columns, numbers in steps:
            fields[name][:, chosen, numbers] *= values[:, columns, None]

    return write


def _write_gravity(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    size = float(np.linalg.norm(model.opt.gravity))
    down = model.opt.gravity / size
    across = np.eye(3)[0] if abs(down[0]) < 0.9 else np.eye(3)[1]
    first = across - (across @ down) * down
    first /= np.linalg.norm(first)
    sideways = np.stack([first, np.cross(first, down)])  # x and y where gravity points down

    def write(fields: Fields, values: np.ndarray) -> None:
        leaning = values[:, 0]
        tilt = np.sqrt((leaning * leaning).sum(1, keepdims=True))
        # sin(tilt) / tilt, which is 1 at 0
        aside = np.sinc(tilt / np.pi) * (leaning @ sideways)
        fields["opt.gravity"][:] = size * (np.cos(tilt) * down + aside)

    return write


def _write_size(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    geoms = as_slice(ids)

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["geom_size"][:, geoms] *= values[:, :, None]

    return write


def _write_zero(model: mujoco.MjModel, factor: Factor, ids: np.ndarray, own: np.ndarray) -> Writer:
    """Shift what joints read: MuJoCo puts a joint where ``qpos - qpos0`` says; sensors and servos read qpos.

    Limits and springs, which are where the joint is, go along.
    """
    columns, limited = as_slice(model.jnt_qposadr[ids]), model.jnt_limited[ids].astype(bool)
    joints, of_limited = ids[limited], own[limited]

    def write(fields: Fields, values: np.ndarray) -> None:
        fields["qpos0"][:, columns] += values
        fields["qpos_spring"][:, columns] += values
        if len(joints):
            fields["jnt_range"][:, joints] += values[:, of_limited, None]

    return write


_MUSCLE_FIELDS = ("actuator_gainprm", "actuator_biasprm")
_WRITE: Mapping[str, Callable[[mujoco.MjModel, Factor, np.ndarray, np.ndarray], Writer]] = {
    "mass": _write_mass,
    "inertia": _write_inertia,
    "center_of_mass": _write_center,
    "friction": _write_friction,
    "damping": _write_joint_field,
    "armature": _write_joint_field,
    "gain": _write_gain,
    "strength": _write_strength,
    "gravity_tilt": _write_gravity,
    "size": _write_size,
    "joint_zero": _write_zero,
}
"""What returns a factor's writer, of the model, the factor, its objects' ids and which draw each has."""


# -- held factors ---------------------------------------------------------------------------------


def held_factors(
    values: Mapping[str, float] | Sequence[Variation], usual: Sequence[Variation], owner: str
) -> tuple[Variation, ...]:
    """Return the factors that hold what is given.

    Args:
        values: a number by the name of its factor, ``push`` being the speed in m/s; or factors and pushes.
        usual: what varies in training: it says which objects a name is about, and when pushes come. A name
            that it does not have is about all objects, in the way that is usual for the factor.
        owner: how errors begin.

    Raises:
        TaskError: there is no such factor, or no push in `usual` to hold.
    """
    if not isinstance(values, Mapping):
        return tuple(values)
    found: list[Variation] = []
    for name, value in values.items():
        known = [each for each in usual if each.name == name]
        if name == "push" and not known:
            raise TaskError(f"{owner}: training has no push: give a Push in place of its speed.")
        for each in known or [Factor(name)]:
            held = each.held(value) if isinstance(each, Factor) else replace(each, speed=(value, value))
            found.append(held)
    return tuple(found)
