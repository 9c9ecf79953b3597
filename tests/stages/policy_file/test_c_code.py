"""A policy as C99: the graph's numbers for every form of network and control; no text adds anything to it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.pages import blocks
from tests.stages.benchmark.test_torch_runtimes import SHAPES, expected, policy, states
from tests.stages.policy_file.c_programs import (
    COMPILERS,
    STRICT,
    built,
    drawn_policy,
    policy_file,
    ran,
    require_compiler,
)
from tests.stages.policy_file.handmade_policy import golden, metadata, tamper, write_policy
from thousandfold.ground.errors import DamagedFileError, NonFiniteError, UserError
from thousandfold.models.deployable_policy import (
    DeployablePolicy,
    Dither,
    InputLimits,
    ModeratedControl,
    NormalizedActor,
)
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.onnx_graph import body_dense_inputs, to_onnx
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.policy_file import c_code
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.c_policy import THIS_PROCESSOR, CPolicy, int8_code
from thousandfold.stages.policy_file.metadata import parse_metadata
from thousandfold.stages.policy_file.onnx_bytes import METADATA_KEY, ModelBytes, read_model, split_model

ANYWHERE = Path("policy.onnx")
SELF_TEST = """
#include <stdio.h>
#include "policy.h"

int main(void)
{
    const char *const *text = policy_description;
    while (*text != NULL) fputs(*text++, stdout);
    return policy_self_test();
}
"""


def opened(model: ModelBytes, folder: Path, *flags: str) -> CPolicy:
    require_compiler()
    return CPolicy(
        c_files(model, ANYWHERE), folder, parse_metadata(model.metadata[METADATA_KEY], ANYWHERE), flags
    )


def check(module: DeployablePolicy, folder: Path, *flags: str) -> None:
    """Compare the C code of a module with torch, within the limits and beyond."""
    found = opened(policy_file(module), folder, *flags)
    assert found.self_test() == 0
    for observation, goal in states(8):
        for scale in (1.0, 30.0):
            state = scale * observation, scale * goal
            for ours, right in zip(found.step(*state), expected(module, state), strict=True):
                np.testing.assert_allclose(ours, right, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_every_form_of_network(name: str, tmp_path: Path) -> None:
    check(policy(SHAPES[name]), tmp_path)


def test_the_widest_vectors_and_fused_products_and_odd_widths(tmp_path: Path) -> None:
    check(policy(NetworkShape(4, 67, final_norm=True)), tmp_path, *THIS_PROCESSOR)


MODERATED = ModeratedControl(
    base=torch.tensor([0.5, 0.0, 1.0]),
    slope=torch.tensor([0.5, 0.1, 2.0]),
    swing=torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, -0.4]]),
    carry=torch.tensor([0.0, 1.0, 0.0]),
    gain=torch.tensor([0.4, 1.0, 1.0]),
    step=torch.tensor([torch.inf, 0.1, 0.2]),
    stateful=torch.tensor([True, True, True]),
    last=torch.tensor([4, 0, 2]),
    clocks=torch.tensor([1, 3]),
)


@pytest.mark.parametrize(
    "actuators",
    [{"switched": torch.tensor([False, True, False])}, {"moderated": MODERATED}],
    ids=["switched", "moderated"],
)
def test_every_form_of_control(actuators: dict[str, Any], tmp_path: Path) -> None:
    check(policy(SHAPES["plain"], **actuators), tmp_path)


def test_actions_that_swing_with_a_clock_and_means_far_from_zero(tmp_path: Path) -> None:
    module = policy(SHAPES["plain"])
    module.actor.dither = Dither(0.5, [1, 3], 2)
    module.actor.observation_normalizer.mean[2] = 100.0
    module.observation_low[2], module.observation_high[2] = 90.0, 110.0
    operators = {node.op_type for node in to_onnx(module, opset=20).graph.node}
    assert {"Exp", "Sub"} <= operators
    check(module, tmp_path)


def test_a_sigmoid_is_one_over_its_whole_range(tmp_path: Path) -> None:
    module = policy(NetworkShape(1, 16, kind="plain", layer_norm=False))
    stem = module.actor.actor.trunk.stem[0]  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        stem.weight.mul_(0.0)
        stem.bias.copy_(torch.linspace(-110, 110, 16))
    state = states(1)[0]
    ours = opened(policy_file(module), tmp_path).step(*state)
    np.testing.assert_allclose(ours.action, expected(module, state)[0], rtol=1e-6, atol=1e-7)


def test_equal_files_give_equal_code_wherever_they_lie() -> None:
    model = drawn_policy(SHAPES["residual"])
    files = c_files(model, ANYWHERE)
    assert list(files) == ["policy.h", "policy.c"]
    assert files == c_files(split_model(model.joined()), Path("elsewhere/p.onnx"))
    assert f'#define POLICY_SHA256 "{model.policy_sha256}"' in files["policy.h"]
    assert all(text.isascii() for text in files.values())


TEXTS = (
    "*/ int x; /*",
    '"; int x; "',
    "a\\",
    "??/",
    "??)",
    "größe",
    "line\nbreak",
    "%s %n",
    "\x01",
    "🤖" * 30,
)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_it_is_strict_c99_whatever_names_say(compiler: str, tmp_path: Path) -> None:
    described = metadata(task="\n".join(TEXTS) * 20)
    elements = described["inputs"]["observation"]
    for element, text in zip(elements, TEXTS, strict=False):
        element |= {"name": text, "unit": text[::-1]}
    path = write_policy(tmp_path / "policy.onnx", json.dumps(described, ensure_ascii=False))
    model = read_model(path)
    names = [element["name"] for element in elements]
    program = SELF_TEST.replace(
        "    return",
        f'    for (int i = 0; i < {len(names)}; ++i) printf("\\n%s\\n%s", policy_observation[i].name, '
        "policy_readings[i].unit);\n    return",
    )
    sanitized = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    done = ran(built(tmp_path, c_files(model, path), program, *STRICT, *sanitized, compiler=compiler))
    assert done.returncode == 0, done.stderr
    said = model.metadata[METADATA_KEY] + "".join(f"\n{text}\n{text[::-1]}" for text in names)
    assert done.stdout.decode() == said


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_network_is_computed_without_reading_beyond_what_is_there(compiler: str, tmp_path: Path) -> None:
    files = c_files(drawn_policy(NetworkShape(4, 19), moderated=MODERATED), ANYWHERE)
    sanitized = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    done = ran(built(tmp_path, files, SELF_TEST, *STRICT, *sanitized, compiler=compiler))
    assert done.returncode == 0, done.stderr


COMMAS = """
#include <locale.h>
#include <stdio.h>
#include "policy.h"

