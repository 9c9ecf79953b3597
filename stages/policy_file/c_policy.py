"""A policy's C code, compiled on this machine and called through ctypes: to be checked, and to be timed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thousandfold.ground.errors import NonFiniteError, UserError
from thousandfold.stages.policy_file.c_code import SOURCE, c_files
from thousandfold.stages.policy_file.golden import GoldenArrays, GoldenSet, parse_golden
from thousandfold.stages.policy_file.metadata import PolicyMetadata, parse_metadata
from thousandfold.stages.policy_file.onnx_bytes import GOLDEN_KEY, METADATA_KEY, ModelBytes
from thousandfold.stages.policy_file.onnx_policy import PolicyOutputs

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=c99", "-O3", "-shared", "-fPIC")
THIS_PROCESSOR = ("-march=native", "-ffp-contract=fast")
"""flags for code that runs on this machine alone, with its widest vectors and fused products"""
_COMPILE_S = 600.0


def c_compiler() -> str | None:
    """Return the path of a C compiler; None where there is none."""
    return next((found for found in map(shutil.which, _COMPILERS) if found), None)


class NotCompiledError(UserError):
    """There is no C compiler, or it does not compile a policy's code."""


class CPolicy:
    """C code of a policy, compiled to act. Not for use from several threads at once.

    Args:
        files: text by name, as of `c_code.c_files`.
        folder: takes them and the library made of them; it may go once this is there.
        metadata: of the policy file.
        flags: of the compiler, beside those for any machine.
        own_golden: rows that the code must give in place of those of the file; None: those of the file.

    Raises:
        NotCompiledError: there is no C compiler, or it does not compile them.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        folder: Path,
        metadata: PolicyMetadata,
        flags: Sequence[str] = (),
        own_golden: GoldenSet | None = None,
    ) -> None:
        self.own_golden = own_golden
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        library = _compiled(folder, flags)
        self._run, self._self_test = library.policy_run, library.policy_self_test
        self._run.argtypes = [ctypes.c_void_p] * 4
        rows = [np.zeros(size, np.float32) for size in metadata.sizes().values()]
        self._observation, self._goal, self._action, self._control = rows
        self._bound = [ctypes.c_void_p(row.ctypes.data) for row in rows]

    def self_test(self) -> int:
        """Return 0 where the code gives its golden rows, or the number of the first that it does not give."""
        return self._self_test()

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return actions (n, action_dim) for observations (n, observation_dim) and goals (n, goal_dim)."""
        return self.run(observation, goal).action

    def run(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for rows, (n, observation_dim) and (n, goal_dim).

        Raises:
            NonFiniteError: a number is NaN or infinite.
        """
        outputs = [self.step(*pair) for pair in zip(observation, goal, strict=True)]
        action, control = zip(*outputs, strict=True)
        return PolicyOutputs(np.stack(action), np.stack(control))

    def step(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for one state, (observation_dim,) and (goal_dim,).

        Raises:
            NonFiniteError: a number is NaN or infinite.
        """
        np.copyto(self._observation, observation, "same_kind")
        np.copyto(self._goal, goal, "same_kind")
        if self._run(*self._bound):
            raise NonFiniteError("an input is NaN or infinite: stop the robot, or repeat the last control.")
        return PolicyOutputs(self._action.copy(), self._control.copy())

    def run_bound(self) -> None:
        """Compute once more what the last step was given: the C function alone, to be timed."""
        self._run(*self._bound)


def int8_code(model: ModelBytes, path: Path, folder: Path) -> tuple[dict[str, str], CPolicy]:
    """Return the files of a policy with int8 weights, and what they compile to.

    Their golden rows have the inputs of the policy file's and the outputs that the code gives here: they show
    on another processor that it computes the same, and not how near that is to the file.

    Args:
        model, path: as of `c_code.c_files`.
        folder: as of `CPolicy`.

    Raises:
        UserError: as of `c_code.c_files`.
        NotCompiledError: as of `CPolicy`.
    """
    metadata = parse_metadata(model.metadata.get(METADATA_KEY), path)
    golden = parse_golden(model.metadata.get(GOLDEN_KEY), metadata, path)
    first = CPolicy(c_files(model, path, "int8"), folder, metadata)
    rows = golden.arrays()
    outputs = first.run(rows.observation, rows.goal)
    own = GoldenSet.of(GoldenArrays(rows.observation, rows.goal, *outputs), golden.tolerance)
    files = c_files(model, path, "int8", own)
    (again := folder / "again").mkdir()  # the first library is open
    return files, CPolicy(files, again, metadata, own_golden=own)


def _compiled(folder: Path, flags: Sequence[str]) -> ctypes.CDLL:
    """Return the library that the files in a folder make; raise NotCompiledError where they make none."""
    compiler, library = c_compiler(), folder / "policy.so"
    if compiler is None:
        raise NotCompiledError(f"There is no C compiler here ({', '.join(_COMPILERS)})")
    command = [compiler, *_FLAGS, *flags, "-o", str(library), str(folder / SOURCE), "-lm"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_COMPILE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotCompiledError(
            f"{compiler} took more than {_COMPILE_S:g} s for the policy's C code"
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        said = lines[0][:200] if lines else f"exit code {done.returncode}"
        raise NotCompiledError(f"{compiler} does not compile the policy's C code ({said})")
    return ctypes.CDLL(str(library))
