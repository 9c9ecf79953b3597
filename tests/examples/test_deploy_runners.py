"""The runners of examples/deploy: built and run as their READMEs say, on golden rows and on damaged files."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.end_to_end.command_line import pipeline, result_of
from tests.examples.deploy_runners import (
    DEPLOY,
    RUNNER,
    golden_figures,
    openvino_cmake,
    required,
    started,
    succeeded,
)
from tests.stages.policy_file.handmade_policy import (
    expected_action,
    expected_control,
    golden,
    metadata,
    write_policy,
)
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.signature import signed

UNTIMED = {
    "still": "0",
    "backwards": "-0.1",
    "nan": "NaN",
    "text": '"0.1"',
    "endless": "1e999",
    "null": "null",
}
"""periods that no loop can keep, as they stand in a file"""


def damaged_files(folder: Path) -> dict[str, Path]:
    """Return policies with wrong golden rows, of another format, without metadata, and cut off."""
    wrong = golden()
    wrong["action"][3][1] += 1e-3
    files = {name: folder / f"{name}.onnx" for name in ("wrong", "old", "foreign", "bare", "cut")}
    for name in ("wrong", "cut"):
        write_policy(files[name])
    model = read_model(files["wrong"])
    texts = dict(model.metadata) | {"thousandfold_golden": json.dumps(wrong)}
    files["wrong"].write_bytes(model.with_metadata(texts).joined())
    write_policy(files["old"], json.dumps(metadata(format_version=1)))
    write_policy(files["foreign"], key="")
    for name, dt in UNTIMED.items():
        files[name] = folder / f"{name}.onnx"
        write_policy(
            files[name], json.dumps(metadata()).replace('"control_dt_s": 0.1', f'"control_dt_s": {dt}')
        )
    for name, few in (("uneven", 3), ("empty", 0)):
        rows = golden()
        short = (
            rows | {"goal": rows["goal"][:few]}
            if few
            else rows | {key: [] for key in wrong if key != "tolerance"}
        )
        files[name] = folder / f"{name}.onnx"
        files[name].write_bytes(
            model.with_metadata(texts | {"thousandfold_golden": json.dumps(short)}).joined()
        )
    texts.pop("thousandfold_golden")
    files["bare"].write_bytes(model.with_metadata(texts).joined())
    files["cut"].write_bytes(files["cut"].read_bytes()[:-300])
    return files


def check_damaged(folder: Path, *runner: str | Path) -> None:
    """Check what a runner makes of damaged files: wrong numbers are exit code 1, no policy is 2."""
    files = damaged_files(folder)
    for name, path in files.items():
        done = started(*runner, path)
        assert done.returncode == (1 if name == "wrong" else 2), f"{name}\n{done.stdout}\n{done.stderr}"
        if name == "wrong":
            assert golden_figures(done.stdout)[1] == pytest.approx(1e-3, rel=0.01)
        else:
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
            assert name in ("cut", "uneven", "empty", *UNTIMED) or "no policy file" in line
            assert name not in UNTIMED or "control_dt_s" in line or "JSON" in line
            assert "Traceback" not in done.stderr
    assert started(*runner, folder / "missing.onnx").returncode == 2


def check_signatures(folder: Path, *runner: str | Path) -> None:
    """Check that a runner which is told to trust a key runs what it signed, and nothing else."""
    key, other = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
    public = folder / "key.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    plain = write_policy(folder / "plain.onnx").read_bytes()
    whole = signed(plain, key)
    contents = {
        "trusted": (whole, "golden rows: 16"),
        "unsigned": (plain, "not signed"),
        "foreign": (signed(plain, other), "a key that is not the trusted one"),
        "tampered": (whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], "was changed after it was signed"),
        "lenient": (whole[:-128] + whole[-128:].replace(b"+", b"-").replace(b"/", b"_"), ""),
        "longer": (whole + b"\x72\x04\x0a\x00\x12\x00", "not signed"),
        "short": (b"\x72", "not signed"),
    }
    for name, (content, said) in contents.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(content)
        done = started(*runner, path, "--trusted", public)
        assert done.returncode == (0 if name == "trusted" else 2), f"{name}\n{done.stdout}\n{done.stderr}"
        assert said in done.stdout + done.stderr, f"{name}\n{done.stderr}"
        assert name == "trusted" or len(done.stderr.splitlines()) == 1
    plain_key = folder / "plain.onnx"
    secret = folder / "key"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for no_key in (plain_key, secret):
        done = started(*runner, folder / "trusted.onnx", "--trusted", no_key)
        assert done.returncode == 2 and done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
    assert started(*runner, folder / "missing.onnx", "--trusted", public).returncode == 2


class TestPython:
    def test_it_is_short_and_needs_no_package_but_two(self) -> None:
        text = RUNNER.read_text()
        assert len(text.splitlines()) <= 195
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes
        } - set(sys.stdlib_module_names)
        assert names == {"numpy", "onnxruntime", "signature"}  # the last is beside it, for who requires one

    @pytest.fixture
    def policy(self, tmp_path: Path) -> Any:
        return runpy.run_path(str(RUNNER))["Policy"](str(write_policy(tmp_path / "policy.onnx")))

    def test_it_computes_what_the_graph_does(self, policy: Any) -> None:
        rng = np.random.default_rng(0)
        for observation, goal in zip(rng.normal(0, 2, (20, 4)), rng.normal(0, 2, (20, 2)), strict=True):
            action, control = policy(observation, goal)
            expected = expected_action(observation[None], goal[None])
            assert action.dtype == np.float32 and np.allclose(action, expected[0], atol=1e-6)
            assert np.allclose(control, expected_control(expected)[0], atol=1e-5)
        assert policy.metadata["control_dt_s"] == 0.1

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_it_refuses_what_is_not_finite(self, policy: Any, wrong: float) -> None:
        with pytest.raises(ValueError, match="observation holds NaN or infinity"):
            policy([0.0, wrong, 0.0, 0.0], [0.0, 0.0])
        with pytest.raises(ValueError, match="goal holds NaN or infinity"):
            policy([0.0, 0.0, 0.0, 0.0], [wrong, 0.0])
        assert np.isfinite(policy([0.0] * 4, [0.0] * 2)[0]).all()

    def test_it_refuses_wrong_sizes(self, policy: Any) -> None:
        for observation, goal in (([0.0] * 3, [0.0] * 2), ([0.0] * 4, [0.0]), ([[0.0] * 4], [0.0] * 2)):
            with pytest.raises(ValueError, match="has shape"):
                policy(observation, goal)

    def test_the_script_checks_the_golden_rows(self, tmp_path: Path) -> None:
        printed = succeeded(sys.executable, RUNNER, write_policy(tmp_path / "policy.onnx"))
        rows, error, tolerance = golden_figures(printed)
        assert (rows, tolerance) == (16, 1e-5) and error <= 1e-6
        check_damaged(tmp_path, sys.executable, RUNNER)

    def test_the_script_requires_a_signature(self, tmp_path: Path) -> None:
        check_signatures(tmp_path, sys.executable, RUNNER)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the policy of a whole chain, the smallest there is."""
    workspace = tmp_path_factory.mktemp("chain")
    made = result_of(pipeline(workspace, "run", "--preset", "smoke", "--json"))
    return Path(made["export_onnx"]["files"]["policy.onnx"])


