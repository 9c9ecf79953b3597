"""The JSON schema of a policy file's metadata, made from the classes that read it.

`python -m thousandfold.stages.policy_file.schema > docs/policy-format.schema.json` writes it.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic.json_schema import models_json_schema

from thousandfold.stages.policy_file import golden, metadata
from thousandfold.stages.policy_file.golden import GoldenSet
from thousandfold.stages.policy_file.metadata import METADATA_VERSION, PAST_VERSION, SHA256, PolicyMetadata
from thousandfold.stages.policy_file.onnx_bytes import GOLDEN_KEY, METADATA_KEY, POLICY_HASH_KEY

_TEXTS = {METADATA_KEY: PolicyMetadata, GOLDEN_KEY: GoldenSet}
_HASH = {
    "type": "string",
    "pattern": SHA256,
    "description": "SHA-256 over the graph's hash and both texts; no JSON, but the digits alone",
}


def policy_schema() -> dict[str, Any]:
    """Return a schema of one object: a policy file's ONNX metadata by its keys, its JSON texts parsed."""
    named, definitions = models_json_schema([(model, "validation") for model in _TEXTS.values()])
    definitions = definitions["$defs"]
    for name, fields in _attribute_docstrings(metadata, golden).items():
        for attribute, text in fields.items():
            if name in definitions:
                definitions[name]["properties"][attribute]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Metadata of a Thousandfold policy file, format {METADATA_VERSION} or {PAST_VERSION}",
        "type": "object",
        "properties": {key: named[model, "validation"] for key, model in _TEXTS.items()}
        | {POLICY_HASH_KEY: _HASH},
        "required": [*_TEXTS, POLICY_HASH_KEY],
        "$defs": definitions,
    }


def _attribute_docstrings(*modules: ModuleType) -> dict[str, dict[str, str]]:
    """Return what stands below each attribute, by class and attribute.

    Read from the source here alone: pydantic would do so whenever a robot opens a policy.
    """
    found: dict[str, dict[str, str]] = {}
    for module in modules:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            inherited = [found.get(base.id, {}) for base in cls.bases if isinstance(base, ast.Name)]
            found[cls.name] = {name: text for fields in inherited for name, text in fields.items()} | {
                attribute.target.id: text.value.value
                for attribute, text in zip(cls.body, cls.body[1:], strict=False)
                if isinstance(attribute, ast.AnnAssign)
                and isinstance(attribute.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n")
