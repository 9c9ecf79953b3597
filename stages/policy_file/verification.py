"""Is a policy file what it says? Its hashes, its description, its golden rows, its task, and its success."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.episodes import (
    LEAST_CHANCE,
    Episodes,
    chance_of_difference,
    run_episodes,
    wilson_interval,
)
from thousandfold.stages.policy_file.c_policy import CPolicy
from thousandfold.stages.policy_file.controls import require_same_controls
from thousandfold.stages.policy_file.golden import LARGEST_INT8_TOLERANCE, GoldenSet, Run, golden_error
from thousandfold.stages.policy_file.graph import require_known_graph
from thousandfold.stages.policy_file.metadata import (
    SHA256,
    Evaluation,
    InvalidMetadataError,
    RobustnessLevel,
    parse_metadata,
)
from thousandfold.stages.policy_file.onnx_bytes import (
    EXPORT_AGAIN,
    METADATA_KEY,
    POLICY_HASH_KEY,
    read_content,
    read_model,
)
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.signature import (
    SIGNATURE_KEY,
    check_signature,
    show_key,
    split_signature,
)
from thousandfold.stages.policy_file.source import PolicyPlace, find_task, require_same_task
from thousandfold.stages.robustness import NOMINAL, measured_levels

_EPISODE_STREAM = 57
_MOST_C_DIFFERENCE = 0.01  # of its success, where chance does not explain more
Z_99 = 2.5758293035489004


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was found.

    `passed` is None where it could not be looked at, or there is nothing to compare with.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass
class Verification:
    """What was found of a policy file.

    Attributes:
        place: the file.
        checks: in the order in which they were made.
        success: what the closed loop gave: ``episodes``, ``success``, ``success_interval``, ``difference``
            and ``difference_interval``; empty where it was not run.
    """

    place: PolicyPlace
    checks: list[Check] = field(default_factory=list)
    success: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if check.passed is False]

    def check(self, name: str, look: Callable[[], str]) -> bool:
        """Note whether `look` returns what it found, or raises UserError for what is wrong."""
        try:
            detail, passed = look(), True
        except UserError as error:
            detail, passed = str(error), False
        self.checks.append(Check(name, passed, detail))
        return passed

    def results(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "policy": self.place.name,
            "path": str(self.place.path),
            "passed": not self.failed,
            "checks": [vars(check) for check in self.checks],
            "closed_loop": self.success,
        }


def verify_policy(
    place: PolicyPlace,
    *,
    episodes: int,
    task: str | None = None,
    seed: int = 0,
    robustness: bool = False,
    c_policy: CPolicy | None = None,
    trusted: Collection[bytes] = (),
) -> Verification:
    """Check a policy file; go on after a check that fails, as far as that makes sense.

    The closed loop runs fresh episodes, which nothing was chosen by. It fails where the success is lower than
    the recorded one by more than chance explains: where all of the 99 % interval of their difference lies
    below 0. That interval is made of both Wilson intervals (Newcombe 1998, Stat. Med. 17, method 10). A
    policy that does what it did fails it with one seed in two hundred; over 256 episodes a loss of ten points
    from 0.95 fails it nine times in ten.

    Args:
        place: the file.
        episodes, seed: of the closed loop.
        task: name or file of the task; None: as of `find_task`.
        robustness: repeat the robustness card that the file carries, too, each level over as many episodes.
        c_policy: the file's C code, which must give the golden rows too, and act as well in the same
            episodes.
        trusted: public keys, one of which must have signed the file; empty: it need not be signed.

    Raises:
        UserError: the file cannot be read, is of another version, its graph computes what no policy does,
            or its task is not known here.
    """
    content, found = read_content(place.path), Verification(place)
    _check_signature(found, content, trusted)
    model = read_model(place.path, content=content)
    try:
        metadata = parse_metadata(model.metadata.get(METADATA_KEY), place.path)
    except InvalidMetadataError as error:
        found.checks.append(Check("description", False, str(error)))
        return found
    require_known_graph(model, place.path)
    compiled = find_task(metadata, place, task)
    found.checks.append(Check("description", True, f"complete, of format {metadata.format_version}"))
    found.check("graph hash", lambda: _same_hash(model.graph_sha256, metadata.graph_sha256))
    found.check("policy hash", lambda: _same_hash(model.policy_sha256, model.metadata.get(POLICY_HASH_KEY)))
    if (artifact := place.artifact) is not None:

        def files() -> str:
            artifact.verify()
            return f"{len(artifact.manifest.files)} files of {artifact.name}, as recorded"

        found.check("artifact", files)

    opened: list[OnnxPolicy] = []

    def inputs_and_outputs() -> str:
        opened.append(OnnxPolicy(place.path, check_hash=False, content=content))
        return ", ".join(f"{name} {size}" for name, size in metadata.sizes().items())

    def golden_rows(*runs: Run, rows: GoldenSet | None = None) -> str:
        rows = rows or opened[0].golden()
        error = max(golden_error(run, rows, metadata) for run in runs)
        said = f"{len(rows.observation)} rows, off by at most {error:.1e}, {rows.tolerance:.1e} allowed"
        if not error <= rows.tolerance:  # NaN is not
            raise DamagedFileError(said)
        return said

    def same_task() -> str:
        require_same_task(metadata, compiled, place.name)
        if rows_hold:
            require_same_controls(metadata, opened[0].golden(), compiled, place.name)
        return f"{compiled.name}, model {metadata.model_sha256[:12]}…, every {metadata.control_dt_s:g} s"

    rows_hold = False
    if found.check("inputs, outputs", inputs_and_outputs):
        runs = opened[0].run, _in_steps(opened[0])
        rows_hold = found.check("golden rows", lambda: golden_rows(*runs))
    else:
        found.checks.append(Check("golden rows", None, "the file cannot be opened"))
    c_code = c_policy
    if c_code is not None and opened:
        own = c_code.own_golden
        found.check("C: golden rows", lambda: golden_rows(c_code.run, rows=own))
        if own is not None:
            found.check("C: int8 weights", lambda: _near_the_file(c_code, opened[0]))
        found.check("C: self-test", lambda: _passed_self_test(c_code))
    if found.check("task", same_task) and opened:
        outcome = _check_closed_loop(found, opened[0], compiled, episodes, seed)
        if c_code is not None:
            found.check("C: closed loop", lambda: _same_outcome(c_code, outcome, compiled, seed))
        if robustness:
            found.check("robustness", lambda: _same_robustness(opened[0], compiled, seed))
    else:
        found.checks.append(Check("closed loop", None, "a check before it failed"))
    return found


def _check_signature(found: Verification, content: bytes, trusted: Collection[bytes]) -> None:
    """Note who signed a file, which is a failure where nobody did and a trusted key is required."""
    signature = split_signature(content)[1]
    if signature is not None and not trusted and importlib.util.find_spec("cryptography") is None:
        said = f"signed with {show_key(signature.public_key)}, unchecked without the package cryptography"
        found.checks.append(Check("signature", None, said))
    elif signature is None and not trusted and SIGNATURE_KEY.encode() not in content:
        found.checks.append(Check("signature", None, "not signed"))
    else:
        found.check("signature", lambda: check_signature(content, trusted, found.place.path.name))


def _same_hash(actual: str, recorded: str | None) -> str:
    """Return what is said of a hash that is as recorded; raise DamagedFileError where it is another."""
    if recorded is None:
        raise DamagedFileError(f"{actual[:12]}…, and none is recorded: {EXPORT_AGAIN}")
    if re.fullmatch(SHA256, recorded) is None:
        raise DamagedFileError(f"{actual[:12]}…, and what is recorded is no hash: {EXPORT_AGAIN}")
    if actual != recorded:
        raise DamagedFileError(f"{actual[:12]}…, not {recorded[:12]}…: changed since it was exported")
    return f"{recorded[:12]}…, as recorded"


def _in_steps(policy: OnnxPolicy) -> Run:
    """Return a policy as a function of rows that it is given one by one."""

    def run(observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action, control = zip(
            *(policy.step(*pair) for pair in zip(observation, goal, strict=True)), strict=True
        )
        return np.stack(action), np.stack(control)

    return run


def _passed_self_test(c_policy: CPolicy) -> str:
    """Return what is said of C code that passes its own test; raise DamagedFileError where it does not."""
    if row := c_policy.self_test():
        raise DamagedFileError(f"golden row {row} gives another result")
    return "every golden row, as compiled in"


def _near_the_file(c_policy: CPolicy, policy: OnnxPolicy) -> str:
    """Return how far C code of int8 weights is off its file; raise DamagedFileError where it is too far."""
    error = golden_error(c_policy.run, policy.golden(), policy.metadata)
    said = f"off the file's golden rows by at most {error:.2g}, {LARGEST_INT8_TOLERANCE:g} allowed"
    if not error <= LARGEST_INT8_TOLERANCE:
        raise DamagedFileError(said)
    return said


def _same_outcome(c_policy: CPolicy, reference: Episodes, task: CompiledTask, seed: int) -> str:
    """Return what is said of C code that acts as well as the file in the same episodes.

    Raises:
        DamagedFileError: its success is another, and chance does not explain it, as at an export.
    """
    count = len(reference.success)
    outcome = run_episodes(task, c_policy, episodes=count, seed=seed_sequence(seed, _EPISODE_STREAM))
    ours, theirs = float(outcome.success.mean()), float(reference.success.mean())
    chance = chance_of_difference(outcome.success, reference.success)
    said = f"success {ours:.3f}, ONNX Runtime {theirs:.3f}, over the same {count} episodes"
    if abs(ours - theirs) > _MOST_C_DIFFERENCE and chance < LEAST_CHANCE:
        raise DamagedFileError(f"{said} (by chance in {chance:.1g} of all cases)")
    return said


def _check_closed_loop(
    found: Verification, policy: OnnxPolicy, task: CompiledTask, episodes: int, seed: int
) -> Episodes:
    """Run fresh episodes, compare their success with the recorded one, and return their outcome."""
    outcome = run_episodes(task, policy, episodes=episodes, seed=seed_sequence(seed, _EPISODE_STREAM))
    successes = int(outcome.success.sum())
    interval = wilson_interval(successes, episodes)
    found.success = {
        "episodes": episodes,
        "success": successes / episodes,
        "success_interval": list(interval),
        "seed": seed,
    }
    said = (
        f"success {successes / episodes:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] over {episodes} episodes"
    )
    recorded = policy.metadata.evaluation
    if recorded is None:
        found.checks.append(Check("closed loop", None, f"{said}; none is recorded to compare with"))
        return outcome
    low, high = success_change(recorded, successes, episodes)
    found.success |= {
        "difference": successes / episodes - recorded.success,
        "difference_interval": [low, high],
    }
    said += (
        f"; recorded {recorded.success:.3f} over {recorded.episodes}, "
        f"difference {found.success['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    found.checks.append(Check("closed loop", high >= 0, said))
    return outcome


def _same_robustness(policy: OnnxPolicy, task: CompiledTask, seed: int) -> str:
    """Return what is said of a robustness card that holds; raise UserError where a level is worse.

    A card is worse where chance makes one as bad in fewer than one in two hundred: each level is held against
    an interval that allows for their number (Bonferroni).
    """
    recorded = policy.metadata.robustness
    if not recorded:
        raise UserError("the file carries no robustness card: export it with --set robustness_episodes=256")
    z = NormalDist().inv_cdf(1 - (1 - NormalDist().cdf(Z_99)) / len(recorded))
    worse, lowest = [], 0.0
    planned = [(level.factor, level.value, level.trained) for level in recorded if level.factor != NOMINAL]
    levels = list(measured_levels(policy, task, planned, recorded[0].episodes, seed, _EPISODE_STREAM))
    if [(level.factor, level.value) for level in levels] != [(each.factor, each.value) for each in recorded]:
        raise UserError("the task here cannot be varied as the recorded card has it")
    for level, before in zip(levels, recorded, strict=True):
        change = level.success - before.success
        lowest = min(lowest, change)
        if success_change(before, level.successes, level.episodes, z)[1] < 0:
            worse.append(f"{level.factor} {level.value:g}: {before.success:.3f}, now {level.success:.3f}")
    if worse:
        raise UserError(f"{len(worse)} of {len(levels)} levels are worse: {'; '.join(worse)}")
    return (
        f"{len(levels)} levels over {recorded[0].episodes} episodes, none worse; largest loss {-lowest:.3f}"
    )


def success_change(
    recorded: Evaluation | RobustnessLevel, successes: int, episodes: int, z: float = Z_99
) -> tuple[float, float]:
    """Return the interval of new success minus recorded, of 99 % (Newcombe 1998, Stat. Med. 17, method 10).

    `z` is the quantile of the normal distribution, for another confidence.
    """
    before, after = recorded.success, successes / episodes
    before_low, before_high = wilson_interval(round(before * recorded.episodes), recorded.episodes, z)
    after_low, after_high = wilson_interval(successes, episodes, z)
    change = after - before
    low = change - math.hypot(after - after_low, before_high - before)
    high = change + math.hypot(after_high - after, before - before_low)
    return low, high
