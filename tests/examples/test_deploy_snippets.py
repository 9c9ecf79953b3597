"""The C++ that the guide and the format's page show for ONNX Runtime: compiled, and run on golden rows."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.pages import blocks
from tests.stages.policy_file.handmade_policy import golden, metadata, write_policy

ROOT = Path(__file__).resolve().parents[2]
# Where headers of ONNX Runtime may lie: by hand, or as the system has them.
INCLUDES = (
    ROOT / "build/onnxruntime/include",
    *map(Path, ("/usr/local/include/onnxruntime", "/usr/include/onnxruntime", "/usr/include")),
)
INCLUDED = "#include <array>\n#include <cstdio>\n#include <string>\n#include <vector>\n"
SIZES = "constexpr int observation_dim = 4, goal_dim = 2, action_dim = 2, control_dim = 2;\n"
PRINT = 'for (const auto& row : {action, control}) std::printf("%.9g %.9g\\n", row[0], row[1]);\n'
IN_THE_LOOP = "// In the loop: "


def snippet(page: str) -> str:
    (found,) = blocks(f"docs/{page}", "cpp")
    assert '"policy.onnx"' in found.text
    return found.text


def program(code: str, *, before: str = "", behind: str = "") -> str:
    """Return a program of a snippet: what it includes on top, the rest in `main`."""
    included = "".join(line for line in code.splitlines(keepends=True) if line.startswith("#include"))
    body = code.replace(included, "")
    return f"{INCLUDED}{included}int main() {{\n{before}{body}{behind}}}\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library of ONNX Runtime's wheel under the name that programs ask for."""
    spec = importlib.util.find_spec("onnxruntime")
    places = map(Path, (spec and spec.submodule_search_locations) or ())
    libraries = [found for place in places for found in place.glob("capi/libonnxruntime.so.*")]
    if not libraries:
        pytest.skip("this wheel of ONNX Runtime has no library of its own")
    folder = tmp_path_factory.mktemp("library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(libraries[0])
    return folder


@pytest.fixture
def headers() -> Path:
    for place in INCLUDES:
        if (place / "onnxruntime_cxx_api.h").is_file():
            return place
    pytest.skip(f"no headers of ONNX Runtime: unpack those of a release archive into {INCLUDES[0]}")


def printed(code: str, folder: Path, headers: Path, library: Path) -> list[str]:
    """Compile a program, run it in a folder, and return the lines that it prints."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no c++ here")
    (folder / "program.cpp").write_text(code)
    linked = [f"-L{library}", "-lonnxruntime", f"-Wl,-rpath,{library}"]
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(headers)]
    words = [compiler, *strict, "program.cpp", "-o", "program", *linked]
    for command in (words, [str(folder / "program")]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_guides_snippet_gives_the_golden_outputs(tmp_path: Path, headers: Path, library: Path) -> None:
    write_policy(tmp_path / "policy.onnx")
    rows, code = golden(), snippet("deployment.md")
    given = "".join(
        f"{name} = {{{', '.join(f'{number!r}f' for number in rows[name][0])}}};\n"
        for name in ("observation", "goal")
    )
    assert code.count(IN_THE_LOOP) == 1
    code = program(code.replace(IN_THE_LOOP, given + IN_THE_LOOP), before=SIZES, behind=PRINT)
    action, control = (
        [float(word) for word in line.split()] for line in printed(code, tmp_path, headers, library)
    )
    np.testing.assert_allclose(action, rows["action"][0], atol=1e-5)
    np.testing.assert_allclose(control, rows["control"][0], atol=1e-5 * 5)


@pytest.mark.slow
def test_the_pages_snippet_reads_the_metadata(tmp_path: Path, headers: Path, library: Path) -> None:
    write_policy(tmp_path / "policy.onnx")
    code = program(snippet("policy-format.md"), behind='std::printf("%s", metadata.c_str());\n')
    (line,) = printed(code, tmp_path, headers, library)
    assert line.startswith('{"format_version": 3, ') and line.count(metadata()["model_sha256"]) == 1
