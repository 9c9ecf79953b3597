"""Teacher and student over the same episodes: what is retained, how surely, and where it is lost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.rendering import draw_arrows
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import DamagedFileError
from thousandfold.ground.files import json_sha256, write_json_atomic
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors, save_tensors
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.episodes import MAX_WORLDS, Episodes, EpisodeStream, Policy, retention

FAILURES_FILE, FAILURES_PICTURE = "failures.json", "failures.png"
_MARGIN = 1.1
_DRAWN_FAILURES = 200


@dataclass(frozen=True)
class EpisodeBudget:
    """How many pairs of episodes to run.

    Attributes:
        least, most: bounds of their number.
        half_width: of the 95 % intervals of both retentions that the number is chosen for.
    """

    least: int
    most: int
    half_width: float

    def needed(self, pairs: PairedEpisodes) -> int:
        """Return how many episodes the first ones ask for: n₀ · (h₀ / h)², whole rounds of 256.

        A sample of two stages (Stein 1945, Ann. Math. Stat. 16): the variance of the first batch alone fixes
        the number, once. Looking again and again until the interval is narrow would stop where it is narrow
        by chance. A tenth more than the formula says, for the variance is itself an estimate.
        """
        count, widest = len(pairs.student.success), pairs.half_width
        if widest is None or widest <= self.half_width:
            return count
        needed = _MARGIN * count * (widest / self.half_width) ** 2
        return min(MAX_WORLDS * math.ceil(needed / MAX_WORLDS), max(self.most, count))


@dataclass(frozen=True)
class PairedEpisodes:
    """The same starts and goals, once with the teacher and once with the student."""

    teacher: Episodes
    student: Episodes

    @cached_property
    def retained(self) -> dict[str, dict[str, Any]]:
        """Retention of success and of time at goal, with their paired bootstrap intervals."""
        teacher, student = self.teacher, self.student
        return {
            "retention": retention(teacher.success, student.success),
            "time_at_goal_retention": retention(teacher.time_at_goal, student.time_at_goal),
        }

    @property
    def half_width(self) -> float | None:
        """The longer arm of the wider interval of both retentions; None where both are undefined."""
        arms = [
            abs(bound - measured["retention"])
            for measured in self.retained.values()
            if measured["interval"] is not None
            for bound in measured["interval"]
        ]
        return max(arms) if arms else None

    @property
    def lost(self) -> np.ndarray:
        """(episodes,) bool, the teacher succeeds and the student does not."""
        return self.teacher.success & ~self.student.success

    def results(self) -> dict[str, Any]:
        """Return what both sides' episodes say, the retentions with their intervals, and who failed."""
        results = self.student.summary() | {
            "teacher_success": float(self.teacher.success.mean()),
            "teacher_time_at_goal": float(self.teacher.time_at_goal.mean()),
            "lost_episodes": int(self.lost.sum()),
            "gained_episodes": int((self.student.success & ~self.teacher.success).sum()),
        }
        for name, measured in self.retained.items():
            results |= {name: measured["retention"], f"{name}_interval": measured["interval"]}
        return results

    def failures(self) -> list[dict[str, Any]]:
        """Return the episodes in which one of both failed: start, goal, distances, and who it was."""
        sides = {"teacher": self.teacher, "student": self.student}
        failed = []
        for index in np.flatnonzero(~(self.teacher.success & self.student.success)).tolist():
            losers = [name for name, side in sides.items() if not side.success[index]]
            distances = {
                f"{name}_{kind}_distance": float(getattr(side, f"{kind}_distance")[index])
                for name, side in sides.items()
                for kind in ("final", "closest")
            }
            failed.append(
                {
                    "episode": index,
                    "failed": losers[0] if len(losers) == 1 else "both",
                    "start": self.student.start[index].tolist(),
                    "goal": self.student.goal[index].tolist(),
                    **distances,
                }
            )
        return failed


