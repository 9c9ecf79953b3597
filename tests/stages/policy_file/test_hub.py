"""`policy push` and `policy pull` against a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import constants

import thousandfold
from tests.pipeline.test_cli import error_of, invoke, json_of
from tests.stages.policy_file.fake_hub import READER, WRITER, FakeHub, running_hub
from tests.stages.policy_file.handmade_policy import metadata, policy_artifact, tamper, write_policy
from tests.stages.policy_file.test_source import sledge_policy, write_sledge
from thousandfold.envs.registry import compile_task
from thousandfold.envs.user_tasks.task_copy import copy_task
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.policy_file.hub_card import model_card
from thousandfold.stages.policy_file.metadata import PolicyMetadata
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.signature import signed
from thousandfold.stages.policy_file.source import open_source

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
REPO = "me/u-maze"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """An empty hub, and a token at hand that may write."""
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "honest.onnx")


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


class TestPushAndPull:
    def test_a_policy_comes_back_as_it_was(self, hub: FakeHub, tmp_path: Path) -> None:
        artifact = policy_artifact(tmp_path)
        pushed = invoke(tmp_path, "policy", "push", "newest", REPO, "--message", "First one")
        assert f"{hub.endpoint}/{REPO}" in pushed.output and WRITER not in pushed.output
        files = hub.repositories[REPO]["main"]
        assert files["policy.onnx"] == artifact.file("policy.onnx").read_bytes()
        assert hub.commits == [("First one", "main")] and REPO not in hub.private

        pulled = invoke(tmp_path, "policy", "pull", REPO)
        assert "pipeline run-policy --policy u-maze/policy.onnx" in pulled.output
        assert sorted(path.name for path in (tmp_path / "u-maze").iterdir()) == ["README.md", "policy.onnx"]
        assert not list(tmp_path.glob(".tmp*"))
        action = thousandfold.load(tmp_path / "u-maze" / "policy.onnx").predict([0, 0, 0, 0], [1, 1])
        assert action.shape == (2,)

    def test_a_private_branch(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        options = ("--private", "--revision", "v2", "--json")
        told = json_of(invoke(tmp_path, "policy", "push", str(honest), "u-maze", *options))
        assert told["repository"] == REPO and told["revision"] == "v2" and REPO in hub.private
        assert "policy.onnx" in hub.repositories[REPO]["v2"] and not hub.repositories[REPO]["main"]
        out = ("--out", str(tmp_path / "deep" / "here"))
        got = json_of(invoke(tmp_path, "policy", "pull", REPO, "--revision", "v2", *out, "--json"))
        assert got["commit"] == told["commit"] and Path(got["path"]).read_bytes() == honest.read_bytes()

    def test_a_public_repository_is_not_taken_for_a_private_one(
        self, hub: FakeHub, honest: Path, tmp_path: Path
    ) -> None:
        invoke(tmp_path, "policy", "push", str(honest), REPO)
        before = dict(hub.repositories[REPO]["main"])
        result = invoke(tmp_path, "policy", "push", str(honest), REPO, "--private", code=2)
        assert "is public" in error_of(result) and hub.repositories[REPO]["main"] == before

    def test_a_task_of_ones_own_travels_along(self, hub: FakeHub, tmp_path: Path) -> None:
        page = write_sledge(tmp_path / "mine")
        (tmp_path / "made").mkdir()
        path = Path(sledge_policy(tmp_path / "made" / "policy.onnx", page))
        copy_task(compile_task(page), path.parent / "task")
        invoke(tmp_path, "policy", "push", str(path), "me/sledge")
        files = hub.repositories["me/sledge"]["main"]
        assert {"task/task.yaml", "task/model/sledge.xml"} < files.keys()
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        invoke(tmp_path, "policy", "pull", "me/sledge")
        assert open_source(Workspace(tmp_path), "sledge/policy.onnx").task.name == "sledge"

        files["task/model/sledge.xml"] = files["task/model/sledge.xml"].replace(b'mass="1.0"', b'mass="2"')
        result = invoke(tmp_path, "policy", "pull", "me/sledge", "--out", "again", code=2)
        assert "model" in error_of(result) and not (tmp_path / "again").exists()

    def test_without_its_task_that_is_said(self, hub: FakeHub, tmp_path: Path) -> None:
        path = sledge_policy(tmp_path / "sledge.onnx", write_sledge(tmp_path / "mine"))
        assert "must give the task" in invoke(tmp_path, "policy", "push", path, "me/sledge").output
        assert "--task YOUR_TASK.yaml" in invoke(tmp_path, "policy", "pull", "me/sledge").output
        assert "--task YOUR_TASK.yaml" in hub.repositories["me/sledge"]["main"]["README.md"].decode()


class TestCard:
    def test_the_page_says_what_the_file_does(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        invoke(tmp_path, "policy", "push", str(honest), REPO)
        card = hub.repositories[REPO]["main"]["README.md"].decode()
        found = front_matter(card)
        assert (found["license"], found["library_name"]) == ("cc0-1.0", "thousandfold")
        assert found["pipeline_tag"] == "reinforcement-learning" and "point_u_maze" in found["tags"]
        (result,) = found["model-index"][0]["results"]
        assert result["dataset"]["name"] == "point_u_maze" and result["metrics"][0]["value"] == 0.9
        assert "**0.900** of 256 fresh simulated episodes" in card and "[0.850, 0.950]" in card
        assert f"pipeline policy pull {REPO}" in card and "### `observation` (4)" in card
        assert read_model(honest).graph_sha256 in card

    @pytest.mark.parametrize(
        ("licence", "expected"),
        [
            ("", (None, None)),
            ("Apache-2.0", ("apache-2.0", None)),
            ("Ask: me", ("other", "Ask: me")),
        ],
    )
    def test_licences(self, licence: str, expected: tuple[str | None, str | None]) -> None:
        found = front_matter(
            model_card(REPO, PolicyMetadata(**metadata(licence=licence, evaluation=None)), {})
        )
        assert (found.get("license"), found.get("license_name")) == expected and "model-index" not in found

    def test_names_stay_within_their_cells(self) -> None:
        element = {"name": "a | b\n# c <img>", "unit": "", "low": -1.0, "high": 1.0}
        outputs = metadata()["outputs"] | {"action": [element, element]}
        card = model_card(REPO, PolicyMetadata(**metadata(outputs=outputs)), {})
        assert "| 0 | a / b # c &lt;img&gt; |  | -1 | 1 |" in card

    def test_latency_of_a_benchmark(self) -> None:
        timed = {"back_to_back": {"p50_us": 12.4, "p99_us": 20.6}}
        report = {"networks": {"student": timed}, "host": {"cpu": "A CPU"}}
        card = model_card(REPO, PolicyMetadata(**metadata()), {}, benchmark=report)
        assert "12 µs at the median and 21 µs" in card and "A CPU" in card


class TestRefusals:
    def test_a_changed_policy_is_not_pushed(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        assert "changed" in error_of(invoke(tmp_path, "policy", "push", str(tamper(honest)), REPO, code=2))
        assert hub.repositories == {}

    def test_a_changed_policy_is_not_pulled(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        hub.repositories[REPO] = {"main": {"policy.onnx": tamper(honest).read_bytes()}}
        error = error_of(invoke(tmp_path, "policy", "pull", REPO, code=2))
        assert f"{REPO}/policy.onnx was changed" in error and not (tmp_path / "u-maze").exists()
        assert not list(tmp_path.glob(".tmp*"))

    def test_a_trusted_key_is_required(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = tmp_path / "robot.pub"
        public.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        hub.repositories[REPO] = {"main": {"policy.onnx": honest.read_bytes()}}
        pull = ("policy", "pull", REPO, "--trusted", str(public))
        assert "not signed" in error_of(invoke(tmp_path, *pull, code=2))
        hub.repositories[REPO]["main"]["policy.onnx"] = signed(honest.read_bytes(), KEY)
        invoke(tmp_path, *pull)

    @pytest.mark.parametrize("name", ["task/../../evil.xml", "/evil", "task\\..\\evil"])
    def test_a_file_outside_the_folder_is_not_fetched(
        self, hub: FakeHub, honest: Path, tmp_path: Path, name: str
    ) -> None:
        hub.repositories[REPO] = {"main": {"policy.onnx": honest.read_bytes(), name: b"evil"}}
        assert "outside its folder" in error_of(invoke(tmp_path, "policy", "pull", REPO, code=2))

    def test_other_files_are_left_out(self, hub: FakeHub, honest: Path, tmp_path: Path) -> None:
        content = {"policy.onnx": honest.read_bytes(), "setup.py": b"import os", "task.py": b""}
        hub.repositories[REPO] = {"main": content}
        invoke(tmp_path, "policy", "pull", REPO)
        assert [path.name for path in (tmp_path / "u-maze").iterdir()] == ["policy.onnx"]

    def test_a_folder_that_exists_is_kept(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "u-maze").mkdir()
        assert "another --out" in error_of(invoke(tmp_path, "policy", "pull", REPO, code=2))

    @pytest.mark.parametrize(
        ("token", "command", "said"),
        [
            (WRITER, ("pull", "me/nothing"), "has no me/nothing"),
            (WRITER, ("pull", "me/empty"), "has no policy.onnx"),
            (WRITER, ("pull", "me/empty", "--revision", "v9"), "no such --revision"),
            (WRITER, ("pull", "a/b/c"), "is no name of a repository"),
            ("hf_wrong", ("pull", "me/empty"), "does not accept your token"),
            ("hf_wrong", ("push", "honest.onnx", REPO), "does not accept your token"),
            (READER, ("push", "honest.onnx", REPO), "use a token with access"),
            ("", ("push", "honest.onnx", REPO), "hf auth login"),
            ("", ("pull", "me/secret"), "hf auth login"),
        ],
    )
    def test_what_the_hub_refuses_is_one_line(
        self,
        hub: FakeHub,
        honest: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        token: str,
        command: tuple[str, ...],
        said: str,
    ) -> None:
        hub.repositories |= {"me/empty": {"main": {}}, "me/secret": {"main": {}}}
        hub.private.add("me/secret")
        monkeypatch.setenv("HF_TOKEN", token)
        error = error_of(invoke(tmp_path, "policy", *command, code=2))
        assert said in error and "hf_w" not in error

    def test_no_network_is_one_line(
        self, hub: FakeHub, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for command in (("pull", REPO), ("push", "honest.onnx", REPO)):
            assert "127.0.0.1:9 does not answer" in error_of(invoke(tmp_path, "policy", *command, code=2))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in error_of(invoke(tmp_path, "policy", "pull", REPO, code=2))