int main(void)
{
    if (setlocale(LC_ALL, "de_DE.UTF-8") == NULL) return 99;
    printf("%.1f", POLICY_CONTROL_DT_S);
    return policy_self_test();
}
"""


ROBOT = """
int robot_read(float *readings);
int robot_goal(float *goal);
void robot_stop(int status);
void robot_send(const float *control);
void robot_wait(void);
int robot_read(float *readings) { return readings != 0; }
int robot_goal(float *goal) { return goal != 0; }
void robot_stop(int status) { (void)status; }
void robot_send(const float *control) { (void)control; }
void robot_wait(void) {}
"""


def test_the_loop_in_the_docs_compiles(tmp_path: Path) -> None:
    (program,) = blocks("docs/c_file.md", "c")
    files = c_files(drawn_policy(SHAPES["plain"]), ANYWHERE)
    assert built(tmp_path, files, f"{ROBOT}{program.text}", *STRICT).is_file()


def test_it_does_not_follow_the_locale(comma_locale: dict[str, str], tmp_path: Path) -> None:
    files = c_files(drawn_policy(SHAPES["plain"]), ANYWHERE)
    done = ran(built(tmp_path, files, COMMAS), **comma_locale)
    assert (done.returncode, done.stdout) == (0, b"0,1")


def test_the_self_test_names_the_first_row_that_is_off(tmp_path: Path) -> None:
    for part, row, index in (("action", 4, 1), ("control", 9, 0), ("observation", 0, 0)):
        rows = golden()
        rows[part][row][index] += 2e-5 if part != "observation" else 0.1
        path = write_policy(tmp_path / "policy.onnx", rows=rows)
        folder = tmp_path / part
        folder.mkdir()
        assert opened(read_model(path), folder).self_test() == row + 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_outputs_stay(wrong: float, tmp_path: Path) -> None:
    found = opened(drawn_policy(SHAPES["plain"]), tmp_path)
    good = states(1)[0]
    before = found.step(*good)
    for part in range(2):
        bad = [each.copy() for each in good]
        bad[part][-1] = wrong
        with pytest.raises(NonFiniteError, match="an input is NaN or infinite"):
            found.step(*bad)
        for outputs, kept in zip((found._action, found._control), before, strict=True):
            np.testing.assert_array_equal(outputs, kept)


def test_a_changed_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "policy.onnx")
    tamper(path)
    with pytest.raises(DamagedFileError, match="changed since it was exported: its graph differs"):
        c_files(read_model(path), path)
    model = drawn_policy(SHAPES["plain"])
    unsealed = model.with_metadata({k: v for k, v in model.metadata.items() if k != "thousandfold_sha256"})
    with pytest.raises(DamagedFileError, match="it has no thousandfold_sha256"):
        c_files(unsealed, path)


def test_an_operator_without_a_c_form_is_named() -> None:
    module = policy(SHAPES["plain"])
    layers = body_dense_inputs(to_onnx(module, opset=20))
    in_eight_bits = to_onnx(module, 20, input_ranges=dict.fromkeys(layers, (-1.0, 8.0)))
    for graph, said in (
        (in_eight_bits, "it has the operator QuantizeLinear"),
        (to_onnx(module, 20, "float16"), "it has a node Cast with 'to' 10"),
    ):
        with pytest.raises(UserError, match=f"policy.onnx has no C form: {said}. Give a float32 policy"):
            c_files(policy_file(module, model=graph), ANYWHERE)


def with_alpha(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.attribute.append(helper.make_attribute("alpha", 2.0))


def with_a_large_weight(model: onnx.ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "stem.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), tensor.name))


def with_a_computed_matrix(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Tanh", ["stem.weight"], ["bent"]))
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.input[1] = "bent"


def without_control(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "other"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_alpha, "a node Gemm with 'alpha' 2"),
        (with_a_large_weight, "weights that are not finite"),
        (with_a_computed_matrix, "'bent', which is no row of numbers"),
        (without_control, "nothing in its graph gives 3 numbers of control"),
    ],
)
def test_a_graph_that_says_more_is_refused(change: Any, said: str) -> None:
    module = policy(SHAPES["plain"])
    model = to_onnx(module, opset=20)
    change(model)
    with pytest.raises(UserError, match=said):
        c_files(policy_file(module, model=model), ANYWHERE)


def test_more_weights_than_a_compiler_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_code, "MOST_WEIGHTS", 300)
    with pytest.raises(UserError, match="it has more than 300 weights"):
        c_files(drawn_policy(SHAPES["plain"]), ANYWHERE)


class TestInt8Weights:
    """Whole numbers with a scale a unit, between the first layer and the last."""

    def module(self) -> DeployablePolicy:
        return policy(NetworkShape(4, 64))

    def test_the_code_is_near_the_network_and_a_third_of_its_size(self, tmp_path: Path) -> None:
        require_compiler()
        module = self.module()
        model = policy_file(module)
        files, found = int8_code(model, ANYWHERE, tmp_path)
        assert found.self_test() == 0 and '#define POLICY_WEIGHTS "int8"' in files["policy.h"]
        differences = [
            np.abs(found.step(*state).action - expected(module, state)[0]).max() for state in states(32)
        ]
        assert 1e-6 < max(differences) < 0.05
        bytes_of = {"float": 4, "int8_t": 1}
        sizes = [
            sum(bytes_of[kind] * int(count) for kind, count in re.findall(r"const (\w+) c\d+\[(\d+)\]", text))
            for text in (c_files(model, ANYWHERE)["policy.c"], files["policy.c"])
        ]
        assert sizes[1] < 0.34 * sizes[0]

    def test_each_weight_is_off_by_half_a_step_of_its_unit_at_most(self) -> None:
        model = policy_file(self.module())
        texts = [c_files(model, ANYWHERE, weights)["policy.c"] for weights in ("float32", "int8")]
        exact, rounded = (
            {
                name: np.array([float(number.strip().rstrip("f")) for number in body.split(",")])
                for name, body in re.findall(r"static const \w+ (c\d+)\[\d+\] = \{\n(.*?)\n\};", text, re.S)
            }
            for text in texts
        )
        kernels = re.findall(r"dense\(64, \w+, 64, (c\d+),", texts[0])
        calls = re.findall(r"dense_int8\(64, \w+, 64, (c\d+), (c\d+),", texts[1])
        assert len(calls) == len(kernels) >= 3
        for (whole, scale), kernel in zip(calls, kernels, strict=True):
            columns, steps = rounded[whole].reshape(64, 64), rounded[scale]
            assert (np.abs(columns).max(0) == 127).all()
            assert (np.abs(columns * steps - exact[kernel].reshape(64, 64)) <= 0.5001 * steps).all()

    def test_the_self_test_has_rows_of_its_own(self, tmp_path: Path) -> None:
        require_compiler()
        model = policy_file(self.module())
        assert opened_files(c_files(model, ANYWHERE, "int8"), model, tmp_path).self_test() != 0
        (again := tmp_path / "again").mkdir()
        assert int8_code(model, ANYWHERE, again)[1].self_test() == 0

    def test_the_last_layers_stay_as_they_are_however_many_actions_there_are(self) -> None:
        torch.manual_seed(0)
        actor = NormalizedActor.around(GoalActor(5, 3, 20, NetworkShape(4, 64)), 5, 3)
        limits, ends = InputLimits.around(torch.randn(4, 5), torch.randn(4, 3)), torch.ones(20)
        numbers = [{"name": f"m{place}", "unit": "", "low": -1.0, "high": 1.0} for place in range(20)]
        model = policy_file(
            DeployablePolicy(actor, limits, -ends, ends).eval(),
            outputs={"action": numbers, "control": numbers},
        )
        text = c_files(model, ANYWHERE, "int8")["policy.c"]
        assert re.findall(r"dense_int8\((\d+), \w+, (\d+),", text) == [("64", "64")] * 4
        assert re.findall(r" dense\((\d+), \w+, (\d+),", text) == [("8", "64"), ("64", "20"), ("20", "20")]

    def test_a_policy_without_such_layers_gains_nothing(self) -> None:
        with pytest.raises(UserError, match="int8 weights gain nothing here"):
            c_files(policy_file(policy(NetworkShape(1, 32, kind="plain"))), ANYWHERE, "int8")

    @pytest.mark.parametrize("compiler", COMPILERS)
    def test_it_is_strict_c99(self, compiler: str, tmp_path: Path) -> None:
        require_compiler()
        files, _ = int8_code(policy_file(self.module()), ANYWHERE, tmp_path)
        (folder := tmp_path / "strict").mkdir()
        sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        done = ran(built(folder, files, SELF_TEST, *STRICT, *sanitized, compiler=compiler))
        assert done.returncode == 0, done.stderr


def opened_files(files: dict[str, str], model: ModelBytes, folder: Path) -> CPolicy:
    return CPolicy(files, folder, parse_metadata(model.metadata[METADATA_KEY], ANYWHERE))
