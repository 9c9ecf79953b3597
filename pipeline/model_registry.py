"""Models in MLflow's registry that its pyfunc loads without pickle, with aliases that say what is in use."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.ground.errors import MissingArtifactError, MissingExtraError, UserError
from thousandfold.ground.files import file_sha256
from thousandfold.pipeline.tracking_store import mlflow_is_installed, one_line, open_store

CANDIDATE_ALIAS = "candidate"
"""What was exported last."""
PRODUCTION_ALIAS = "production"
"""What was verified and is in use."""
ARTIFACT_TAG = "artifact"
"""Of a version: the artifact that it was registered from."""

_MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class Promotion:
    """The version that had an alias, None where none had, and the one that has it now."""

    before: str | None
    after: str


def write_onnx_model(
    folder: Path, file: Path, outputs: Mapping[str, int], example: Mapping[str, np.ndarray]
) -> None:
    """Write a model of MLflow's ONNX flavour: signature, input example, and the file as it is.

    Args:
        folder: where; it must not exist yet.
        file: the ONNX file, with all of its weights inside.
        outputs: how many numbers each output has.
        example: rows of each input, (n, size) float32.
    """
    import onnx
    from mlflow import onnx as onnx_flavour  # pyright: ignore[reportPrivateImportUsage]

    onnx_flavour.save_model(
        onnx.load(file),
        str(folder),
        **_described(outputs, example, "onnx", "onnxruntime", "numpy"),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        save_as_external_data=False,
    )
    # Byte for byte: protobuf may write the same message in another order, and so with another hash.
    shutil.copyfile(file, folder / _MODEL_FILE)


def write_network_model(
    folder: Path,
    file: Path,
    loader_module: str,
    outputs: Mapping[str, int],
    example: Mapping[str, np.ndarray],
) -> None:
    """Write a model that pyfunc loads with a module of this package: its file, signature and input example.

    MLflow's flavour of PyTorch would pickle the network, and a model from code would run a copy of a script.
    A loader module reads the file as it is.

    Args:
        folder: where; it must not exist yet.
        file: the network, as the loader module's `_load_pyfunc` reads it.
        loader_module: its name.
        outputs, example: as of `write_onnx_model`.
    """
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=loader_module,
        data_path=str(file),
        **_described(outputs, example, "torch", "safetensors", "numpy"),
    )


def _described(
    outputs: Mapping[str, int], example: Mapping[str, np.ndarray], *packages: str
) -> dict[str, Any]:
    """Return the arguments that tell MLflow what a model takes, gives and needs."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(sizes: Mapping[str, int]) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, size), name) for name, size in sizes.items()])

    versions = (f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", *packages))
    return {
        "signature": ModelSignature(schema({k: v.shape[1] for k, v in example.items()}), schema(outputs)),
        "input_example": dict(example),
        "pip_requirements": [version.partition("+")[0] for version in versions],  # no build's local part
    }


def promote(
    workspace_root: Path,
    model: str,
    artifact: str,
    file: Path,
    tags: Mapping[str, Any],
    say: Callable[[str], None],
) -> Promotion:
    """Move the alias `production` to the version that was registered from an artifact.

    Args:
        workspace_root: whose tracking store to use.
        model, artifact: names.
        file: the artifact's policy file, which must be the registered one.
        tags: what to note on the version.
        say: takes lines about a store that is waited for, upgraded or mended.

    Raises:
        MissingExtraError: MLflow is not installed.
        MissingArtifactError: no version was registered from the artifact, or from another file.
        UserError: the store cannot be opened or fails.
    """
    if not mlflow_is_installed():
        raise MissingExtraError('The registry needs MLflow: pip install "thousandfold[train]".')
    from mlflow.artifacts import download_artifacts

    client, _ = open_store(workspace_root, say)
    try:
        found = [
            version
            for version in client.search_model_versions(f"name = '{model}'")
            if version.tags.get(ARTIFACT_TAG) == artifact
        ]
        if not found:
            raise MissingArtifactError(
                f"{artifact} is not registered as {model}: export it again, with MLflow installed and its "
                "store within reach."
            )
        version = max(found, key=lambda version: int(version.version))
        source = client.get_model_version_download_uri(model, version.version)
        registered = download_artifacts(f"{source}/{_MODEL_FILE}", tracking_uri=client.tracking_uri)
        if file_sha256(Path(registered)) != file_sha256(file):
            raise MissingArtifactError(
                f"Version {version.version} of {model} in the registry is not {file}: export it again."
            )
        before = client.get_registered_model(model).aliases.get(PRODUCTION_ALIAS)
        for key, value in tags.items():
            client.set_model_version_tag(model, version.version, key, str(value))
        client.set_registered_model_alias(model, PRODUCTION_ALIAS, version.version)
        return Promotion(None if before is None else str(before), str(version.version))
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, the network: each has errors of its own
        raise UserError(
            f"The registry failed, and where the alias points is unknown: {one_line(error)}"
        ) from error
