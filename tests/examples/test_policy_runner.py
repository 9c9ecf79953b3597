"""The runners' control loop: history, time, what was sent last, holding and clamping, alike in all."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.examples.deploy_runners import (
    DEPLOY,
    RUNNER,
    golden_figures,
    openvino_cmake,
    required,
    started,
    succeeded,
)
from tests.stages.policy_file.c_programs import STRICT, built, require_compiler
from tests.stages.policy_file.handmade_policy import metadata
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.controls import describe_controls
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenArrays, GoldenSet
from thousandfold.stages.policy_file.onnx_bytes import read_model, split_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.policy_runner import PolicyRunner

DT, STEPS = 0.1, 200
BEND = 'größe "1"'
CONTROLS: list[dict[str, Any]] = [
    {"name": "lift", "low": -0.4, "high": 0.4, "max_rate": 0.7, "joint": "lift", "gear": 1.0, "kp": 10.0},
    # Its ends are written the other way round, and its joint moves half as far.
    {"name": BEND, "low": 1.5, "high": -1.5, "max_rate": 2.0, "joint": "bend", "gear": 2.0, "kp": 5.0},
    {"name": "fan", "low": 0.0, "high": 1.0, "max_rate": 0.5, "start": 0.3},
    # No reading tells where it stands.
    {"name": "far", "low": -1.0, "high": 1.0, "max_rate": 3.0, "joint": "far", "gear": 1.0, "kp": 5.0},
    {"name": "light", "low": -0.5, "high": 0.5, "max_rate": None},
]
READINGS = ["qpos:lift[0]", "qpos:bend[0]", "sensordata:gyro[0]"]
SENT = [f"ctrl:{control['name']}[0]" for control in CONTROLS]
CLOCKS = {
    "clock:0.35[0]": (0.35, math.cos),
    "clock:0.35[1]": (0.35, math.sin),
    "clock:2.5[1]": (2.5, math.sin),
}
INPUTS = [
    "qpos:bend[0]@-1", READINGS[0], "clock:0.35[0]", "ctrl:lift[0]@-2", READINGS[1], SENT[0], SENT[1],
    "clock:2.5[1]", READINGS[2], "sensordata:gyro[0]@-3", SENT[2], SENT[3], f"{SENT[1]}@-1",
    "clock:0.35[1]@-2", "qpos:lift[0]@-2", "clock:0.35[1]",
]  # fmt: skip
GOALS = 2
OK, LATE, NOT_FINITE = "ok", "late", "not_finite"

rng = np.random.default_rng(17)
WEIGHT = rng.normal(0, 0.6, (len(INPUTS) + GOALS, len(CONTROLS))).astype(np.float32)
# Each control adds to what was sent last, by more than its rate allows and until beyond its ends.
LAST = np.zeros_like(WEIGHT)
for place, name in enumerate(SENT):
    if name in INPUTS:
        LAST[INPUTS.index(name), place] = 1.0
REACH = np.diag(np.array([0.2, 0.5, 0.3, 0.9, 1.0], np.float32))


def computed(observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the graph computes of rows: action and control."""
    state = np.concatenate([observation, goal], 1)
    action = np.tanh(state @ WEIGHT)
    return action, state @ LAST + action @ REACH


