"""A registered teacher or student: MLflow loads it, without pickle, and it acts as the artifact does."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.stages.untrained_networks import make_network
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.tracking import open_tracker
from thousandfold.stages.network_model import register_network
from thousandfold.stages.networks import load_actor, torch_policy


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_pyfunc_loads_it_and_predicts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    artifact = make_network(workspace, kind)
    trained, warnings = load_actor(artifact), []
    with open_tracker(workspace.root, warnings.append).stage(kind, name=artifact.name) as run:
        register_network(run, artifact, trained.task, {"cell": "4x8"})
    assert warnings == []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root}/mlflow/mlflow.db")
    client, name = MlflowClient(), f"{kind}-point_u_maze"
    version = client.get_model_version_by_alias(name, "newest")
    assert version.tags == {"artifact": artifact.name, "cell": "4x8"}
    assert version.description == f"`{artifact.name}`: success 0.750."
    assert f"Each version is a {kind} of task point_u_maze" in client.get_registered_model(name).description

    model = mlflow.pyfunc.load_model(f"models:/{name}@newest")
    inputs, outputs = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert [(spec.name, spec.shape) for spec in inputs] == [("observation", (-1, 4)), ("goal", (-1, 2))]
    assert [(spec.name, spec.shape) for spec in outputs] == [("action", (-1, 2))]
    example = {key: np.asarray(rows, np.float32) for key, rows in model.input_example.items()}
    action = model.predict(example)["action"]
    assert np.array_equal(action, torch_policy(trained.actor)(example["observation"], example["goal"]))
    assert action.shape == (2, 2) and np.any(action[0] != action[1])

    folder = Path(unquote(version.source.removeprefix("file://")))
    assert yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]["loader_module"]
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert (folder / "data" / "network.safetensors").read_bytes() == artifact.file(
        "network.safetensors"
    ).read_bytes()
