"""What a policy file says of itself, the schema made of it, and the page that describes both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from tests.stages.policy_file.handmade_policy import edited, golden, metadata, write_policy
from thousandfold.stages.policy_file.golden import GoldenSet, control_bounds
from thousandfold.stages.policy_file.metadata import (
    InvalidMetadataError,
    PolicyMetadata,
    damaged_metadata,
    parse_metadata,
    shortest,
)
from thousandfold.stages.policy_file.schema import policy_schema

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "policy-format.md"


def test_the_shortest_number_is_the_same_float32() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    read = [json.loads(json.dumps(shortest(number))) for number in numbers]
    np.testing.assert_array_equal(np.array(read, np.float32), numbers)
    assert json.dumps(shortest(np.float32(0.1))) == "0.1"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"limit_low": -0.5}, "do not enclose its range"),
        ({"limit_high": 0.5}, "do not enclose its range"),
        ({"low": 2.0}, "do not enclose its range"),
        ({"limit_low": None}, "limit_low"),
        ({"high": "wide"}, "high"),
    ],
)
def test_limits_enclose_the_range(changes: dict[str, Any], where: str) -> None:
    whole = metadata()
    whole["inputs"]["observation"][1] |= changes
    with pytest.raises(InvalidMetadataError, match=where):
        parse_metadata(json.dumps(whole), Path("policy.onnx"))


@pytest.mark.parametrize("ends", [{"low": 0.08, "high": 0.0}, {"low": 0.0, "high": 0.08}])
def test_an_actuators_ends_may_run_either_way(ends: dict[str, float]) -> None:
    whole = metadata()
    whole["outputs"]["control"][1] |= ends
    found = parse_metadata(json.dumps(whole), Path("policy.onnx"))
    assert control_bounds(found)[1] == 0.08


@pytest.mark.parametrize(
    "changes",
    [
        {"non_finite": "ignore"},
        {"out_of_range": "refuse"},
        {"precision": "float64"},
        {"graph_sha256": "abc"},
        {"model_sha256": "X" * 64},
        {"opset": 0},
        {"control_dt_s": 5e-324},
        {"control_dt_s": 1e300},
        {"episode_steps": 10**20},
        {"evaluation": {"success": 1.5, "success_interval": [0, 1], "episodes": 4, "runtime": "torch"}},
    ],
)
def test_what_no_runner_could_keep_is_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(InvalidMetadataError, match=name):
        parse_metadata(json.dumps(metadata(**changes)), Path("policy.onnx"))


def test_a_message_is_one_line_that_names_the_place() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        PolicyMetadata.model_validate(metadata(control_dt_s=-1))
    message = str(damaged_metadata(Path("p.onnx"), caught.value))
    assert message.startswith("p.onnx has damaged metadata (control_dt_s: ") and "\n" not in message


def test_the_committed_schema_is_up_to_date() -> None:
    committed = json.loads((DOCS / "policy-format.schema.json").read_text(encoding="utf-8"))
    assert committed == policy_schema(), (
        "`python -m thousandfold.stages.policy_file.schema > docs/policy-format.schema.json` renews it"
    )


def test_every_field_of_the_schema_is_described() -> None:
    schema = policy_schema()
    for name, model in schema["$defs"].items():
        for field, facts in model["properties"].items():
            assert len(facts.get("description", "")) > 4, (name, field)
    wanted = schema["$defs"]["PolicyMetadata"]["required"]
    assert set(wanted) >= {"inputs", "graph_sha256", "non_finite", "evaluation"} and "licence" not in wanted


def test_the_page_names_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    fields = {*PolicyMetadata.model_fields, *GoldenSet.model_fields}
    fields |= {"limit_low", "limit_high", "low", "high", "unit", "success_interval", "episodes", "runtime"}
    assert [field for field in sorted(fields) if f"{field}" not in text] == []


def test_the_example_of_the_page_is_whole() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = parse_metadata(example, PAGE)
    assert found.model_dump(mode="json") == json.loads(example)


def test_the_python_of_the_page_runs_without_the_repository(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.onnx")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    hashes, golden_rows, parts = blocks[:3]

    def printed(code: str) -> str:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    assert printed(golden_rows) == "point_u_maze True\n"
    assert printed(parts + hashes) == "True\nTrue\n"
    edited(tmp_path / "policy.onnx", "thousandfold", lambda text: text.update(control_dt_s=0.2))
    assert printed(parts + hashes) == "True\nFalse\n"


def test_golden_rows_are_written_as_they_are() -> None:
    first = GoldenSet.model_validate(golden())
    again = GoldenSet.model_validate_json(first.model_dump_json())
    for one, other in zip(first.arrays(), again.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
