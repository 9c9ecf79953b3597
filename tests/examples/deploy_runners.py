"""The runners of examples/deploy: how tests build and call them, as their READMEs say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples/deploy"
RUNNER = DEPLOY / "python/run_policy.py"
FIGURES = re.compile(r"golden rows: (\d+), max error ([\d.e+-]+), tolerance ([\d.e+-]+)")


def started(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without what this one's environment says of Python."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    words = [str(argument) for argument in arguments]
    return subprocess.run(words, env=kept, capture_output=True, text=True, timeout=600, check=False)


def succeeded(*arguments: str | Path, **environment: str) -> str:
    done = started(*arguments, **environment)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def golden_figures(printed: str) -> tuple[int, float, float]:
    """Return rows, error and tolerance of what a runner printed, and check that it timed the policy."""
    found = FIGURES.search(printed)
    assert found, printed
    assert re.search(r"latency: p50 \d+\.\d us, p99 \d+\.\d us", printed), printed
    return int(found[1]), float(found[2]), float(found[3])


def required(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def openvino_cmake() -> Path:
    """Return the folder of OpenVINO's CMake files: of `make test-all`, or of this interpreter's packages."""
    spec = importlib.util.find_spec("openvino")
    places = [ROOT / "build/openvino/openvino", *map(Path, (spec and spec.submodule_search_locations) or ())]
    for place in places:
        if (place / "cmake/OpenVINOConfig.cmake").is_file():
            return place / "cmake"
    pytest.skip("no OpenVINO wheel: `make test-all` puts one into build/openvino")


def install_node_runner(folder: Path) -> Path:
    """Return a copy of the Node runner with its packages installed; skip where it cannot be."""
    required("node", "npm")
    folder = folder / "runner"
    shutil.copytree(DEPLOY / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    version = json.loads((folder / "package.json").read_text())["dependencies"]["onnxruntime-node"]
    if started("npm", "view", f"onnxruntime-node@{version}", "version").returncode:
        pytest.skip("npm reaches no registry")
    install = ("npm", "ci", "--prefix", folder, "--no-audit", "--no-fund")
    succeeded(*install, ONNXRUNTIME_NODE_INSTALL="skip")
    return folder


def build_cpp_runner(folder: Path) -> Path:
    """Return the C++ runner, built in a folder; skip where it cannot be."""
    required("cmake", "c++")
    openvino = openvino_cmake()
    strict = "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"
    succeeded("cmake", "-S", DEPLOY / "cpp", "-B", folder, f"-DOpenVINO_DIR={openvino}", strict)
    succeeded("cmake", "--build", folder)
    return folder / "run_policy"
