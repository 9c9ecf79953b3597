"""Goal-reaching tasks as Gymnasium environments: thin adapters over the simulator, for strangers' code.

Both follow the conventions of goal-conditioned environments: observations are dictionaries with
``observation``, ``achieved_goal`` and ``desired_goal``; the reward is −1 until success and 0 at it; success
does not end the episode; `compute_reward`, `compute_terminated` and `compute_truncated` take batches, so that
a replay buffer can relabel goals. What they return is the caller's to keep: a copy of the simulator's arrays.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.scene_rendering import SceneRenderer, world_shape
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import StepResult
from thousandfold.envs.task import GoalTask

Observation = Mapping[str, np.ndarray]
Observer = Literal["teacher", "student"]
"""Who sees the observation: a student may have senses of its own (`student_observation` on a task's page)."""
_FRAME_PIXELS = 480


class _GoalContract:
    """What the single and the vector environment share: reward and ends as functions of goals and info."""

    task: CompiledTask
    _simulator: CpuSimulator
    _started: bool
    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """What Gymnasium made the environment from, with the number of steps after which it truncates."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        # Not registered with the number: `make` would wrap a clock of its own around the environment, which
        # would cut longer episodes that are asked for with `episode_steps`.
        self._spec = copy.copy(spec)
        if self._spec is not None:
            self._spec.max_episode_steps = self.task.spec.episode_steps

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """Return 0 where the achieved goal is a success for the desired one, −1 elsewhere.

        Goals are (..., goal_dim), rewards (...,) float64; a float for a single pair. `info` is not needed.
        """
        return _reward(self.task.is_success(_as_goal(achieved_goal), _as_goal(desired_goal)))

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """Return whether the episode terminated, (...,) bool: as `info` says, for no goal ends one."""
        return self._from_info("ended_early", achieved_goal, info)

    def compute_truncated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """Return whether the episode was truncated, (...,) bool: out of time or unstable, as `info` says."""
        late, unstable = (self._from_info(key, achieved_goal, info) for key in ("out_of_time", "unstable"))
        return late | unstable

    @staticmethod
    def _from_info(name: str, achieved_goal: np.ndarray, info: Any) -> Any:
        """Return `name` of an info, or of a list of infos, in the shape of a reward."""
        single = isinstance(info, Mapping)
        flags = info.get(name, False) if single else [each.get(name, False) for each in info]
        result = np.broadcast_to(np.asarray(flags, bool), np.shape(achieved_goal)[:-1]).copy()
        return result if result.ndim else bool(result)

    def _seed(self, seed: int | None, generator: np.random.Generator, drawn: int | None) -> None:
        """Let starts and goals come from a generator, and noise from the seed that Gymnasium drew for it."""
        self._simulator.rng = generator
        if seed is not None or not self._started:
            self._simulator.seed_senses(max(drawn or 0, 0))  # below 0 Gymnasium does not know it

    def _copy_observation(self) -> Observation:
        names = ("observation", "achieved_goal", "desired_goal")
        return {name: getattr(self._simulator, name).copy() for name in names}

    def _info(self, result: StepResult | None = None) -> dict[str, np.ndarray]:
        """Return the info of a step, or of episodes that start; arrays (num_worlds,) of bool."""
        if result is None:
            reached = self.task.is_success(self._simulator.achieved_goal, self._simulator.desired_goal)
            result = StepResult(reached, *(np.zeros(self._simulator.num_worlds, bool) for _ in range(3)))
        return {
            "is_success": result.success,
            "unstable": result.unstable,
            "ended_early": result.terminated,
            "out_of_time": result.truncated,
        }


class GoalVectorEnv(_GoalContract, VectorEnv[Observation, np.ndarray, np.ndarray]):
    """Many copies of a task, stepped together.

    A world that ended, or whose physics diverged (truncated, with ``unstable`` in its final info), is reset
    within the same step: the observation returned starts its next episode, and ``info["final_obs"]`` and
    ``info["final_info"]`` hold how the last one ended.

    Args:
        num_envs: how many worlds to run.
        task: a built-in task's name, the YAML file of your own, or a compiled task.
        distribution: episode distribution that starts and goals are drawn from, such as ``evaluation``.
        episode_steps: control steps until an episode is truncated; None: the task's.
        evaluation_distribution: the episode distribution that takes the place of ``evaluation``; None: none.
        clock_s: period of a clock in the observation, as of `GoalTask.changed`; None: none.
        max_episode_steps: Gymnasium's name for `episode_steps`, which it replaces.
        num_threads: threads to step on; 0 takes as many as this process may use.
        observer: whose senses ``observation`` is of, ``teacher`` or ``student``.

    Raises:
        TaskError: no such task or distribution, or no such number of steps.
        ValueError: fewer than one world, or another observer.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str | os.PathLike[str] | CompiledTask,
        distribution: str = "training",
        episode_steps: int | None = None,
        evaluation_distribution: str | None = None,
        clock_s: float | None = None,
        max_episode_steps: int | None = None,
        num_threads: int = 0,
        observer: Observer = "teacher",
    ) -> None:
        steps = episode_steps if max_episode_steps in (None, -1) else max_episode_steps
        self.task = _compiled(task, steps, evaluation_distribution, clock_s, observer)
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs = num_envs
        self._simulator = CpuSimulator(
            self.task, num_envs, distribution=distribution, num_threads=num_threads
        )
        self._started = False
        self.single_observation_space, self.single_action_space = goal_spaces(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a fresh episode in every world.

        Args:
            seed: seeds starts and goals, from here on; None goes on with the generator as it is.
            options: ``goal``, (goal_dim,) or (num_envs, goal_dim), commands goals for these episodes instead
                of drawing them; ``reset_mask``, (num_envs,) bool, resets these worlds alone.

        Raises:
            ValueError: a goal or mask of the wrong shape.
        """
        super().reset(seed=seed)
        options = _checked(options, ("goal", "reset_mask"))
        mask = options.get("reset_mask")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (self.num_envs,) or mask.dtype != bool:
                given = f"{mask.dtype} {mask.shape}"
                raise ValueError(f"options['reset_mask'] must be {self.num_envs} bools, not {given}")
        self._seed(seed, self.np_random, self.np_random_seed)
        self._simulator.reset(mask)
        self._started = self._started or mask is None
        if options.get("goal") is not None:
            self._simulator.set_goal(_goal(options["goal"], self.task, self.num_envs), mask)
        return self._copy_observation(), _with_masks(self._info())

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every world by one control step, and reset the worlds that ended.

        Args:
            actions: (num_envs, action_dim), clipped to [−1, 1].

        Returns:
            observations, rewards (float64), terminations, truncations, info; the first dimension is num_envs.

        Raises:
            ResetNeeded: `reset` was never called.
            ValueError: actions of the wrong shape.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("Call reset before the first step.")
        result = self._simulator.step(_action(actions, (self.num_envs, self.task.action_dim)))
        info = self._info(result)
        truncated = result.truncated | result.unstable
        done = result.terminated | truncated
        infos = _with_masks(info)
        if done.any():
            infos = self._autoreset(done, info)
        return self._copy_observation(), _reward(result.success), result.terminated, truncated, infos

    def _autoreset(self, done: np.ndarray, info: dict[str, np.ndarray]) -> dict[str, Any]:
        """Reset the worlds that ended; return the infos with the ends filed as Gymnasium's own vectors do."""
        final = self._copy_observation()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for world in np.flatnonzero(done):
            final_obs[world] = {name: rows[world].copy() for name, rows in final.items()}
        final_info = {name: flags & done for name, flags in info.items()}
        self._simulator.reset(done)
        fresh = self._info()
        return {
            **_with_masks({name: np.where(done, fresh[name], info[name]) for name in info}),
            "final_obs": final_obs,
            "_final_obs": done.copy(),
            "final_info": {**final_info, **{f"_{name}": done.copy() for name in final_info}},
            "_final_info": done.copy(),
        }


class GoalEnv(_GoalContract, gymnasium.Env[Observation, np.ndarray]):
    """One world of a task.

    The episode is truncated after its number of steps, or when the physics diverged (``info["unstable"]``).
    Where Gymnasium's `TimeLimit` is around it, as after ``gymnasium.make(…, max_episode_steps=…)``, that one
    counts the steps, and `info` follows it.

    Args:
        task, distribution, episode_steps, evaluation_distribution, clock_s, observer: as of `GoalVectorEnv`.
        render_mode: ``rgb_array`` or None.

    Raises:
        TaskError: no such task or distribution, or no such number of steps.
        ValueError: another render mode or observer.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012, as Gymnasium declares it

    def __init__(
        self,
        *,
        task: str | os.PathLike[str] | CompiledTask,
        distribution: str = "training",
        episode_steps: int | None = None,
        evaluation_distribution: str | None = None,
        clock_s: float | None = None,
        render_mode: str | None = None,
        observer: Observer = "teacher",
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r}; valid: None, 'rgb_array'")
        self.task = _compiled(task, episode_steps, evaluation_distribution, clock_s, observer)
        self._last_step = self.task.spec.episode_steps
        self.metadata = {**self.metadata, "render_fps": round(1 / self.task.spec.control_dt_s)}
        self.render_mode = render_mode
        self._simulator = CpuSimulator(self.task, 1, distribution=distribution, num_threads=1)
        self._started = False
        self._renderer: SceneRenderer | None = None
        self.observation_space, self.action_space = goal_spaces(self.task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a fresh episode.

        Args:
            seed: seeds starts and goals, from here on; None goes on with the generator as it is.
            options: ``goal``, (goal_dim,), commands a goal for this episode instead of drawing one.

        Raises:
            ValueError: a goal of the wrong shape.
        """
        super().reset(seed=seed)
        options = _checked(options, ("goal",))
        self._seed(seed, self.np_random, self.np_random_seed)
        self._simulator.reset()
        self._started = True
        self._last_step = _outer_limit(self) or self.task.spec.episode_steps
        if options.get("goal") is not None:
            self._simulator.set_goal(_goal(options["goal"], self.task, 1))
        return self._first_observation(), _first(self._info())

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance by one control step.

        Args:
            action: (action_dim,), clipped to [−1, 1].

        Raises:
            ResetNeeded: `reset` was never called.
            ValueError: an action of the wrong shape.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("Call reset before the first step.")
        result = self._simulator.step(_action(action, (self.task.action_dim,))[None])
        info = _first(self._info(result))
        info["out_of_time"] = bool(self._simulator.episode_step[0] >= self._last_step)
        truncated = info["out_of_time"] or info["unstable"]
        return self._first_observation(), _reward(result.success[0]), info["ended_early"], truncated, info

    def render(self) -> np.ndarray | None:
        """Return a picture of the world with the goal, (480, 480, 3) uint8; None without a render mode.

        Raises:
            NoOpenGLError: there is no OpenGL to draw with.
        """
        if self.render_mode is None:
            return None
        simulator = self._simulator
        renderer = self._renderer = self._renderer or SceneRenderer(
            self.task, _FRAME_PIXELS, _FRAME_PIXELS, distribution=simulator.distribution
        )
        goal = simulator.desired_goal[0]
        reached = bool(self.task.is_success(simulator.achieved_goal[0], goal))
        shape = world_shape(simulator.world_model(0))
        return renderer.draw(simulator.world_data(0).qpos, goal, reached=reached, shape=shape)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy make another of, which goes on as this one would."""
        return {**self.__dict__, "_renderer": None}

    def _first_observation(self) -> Observation:
        return {name: rows[0] for name, rows in self._copy_observation().items()}


def _compiled(
    task: str | os.PathLike[str] | CompiledTask,
    episode_steps: int | None,
    evaluation: str | None,
    clock_s: float | None,
    observer: Observer,
) -> CompiledTask:
    """Return the compiled task of a name, of a file or as it is, as it is seen, with its episodes changed."""
    if observer not in get_args(Observer):
        raise ValueError(f"observer {observer!r}; valid: {', '.join(get_args(Observer))}")
    compiled = task if isinstance(task, CompiledTask) else compile_task(os.fspath(task))
    compiled = compiled.changed(episode_steps=episode_steps, evaluation=evaluation, clock_s=clock_s)
    return compiled.student_view if observer == "student" else compiled


def environment_arguments(task: GoalTask) -> dict[str, Any]:
    """Return the arguments that give an environment the task's own episodes, beside the task's reference."""
    names = {"episode_steps": "episode_steps", "evaluation": "evaluation_distribution", "clock_s": "clock_s"}
    return {names[name]: value for name, value in task.changes.items()}


def _outer_limit(env: gymnasium.Env) -> int | None:
    """Return the steps that `TimeLimit` leaves an environment that is being reset through it; None without.

    Gymnasium does not tell an environment what it is wrapped in, so this looks at who is calling.
    """
    limits, frame = [], sys._getframe(1)
    while frame is not None:
        # The locals of other frames are left alone: a look at them would keep what a caller lets go.
        if frame.f_code is TimeLimit.reset.__code__ and frame.f_locals["self"].unwrapped is env:
            limits.append(frame.f_locals["self"]._max_episode_steps)
        frame = frame.f_back
    return min(limits, default=None)


def goal_spaces(task: CompiledTask) -> tuple[spaces.Space[Any], spaces.Box]:
    """Return the dictionary space of observations and the box of actions of one world."""
    sizes = {
        "observation": task.observation_dim,
        "achieved_goal": task.goal_dim,
        "desired_goal": task.goal_dim,
    }
    unbounded: dict[str, spaces.Space[Any]]
    unbounded = {name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()}
    return spaces.Dict(unbounded), spaces.Box(-1.0, 1.0, (task.action_dim,), np.float32)


def _reward(success: Any) -> Any:
    """Return 0 at success and −1 elsewhere, float64; a float for a single flag."""
    reward = np.asarray(success, np.float64) - 1.0
    return reward if reward.ndim else float(reward)


def _as_goal(goal: Any) -> np.ndarray:
    """Return a goal at the simulator's precision, so that success is judged as in a step."""
    return np.asarray(goal, np.float32)


def _action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    action = np.asarray(action, np.float32)
    if action.shape != shape:
        raise ValueError(f"an action of shape {action.shape}, not {shape}")
    return action


def _goal(goal: Any, task: CompiledTask, num_worlds: int) -> np.ndarray:
    goal = _as_goal(goal)
    if goal.shape not in ((task.goal_dim,), (num_worlds, task.goal_dim)) or not np.isfinite(goal).all():
        raise ValueError(
            f"options['goal'] must be {task.goal_dim} finite numbers for each environment, not "
            f"{goal.tolist()}"
        )
    return goal


def _checked(options: dict[str, Any] | None, valid: tuple[str, ...]) -> dict[str, Any]:
    """Return the options, warning of those that nothing reads: wrappers may pass options of their own."""
    unknown = [name for name in options or {} if name not in valid]
    if unknown:
        gymnasium.logger.warn(f"reset ignores the options {unknown}; it reads {list(valid)}")
    return options or {}


def _with_masks(info: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a vector environment's info: each entry with ``_name``, which worlds have it."""
    return {**info, **{f"_{name}": np.ones(len(flags), bool) for name, flags in info.items()}}


def _first(info: dict[str, np.ndarray]) -> dict[str, bool]:
    return {name: bool(flags[0]) for name, flags in info.items()}