def test_the_node_packages_are_locked_without_naming_a_registry() -> None:
    lock = json.loads((DEPLOY / "node/package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages["node_modules/onnxruntime-node"]["version"]
    assert all(entry["integrity"] and "resolved" not in entry for entry in packages.values())


@pytest.mark.slow
def test_the_node_runner_reproduces_the_golden_rows(
    node_folder: Path, exported: Path, tmp_path: Path
) -> None:
    runner = ("node", node_folder / "run_policy.js")
    for path in (exported, write_policy(tmp_path / "policy.onnx")):
        rows, error, tolerance = golden_figures(succeeded(*runner, path))
        assert rows == 16 and error <= tolerance == 1e-5
    check_damaged(tmp_path, *runner)
    check_signatures(tmp_path, *runner)


REFUSALS = """
import { Policy } from "./policy.js";
const policy = await Policy.open(process.argv[2]);
const states = [[[0, NaN, 0, 0], [0, 0]], [[0, 0, 0, 0], [1 / 0, 0]], [[0], [0, 0]]];
for (const state of states) {
  await policy.act(...state).then(() => console.log("acted"), (error) => console.log(error.message));
}
"""


@pytest.mark.slow
def test_the_node_runner_refuses_what_is_not_finite(node_folder: Path, tmp_path: Path) -> None:
    script = node_folder / "refuse.mjs"
    script.write_text(REFUSALS)
    observation, goal, size = succeeded("node", script, write_policy(tmp_path / "p.onnx")).splitlines()
    assert observation.startswith("observation holds NaN") and goal.startswith("goal holds NaN")
    assert size == "observation has 1 numbers, not 4"


@pytest.mark.slow
def test_the_cpp_runner_reproduces_the_golden_rows(cpp_runner: Path, exported: Path, tmp_path: Path) -> None:
    for path in (exported, write_policy(tmp_path / "policy.onnx")):
        rows, error, tolerance = golden_figures(succeeded(cpp_runner, path))
        assert rows == 16 and error <= tolerance == pytest.approx(1e-5)
    check_damaged(tmp_path, cpp_runner)
    check_signatures(tmp_path, cpp_runner)


@pytest.mark.slow
def test_the_cpp_runner_refuses_what_is_not_finite(cpp_runner: Path, tmp_path: Path) -> None:
    bad = golden()
    bad["goal"][2][0] = 1e39  # beyond float32
    path = write_policy(tmp_path / "policy.onnx", rows=bad)
    done = started(cpp_runner, path)
    assert done.returncode == 2 and "goal holds NaN or infinity" in done.stderr
    model = read_model(path)
    text = json.dumps(bad).replace("1e+39", "nan")  # no JSON
    path.write_bytes(model.with_metadata(dict(model.metadata) | {"thousandfold_golden": text}).joined())
    done = started(cpp_runner, path)
    assert done.returncode == 2 and "the metadata is no JSON" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name", "listed", "words"),
    [
        ("inputs", "observation", 5, "has 4 numbers of observation in its graph, its metadata lists 5"),
        ("inputs", "goal", 0, "has 2 numbers of goal in its graph, its metadata lists 0"),
        ("outputs", "control", 1, "has 2 numbers of control in its graph, its metadata lists 1"),
    ],
)
def test_the_cpp_runner_refuses_other_sizes_than_the_metadata_lists(
    cpp_runner: Path, part: str, name: str, listed: int, words: str, tmp_path: Path
) -> None:
    text = metadata()
    elements = text[part][name]
    text[part][name] = (elements * 2)[:listed]
    done = started(cpp_runner, write_policy(tmp_path / "policy.onnx", json.dumps(text)))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ") and words in line


@pytest.mark.slow
def test_the_cpp_runner_counts_numbers_of_any_name(cpp_runner: Path, tmp_path: Path) -> None:
    text = metadata()
    text["inputs"]["observation"][1]["name"] = 'a "name" with \\ and ]}, {[ in it'
    assert succeeded(cpp_runner, write_policy(tmp_path / "policy.onnx", json.dumps(text)))


COMMA_PROGRAM = """
#include <clocale>
#include <cstdio>
#include <locale>
#include "policy.hpp"

int main(int, char** arguments) {
    if (std::setlocale(LC_ALL, "de_DE.UTF-8") == nullptr) return 3;
    std::locale::global(std::locale("de_DE.UTF-8"));
    Policy policy(arguments[1]);
    const GoldenSet golden = policy.golden();
    policy.act(golden.observation[0], golden.goal[0]);
    const float bound = policy.control_bounds()[1];
    const bool exact = policy.control_dt_s() == 0.1 && golden.tolerance == 1e-5 && bound == 1.0F;
    const float error = policy.action()[0] - golden.action[0][0];
    std::printf("%.1f %d %d %zu", 0.5, exact, error < 1e-5F && error > -1e-5F, golden.action.size());
}
"""


@pytest.mark.slow
def test_the_cpp_policy_reads_numbers_under_a_locale_with_commas(
    comma_locale: dict[str, str], tmp_path: Path
) -> None:
    required("cmake", "c++")
    folder = tmp_path / "source"
    shutil.copytree(DEPLOY / "cpp", folder)
    (folder / "run_policy.cpp").write_text(COMMA_PROGRAM)
    openvino = f"-DOpenVINO_DIR={openvino_cmake()}"
    succeeded("cmake", "-S", folder, "-B", tmp_path / "build", openvino)
    succeeded("cmake", "--build", tmp_path / "build")
    path = write_policy(tmp_path / "policy.onnx")
    assert succeeded(tmp_path / "build/run_policy", path, **comma_locale) == "0,5 1 1 16"