def run_pairs(
    teacher: EpisodeStream,
    student: EpisodeStream,
    budget: EpisodeBudget,
    say: Callable[[str], object] = lambda _: None,
) -> PairedEpisodes:
    """Run as many pairs of episodes as retention needs to be known well enough.

    Args:
        teacher, student: streams of the same task, seed and distribution.
        budget: bounds of their number and the width of the intervals that it is chosen for.
        say: is told, in a line, what is about to run: it may take minutes.

    Raises:
        ValueError: the streams are not of the same starts and goals.
    """
    say(f"Measuring retention: teacher and student run the same {budget.least:,} episodes.")
    first = _pairs(teacher, student, budget.least)
    needed = budget.needed(first)
    if needed == budget.least:
        return first
    say(f"Retention is known to ±{first.half_width:.3f} so far: {needed - budget.least:,} episodes more.")
    return _pairs(teacher, student, needed)


def _pairs(teacher: EpisodeStream, student: EpisodeStream, episodes: int) -> PairedEpisodes:
    pairs = PairedEpisodes(teacher.first(episodes), student.first(episodes))
    for name in ("start", "goal"):
        if not np.array_equal(getattr(pairs.teacher, name), getattr(pairs.student, name)):
            raise ValueError(f"the {name}s of the teacher's and the student's episodes differ")
    return pairs


def write_failures(
    folder: Path, task: CompiledTask, pairs: PairedEpisodes, facts: Sequence[str] = ()
) -> None:
    """Write who failed where, as JSON, and a picture of where the student alone did, at most 200 arrows.

    Args:
        folder: of the student's artifact.
        task: the task of the episodes.
        pairs: the episodes.
        facts: of the picture's heading.
    """
    failures = pairs.failures()
    write_json_atomic(folder / FAILURES_FILE, failures)
    lost = np.flatnonzero(pairs.lost)
    shown = lost[:_DRAWN_FAILURES]
    count = f"{len(lost):,} of {len(pairs.lost):,} episodes"
    if len(shown) < len(lost):
        count += f", {len(shown)} drawn"
    none = "None: the student reached every goal\nthat the teacher reached."
    if both := sum(failure["failed"] == "both" for failure in failures):
        none += f"\nBoth missed {both:,} of {len(pairs.lost):,}."
    starts, goals = pairs.student.start[shown], pairs.student.goal[shown]
    title = "Where the student alone fails"
    draw_arrows(folder / FAILURES_PICTURE, task, starts, goals, title, (*facts, count), none=none)


# -- Closed-loop episodes of a teacher, kept for whoever would run the same ones again -------------
# Students of one teacher are measured against the same episodes of it. A deep teacher takes longer over these
# than a student takes to learn, so a grid of students runs them once.


class TeacherEpisodes(EpisodeStream):
    """Episodes of a teacher, round by round from the context's cache where they were run before.

    A round that is read is not run; one whose file is damaged is run, and its file written, again. What comes
    after a round that was read is the same all the same: a reset draws the starts of all worlds anew, and
    nothing else draws from its generator.

    Args:
        teacher: whose episodes they are.
        context: names the cache; without one all rounds are run.
        task: the teacher's task.
        policy: the teacher's.
        seed: of starts and goals.
    """

    def __init__(
        self,
        teacher: Artifact,
        context: StageContext,
        task: CompiledTask,
        policy: Policy,
        *,
        seed: np.random.SeedSequence,
    ) -> None:
        super().__init__(task, policy, seed=seed)
        self._cache = context.episode_cache
        self._facts: dict[str, Any] = {
            "teacher": teacher.manifest.hash,
            "seed": [str(seed.entropy), *seed.spawn_key],
        }

    def _round(self, simulator: CpuSimulator, num_paths: int) -> Episodes:
        if self._cache is None:
            return super()._round(simulator, num_paths)
        facts = self._facts | {"worlds": simulator.num_worlds, "round": len(self._rounds)}
        path = self._cache / f"{json_sha256(facts)[:32]}.safetensors"
        if path.is_file():
            with contextlib.suppress(DamagedFileError):  # it is written anew
                return read_episodes(path)
        episodes = super()._round(simulator, num_paths)
        write_episodes(path, episodes)
        return episodes


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write the outcomes of episodes, without their paths, as one safetensors file, atomically."""
    columns = {field.name: getattr(episodes, field.name) for field in fields(episodes)}
    arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
    save_tensors(path, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, {})


def read_episodes(path: Path) -> Episodes:
    """Return the episodes of a file. Raises DamagedFileError where it is truncated or foreign."""
    tensors, _ = load_tensors(path)
    columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        return Episodes(**columns)
    except TypeError as error:
        raise DamagedFileError(f"{path} holds no episodes of this version.") from error