def write_sequence_policy(path: Path, **changes: Any) -> Path:
    """Write a policy with history, clocks and increments, whose controls leave their limits if unclamped."""
    constants = {"weight": WEIGHT, "last": LAST, "reach": REACH}
    nodes = [
        helper.make_node("Concat", ["observation", "goal"], ["state"], axis=1),
        helper.make_node("Gemm", ["state", "weight"], ["mean"]),
        helper.make_node("Tanh", ["mean"], ["action"]),
        helper.make_node("Gemm", ["state", "last"], ["held"]),
        helper.make_node("Gemm", ["action", "reach", "held"], ["control"]),
    ]
    sizes = {"observation": len(INPUTS), "goal": GOALS, "action": len(CONTROLS), "control": len(CONTROLS)}
    ports = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in sizes.items()
    }
    graph = helper.make_graph(
        nodes,
        "policy",
        [ports["observation"], ports["goal"]],
        [ports["action"], ports["control"]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = split_model(model.SerializeToString())
    ends = {"unit": "", "low": -1.0, "high": 1.0}
    limits = ends | {"limit_low": -3.0, "limit_high": 3.0}
    description = metadata(
        format_version=4,
        control_dt_s=DT,
        graph_sha256=made.graph_sha256,
        inputs={
            "observation": [{"name": name} | limits for name in INPUTS],
            "goal": [{"name": f"goal[{place}]"} | limits for place in range(GOALS)],
        },
        outputs={
            "action": [{"name": control["name"]} | ends for control in CONTROLS],
            "control": [{"unit": "actuator"} | control for control in CONTROLS],
        },
    )
    rows = np.random.default_rng(4).uniform(-1, 1, (16, len(INPUTS) + GOALS)).astype(np.float32)
    observation, goal = rows[:, : len(INPUTS)], rows[:, len(INPUTS) :]
    golden = GoldenSet.of(GoldenArrays(observation, goal, *computed(observation, goal)), TOLERANCE)
    text = json.dumps(description | changes)
    path.write_bytes(made.sealed(text, golden.model_dump_json()).joined())
    return path


class Tick(NamedTuple):
    """One step of the sequence: what came in, and what a runner must make of it."""

    readings: list[float] | None
    goal: list[float] | None
    status: str
    held: int
    control: np.ndarray | None


RESETS = {0: {"far": -0.2}, 120: {"far": 0.4, "lift": 9.0}}
"""before which step the runner begins anew, and the starts that it is given"""


def sequence() -> list[Tick]:
    """Return the sequence as it is defined: things are looked up in lists of all that happened."""
    rng = np.random.default_rng(3)
    rates = [control["max_rate"] for control in CONTROLS]
    most = np.array([math.inf if rate is None else rate * DT for rate in rates])
    ends = np.array([sorted((control["low"], control["high"])) for control in CONTROLS])
    ticks, readings, goal = list[Tick](), np.array([0.1, 0.6, 0.0]), np.array([0.5, -0.5])
    for step in range(STEPS):
        if step in RESETS:
            seen, sent, starts, held = list[np.ndarray](), list[np.ndarray](), RESETS[step], 0
        readings = readings + rng.normal(0, [0.05, 0.1, 0.5])
        if step % 40 == 20:
            goal = rng.normal(0, 1, GOALS)
        given: list[float] | None = readings.tolist()
        wanted: list[float] | None = goal.tolist()
        chance = rng.uniform()
        if step in (0, 50, 51, 52) or chance < 0.06:
            given = None
        elif step in (1, 120) or chance < 0.12:
            given[step % 3] = [math.nan, math.inf, -math.inf, 1e39][step % 4]
        elif chance < 0.14:
            wanted[step % 2] = math.nan
        elif chance < 0.15:
            wanted = None
        status = LATE if given is None or wanted is None else OK
        if status == OK and not (np.abs([*given, *wanted]) < 1e38).all():
            status = NOT_FINITE
        if status == OK:
            seen.append(np.array(given))
        elif seen:
            seen.append(seen[-1])
        if seen and not sent:  # what counts as sent before the first step
            known = {"lift": seen[0][0], BEND: 2 * seen[0][1], "fan": 0.3, "light": 0.0} | starts
            sent.append(np.array([known[control["name"]] for control in CONTROLS]).clip(*ends.T))
        if status == OK:
            observation = []
            for name in INPUTS:
                newest, _, age = name.partition("@-")
                then = max(len(seen) - 1 - int(age or 0), 0)  # steps since the first good one
                if newest in CLOCKS:
                    period, tells = CLOCKS[newest]
                    observation.append(tells(2 * math.pi * then * DT / period))
                elif newest in READINGS:
                    observation.append(seen[then][READINGS.index(newest)])
                else:
                    observation.append(sent[then][SENT.index(newest)])
            control = computed(np.array([observation]), np.array([wanted]))[1][0]
            control = control.clip(sent[-1] - most, sent[-1] + most).clip(*ends.T)
            sent.append(control)
            held = 0
        else:
            held += 1
            if seen:
                sent.append(sent[-1])
        ticks.append(Tick(given, wanted, status, held, sent[-1] if seen else None))
    return ticks


def test_the_sequence_has_everything_that_a_runner_must_do() -> None:
    ticks = sequence()
    statuses = [tick.status for tick in ticks]
    assert min(map(statuses.count, (LATE, NOT_FINITE))) >= 10 and statuses.count(OK) > 140
    assert [tick.control is None for tick in ticks[:3]] == [True, True, False]
    assert max(tick.held for tick in ticks) >= 3
    sent = np.array([tick.control for tick in ticks[2:120]])
    changes = np.abs(np.diff(sent, axis=0)).max(0)
    np.testing.assert_allclose(changes[:4], [0.07, 0.2, 0.05, 0.3], rtol=1e-6)
    for control, column in zip(CONTROLS, sent.T, strict=True):
        low, high = sorted((control["low"], control["high"]))
        assert column.min() >= low and column.max() <= high
        assert (column == low).any() or (column == high).any(), control["name"]


@pytest.fixture(scope="module")
def runner_module() -> dict[str, Any]:
    return runpy.run_path(str(RUNNER))


@pytest.fixture(params=["product", "example"])
def opened(
    request: pytest.FixtureRequest, runner_module: dict[str, Any], tmp_path: Path
) -> Callable[..., Any]:
    """Return what opens the sequence's policy with a start, in a runner of either."""
    path = write_sequence_policy(tmp_path / "policy.onnx")
    if request.param == "product":
        return lambda start=None: PolicyRunner(OnnxPolicy(path), start)
    return lambda start=None: runner_module["PolicyRunner"](runner_module["Policy"](str(path)), start)


class TestPython:
    def test_the_sequence(self, opened: Callable[..., Any]) -> None:
        runner = opened(RESETS[0])
        assert list(runner.readings) == READINGS
        for step, tick in enumerate(sequence()):
            if step in RESETS:
                runner.reset(RESETS[step])
            found = runner.step(tick.readings, tick.goal)
            assert (found.status, runner.held) == (tick.status, tick.held), step
            if tick.control is None:
                assert found.control is None
            else:
                np.testing.assert_allclose(found.control, tick.control, rtol=0, atol=1e-5, err_msg=str(step))

    def test_a_start_that_nobody_knows_is_asked_for(self, opened: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="give the start of actuator far: where it stands"):
            opened()
        with pytest.raises(ValueError, match="there is no actuator near"):
            opened({"near": 0.0, "far": 0.0})
        with pytest.raises(ValueError, match="a start is NaN or infinite"):
            opened({"far": math.nan})

    def test_a_wrong_size(self, opened: Callable[..., Any]) -> None:
        runner = opened({"far": 0.0})
        with pytest.raises(ValueError, match=r"readings have shape \(2,\), not \(3,\)"):
            runner.step([0.0, 0.0], [0.0, 0.0])
        with pytest.raises(ValueError, match=r"goal has shape \(1,\), not \(2,\)"):
            runner.step([0.0, 0.0, 0.0], [0.0])

    def test_the_golden_rows_of_a_file_with_history(self, tmp_path: Path) -> None:
        path = write_sequence_policy(tmp_path / "p.onnx")
        rows, error, _ = golden_figures(succeeded(sys.executable, RUNNER, path))
        assert rows == 16 and error < 1e-6

    def test_history_without_its_newest_reading_and_later_formats_are_refused(
        self, runner_module: dict[str, Any], tmp_path: Path
    ) -> None:
        text = metadata(format_version=4)
        text["inputs"]["observation"][0]["name"] = "qpos:z[0]@-1"
        lacking = SimpleNamespace(metadata=text)
        with pytest.raises(ValueError, match=r"earlier readings of qpos:z\[0\], but not the newest"):
            runner_module["PolicyRunner"](lacking)
        newer = write_sequence_policy(tmp_path / "newer.onnx", format_version=5)
        with pytest.raises(ValueError, match="no policy file of format 3 or 4"):
            runner_module["Policy"](str(newer))


PAGE = """\
name: crane
model: crane.xml
control_dt_s: 0.05
observation: [{field: qpos}, {clock: 0.3, history: 3}, {field: qvel, history: 2}]
achieved_goal: [{field: qpos, object: slide}]
goal: {box: {low: [-1], high: [1]}}
success: {radius: 0.2}
reset: {keyframe: home, qpos_noise: 0.1}
action:
  - {actuator: lift, kind: delta, max_rate: 0.5}
  - {actuator: fan, kind: offset, scale: 0.5, smoothing_s: 0.2, swing: {amplitude: 0.4, period_s: 0.3}}
episode_steps: 50
"""
MODEL = """\
<mujoco><option timestep="0.01"/><worldbody><body><geom size="0.1" mass="1"/>
<joint name="slide" type="slide" axis="0 0 1" range="-1 1" limited="true"/></body>
<body pos="1 0 0"><geom size="0.1" mass="1"/><joint name="spin" type="hinge" axis="0 0 1"/></body></worldbody>
<actuator><position name="lift" joint="slide" kp="40" kv="3"/>
<motor name="fan" joint="spin" ctrlrange="-1 1"/></actuator>
<keyframe><key name="home" qpos="0.2 0" ctrl="0.2 0.4"/></keyframe></mujoco>
"""


def test_a_runner_sees_what_the_policy_saw_in_training(runner_module: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "crane.xml").write_text(MODEL)
    (tmp_path / "crane.yaml").write_text(PAGE)
    task = compile_task(str(tmp_path / "crane.yaml"))
    inputs = task.describe("observation")
    names = [element["name"] for element in inputs]
    given, acted, rng = list[np.ndarray](), list[np.ndarray](), np.random.default_rng(0)

    class Policy:
        """Notes what it is given, and acts at random as the task would."""

        metadata: ClassVar = {
            "control_dt_s": task.spec.control_dt_s,
            "inputs": {"observation": inputs},
            "outputs": {"control": [control.model_dump() for control in describe_controls(task)]},
        }

        def __call__(self, observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            given.append(observation)
            acted.append(rng.uniform(-1, 1, 2).astype(np.float32))
            clocks = observation[None, task.swing_clocks()]
            return acted[-1], task.control(acted[-1][None], observation[None, -2:], clocks=clocks)[0]

    assert names[-2:] == ["ctrl:lift[0]", "ctrl:fan[0]"]
    simulator = CpuSimulator(task, 1, seed=np.random.SeedSequence(1), num_threads=1)
    for _ in range(3):
        simulator.reset()
        runner = runner_module["PolicyRunner"](Policy())  # both starts are known, one of them measured
        for _ in range(10):
            seen = np.array(simulator.observation[0])
            control, status = runner.step(seen[[names.index(name) for name in runner.readings]], [0.0])
            np.testing.assert_allclose(given[-1], seen, rtol=1e-6, atol=1e-6)
            assert status == "ok" and control is not None
            simulator.step(acted[-1][None])


def written(ticks: list[Tick]) -> str:
    """Return the sequence for runners in other languages: a line a step, and one before that begins anew."""

    def words(values: list[float] | None) -> str:
        return "late" if values is None else " ".join(map(repr, values))

    lines = []
    for step, tick in enumerate(ticks):
        if step in RESETS:
            lines.append("reset " + " ".join(f"{name} {start}" for name, start in RESETS[step].items()))
        lines.append(f"{words(tick.readings)};{words(tick.goal)}".replace("inf", "Infinity"))
    return "\n".join(lines)


def check_printed(printed: str, ticks: list[Tick]) -> None:
    """Compare what a runner printed: status, held, and the control where there is one."""
    lines = printed.splitlines()
    assert len(lines) == len(ticks) == STEPS
    for step, (line, tick) in enumerate(zip(lines, ticks, strict=True)):
        status, held, *control = line.split()
        assert (status, int(held)) == (tick.status, tick.held), step
        expected = [] if tick.control is None else tick.control
        np.testing.assert_allclose(
            np.array(control, float), expected, rtol=0, atol=1e-5, err_msg=f"step {step}"
        )


NODE_PROGRAM = """
import { readFileSync } from "node:fs";
import { Policy } from "./policy.js";
import { PolicyRunner } from "./policy_runner.js";

const [path, sequence] = process.argv.slice(2);
const policy = await Policy.open(path);
try {
  new PolicyRunner(policy);
} catch (error) {
  console.error(error.message);
}
const runner = new PolicyRunner(policy, { far: 0 });
console.error(runner.readings.join(" "));
const numbers = (text) => (text === "late" ? null : text.split(" ").map(Number));
for (const line of readFileSync(sequence, "utf8").split("\\n")) {
  const [word, ...starts] = line.split(" ");
  if (word === "reset") {
    const pairs = starts.map((name, place) => [name, Number(starts[place + 1])]);
    runner.reset(Object.fromEntries(pairs.filter((_, place) => place % 2 === 0)));
    continue;
  }
  const { control, status } = await runner.step(...line.split(";").map(numbers));
  console.log([status, runner.held, ...(control ?? [])].join(" "));
}
const { status } = await runner.step([null, 0, 0], [0, 0]);
console.error(status);
"""


@pytest.mark.slow
def test_the_node_runner_does_the_sequence(node_folder: Path, tmp_path: Path) -> None:
    script = node_folder / "sequence.mjs"
    script.write_text(NODE_PROGRAM)
    policy, ticks = write_sequence_policy(tmp_path / "policy.onnx"), sequence()
    (tmp_path / "sequence.txt").write_text(written(ticks))
    done = started("node", script, policy, tmp_path / "sequence.txt")
    assert done.returncode == 0, done.stderr
    check_printed(done.stdout, ticks)
    refusal, readings, nothing = done.stderr.splitlines()
    assert refusal == "give the start of actuator far: where it stands"
    assert readings == " ".join(READINGS) and nothing == NOT_FINITE
    assert golden_figures(succeeded("node", node_folder / "run_policy.js", policy))[0] == 16


C_PROGRAM = """
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "policy.h"

static int read(char *text, float *values, size_t count)
{
    size_t i;
    if (strncmp(text, "late", 4) == 0) return 0;
    for (i = 0; i < count; ++i) values[i] = strtof(text, &text);
    return 1;
}

int main(int argc, char **arguments)
{
    static policy_state state;
    const char *const words[] = {"ok", "late", "not_finite"};
    float readings[POLICY_READINGS], goal[POLICY_GOAL], control[POLICY_CONTROL], start[POLICY_CONTROL];
    char line[1000];
    size_t i;
    FILE *sequence = argc > 1 ? fopen(arguments[1], "r") : NULL;
    if (sequence == NULL) return 2;
    for (i = 0; policy_readings[i].name != NULL; ++i) fprintf(stderr, "%s ", policy_readings[i].name);
    fprintf(stderr, "\\n%d", policy_step(&state, NULL, NULL, control));
    fprintf(stderr, " %d", policy_reset(&state, NULL));
    fprintf(stderr, " %d", policy_step(&state, NULL, NULL, control));
    for (i = 0; i < POLICY_CONTROL; ++i) start[i] = (float)INFINITY;
    fprintf(stderr, " %d", policy_reset(&state, start));
    while (fgets(line, sizeof line, sequence) != NULL) {
        char *end = strchr(line, ';');
        if (end == NULL) { /* reset, and pairs of name and number */
            char *name = strtok(line, " \\n");
            for (i = 0; i < POLICY_CONTROL; ++i) start[i] = (float)NAN;
            while ((name = strtok(NULL, " \\n")) != NULL) {
                const float value = strtof(strtok(NULL, " \\n"), NULL);
                for (i = 0; i < POLICY_CONTROL; ++i) {
                    if (strcmp(name, policy_control[i].name) == 0) start[i] = value;
                }
            }
            if (policy_reset(&state, start) != 0) return 3;
            continue;
        }
        const int has_readings = read(line, readings, POLICY_READINGS);
        const int has_goal = read(end + 1, goal, POLICY_GOAL);
        const int status =
            policy_step(&state, has_readings ? readings : NULL, has_goal ? goal : NULL, control);
        printf("%s %u", words[status], (unsigned)state.held);
        for (i = 0; state.sending && i < POLICY_CONTROL; ++i) printf(" %.9g", (double)control[i]);
        printf("\\n");
    }
    return 0;
}
"""


def test_the_c_code_does_the_sequence(tmp_path: Path) -> None:
    require_compiler()
    policy, ticks = write_sequence_policy(tmp_path / "policy.onnx"), sequence()
    (tmp_path / "sequence.txt").write_text(written(ticks))
    sanitized = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    program = built(tmp_path, c_files(read_model(policy), policy), C_PROGRAM, *STRICT, *sanitized)
    done = started(program, tmp_path / "sequence.txt")
    assert done.returncode == 0, done.stderr
    check_printed(done.stdout, ticks)
    readings, codes = done.stderr.splitlines()
    assert readings.split() == READINGS
    # Not reset; the start of control 4 is not known; so still not reset; the first start is infinite.
    assert codes.split() == ["3", "4", "3", "1"]


CPP_PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include "policy_runner.hpp"

bool read(std::istream& line, std::vector<float>& values, char end) {
    std::string text, word;
    std::getline(line, text, end);
    std::istringstream words(text);
    values.clear();
    while (words >> word && word != "late") values.push_back(std::strtof(word.c_str(), nullptr));
    return text != "late";
}

int main(int, char** arguments) {
    Policy policy(arguments[1]);
    try {
        PolicyRunner runner(policy);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\\n", error.what());
    }
    PolicyRunner runner(policy, {{"far", 0.0F}});
    for (const std::string& name : runner.readings()) std::fprintf(stderr, "%s ", name.c_str());
    std::ifstream sequence(arguments[2]);
    const char* words[] = {"ok", "late", "not_finite"};
    std::vector<float> readings, goal;
    for (std::string line; std::getline(sequence, line);) {
        std::istringstream text(line);
        if (line.rfind("reset ", 0) == 0) {
            PolicyRunner::Start start;
            std::string name;
            float value = 0.0F;
            text >> name;
            while (text >> name >> value) start[name] = value;
            runner.reset(start);
            continue;
        }
        const bool has_readings = read(text, readings, ';'), has_goal = read(text, goal, '\\n');
        const auto status = runner.step(has_readings ? &readings : nullptr, has_goal ? &goal : nullptr);
        std::printf("%s %zu", words[static_cast<int>(status)], runner.held());
        for (const float value : runner.control()) std::printf(" %.9g", value);
        std::printf("\\n");
    }
}
"""


@pytest.mark.slow
def test_the_cpp_runner_does_the_sequence(cpp_runner: Path, tmp_path: Path) -> None:
    required("cmake", "c++")
    folder = tmp_path / "source"
    shutil.copytree(DEPLOY / "cpp", folder)
    (folder / "run_policy.cpp").write_text(CPP_PROGRAM)
    succeeded("cmake", "-S", folder, "-B", tmp_path / "build", f"-DOpenVINO_DIR={openvino_cmake()}")
    succeeded("cmake", "--build", tmp_path / "build")
    policy, ticks = write_sequence_policy(tmp_path / "policy.onnx"), sequence()
    (tmp_path / "sequence.txt").write_text(written(ticks))
    done = started(tmp_path / "build/run_policy", policy, tmp_path / "sequence.txt")
    assert done.returncode == 0, done.stderr
    check_printed(done.stdout, ticks)
    refusal, readings = done.stderr.splitlines()
    assert refusal == "give the start of actuator far: where it stands"
    assert readings.split() == READINGS
    assert golden_figures(succeeded(cpp_runner, policy))[0] == 16
