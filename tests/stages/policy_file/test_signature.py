"""Signed policy files: keys, copies, checks, and that nothing passes which a trusted key did not sign."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import thousandfold
from tests.pipeline.test_cli import invoke
from tests.stages.policy_file.handmade_policy import metadata, policy_artifact, tamper, write_policy
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.policy_file.onnx_bytes import read_content, read_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.signature import (
    SIZE,
    check_signature,
    read_private_key,
    read_public_key,
    signed,
    split_signature,
    write_new_key,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key().public_bytes_raw()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_policy(tmp_path / "unsigned.onnx").read_bytes()


def changed(place: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]

    return change


def as_another(content: bytes) -> bytes:
    """Name the trusted key beside another key's signature."""
    signature = base64.b64decode(signed(content, OTHER)[-128:])[32:]
    return signed(content, KEY)[:-128] + base64.b64encode(PUBLIC + signature)


FORGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a weight": (lambda c: changed(200)(signed(c, KEY)), "was changed after it was signed"),
    "the last byte before": (
        lambda c: changed(len(c) - 1)(signed(c, KEY)),
        "was changed after it was signed",
    ),
    "cut short": (lambda c: signed(c, KEY)[1:], "was changed after it was signed"),
    "something after": (
        lambda c: signed(c, KEY) + b"\x72\x04\x0a\x00\x12\x00",
        "signature is not at its end",
    ),
    "its beginning": (lambda c: changed(len(c) + 3)(signed(c, KEY)), "signature is not at its end"),
    "its text": (lambda c: signed(c, KEY)[:-1] + b"!", "signature is not at its end"),
    "a forged one": (as_another, "was changed after it was signed"),
    "another key": (lambda c: signed(c, OTHER), "which is not a trusted key"),
    "none": (lambda c: c, "is not signed, and a trusted key is required"),
}


class TestSignature:
    def test_a_signed_file_is_a_policy_like_before(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "signed.onnx"
        path.write_bytes(signed(content, KEY))
        policy = OnnxPolicy(path, trusted=[OTHER.public_key().public_bytes_raw(), PUBLIC])
        plain = OnnxPolicy(tmp_path / "unsigned.onnx")
        row = np.ones((1, 4)), np.ones((1, 2))
        assert np.array_equal(policy(*row), plain(*row))
        assert read_model(path).policy_sha256 == read_model(plain.path).policy_sha256
        texts = {entry.key for entry in onnx.load(path).metadata_props}
        assert texts >= {"thousandfold", "thousandfold_signature"}
        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert base64.b64decode(found["thousandfold_signature"])[:32] == PUBLIC

    def test_signing_again_replaces_the_signature(self, content: bytes) -> None:
        twice = signed(signed(content, OTHER), KEY)
        assert twice == signed(content, KEY) and len(twice) == len(content) + SIZE
        assert split_signature(twice)[0] == content

    @pytest.mark.parametrize("name", FORGED)
    def test_what_the_key_did_not_sign_is_refused(self, name: str, content: bytes, tmp_path: Path) -> None:
        forge, said = FORGED[name]
        path = tmp_path / "forged.onnx"
        path.write_bytes(forge(content))
        with pytest.raises(DamagedFileError, match=said):
            OnnxPolicy(path, trusted=[PUBLIC])

    def test_without_a_trusted_key_a_signature_must_still_hold(self, content: bytes) -> None:
        assert check_signature(content, (), "it") == "not signed"
        assert base64.b64encode(PUBLIC).decode() in check_signature(signed(content, KEY), (), "it")
        with pytest.raises(DamagedFileError, match="was changed after it was signed"):
            check_signature(changed(200)(signed(content, KEY)), (), "it")

    def test_it_is_what_openssl_takes_for_one(self, content: bytes, tmp_path: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        write_new_key(tmp_path / "key", tmp_path / "key.pub")
        signature = split_signature(signed(content, read_private_key(tmp_path / "key")))[1]
        assert signature is not None
        (tmp_path / "signature").write_bytes(signature.value)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin"]
        files = ["-in", "unsigned.onnx", "-sigfile", "signature"]
        done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Verified Successfully" in done.stdout, done.stderr


class TestKeys:
    def test_a_new_key_is_its_owners_alone_and_never_replaced(self, tmp_path: Path) -> None:
        private, public = tmp_path / "sub/robot", tmp_path / "sub/robot.pub"
        key = write_new_key(private, public)
        assert private.stat().st_mode & 0o777 == 0o600
        assert read_public_key(public) == key == read_private_key(private).public_key().public_bytes_raw()
        before = private.read_bytes()
        with pytest.raises(UserError, match="never replaced"):
            write_new_key(private, tmp_path / "other.pub")
        assert private.read_bytes() == before and not (tmp_path / "other.pub").exists()

    def test_a_passphrase_is_needed_and_must_be_right(self, tmp_path: Path) -> None:
        write_new_key(tmp_path / "key", tmp_path / "key.pub", "correct horse")
        assert read_private_key(tmp_path / "key", "correct horse")
        with pytest.raises(UserError, match="cannot be read with this passphrase"):
            read_private_key(tmp_path / "key", "wrong")
        with pytest.raises(UserError, match="is encrypted"):
            read_private_key(tmp_path / "key")

    def test_what_is_no_key_is_refused(self, tmp_path: Path) -> None:
        write_new_key(tmp_path / "key", tmp_path / "key.pub")
        (tmp_path / "text").write_text("no key")
        with pytest.raises(UserError, match="is a private key"):
            read_public_key(tmp_path / "key")
        for path in (tmp_path / "text", tmp_path / "key.pub"):
            with pytest.raises(UserError, match="is no private Ed25519 key"):
                read_private_key(path)
        with pytest.raises(UserError, match="is no public Ed25519 key"):
            read_public_key(tmp_path / "text")
        with pytest.raises(UserError, match="is no file"):
            read_public_key(tmp_path)


class TestCommands:
    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys/robot"
        said = invoke(tmp_path / "none", "policy", "new-key", str(path)).stdout
        assert base64.b64encode(read_public_key(path.with_name("robot.pub"))).decode() in said
        return path

    def refused(self, workspace: Path, *arguments: str, code: int = 2) -> str:
        done = invoke(workspace, *arguments, code=code)
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
        assert "Traceback" not in done.output
        return line

    def test_an_artifacts_policy_is_signed_verified_and_run(self, tmp_path: Path, key: Path) -> None:
        workspace, out, public = tmp_path / "w", tmp_path / "out/robot.onnx", f"{key}.pub"
        artifact = Workspace(workspace).create("policy", task="point_u_maze", settings={})
        write_policy(artifact.file("policy.onnx"), json.dumps(metadata(evaluation=None)))
        artifact.complete({})
        invoke(workspace, "policy", "sign", artifact.name, "--key", str(key), "--out", str(out))
        artifact.verify()
        check_signature(read_content(out), [read_public_key(Path(public))], "it")
        inspected = json.loads(
            invoke(workspace, "policy", "inspect", str(out), "--json").stdout.splitlines()[-1]
        )
        assert inspected["signed_with"] in invoke(workspace, "policy", "inspect", str(out)).stdout
        run = ("run-policy", "--policy", str(out), "--fast", "--episodes", "1", "--viewer", "off")
        invoke(workspace, *run, "--trusted", public)
        assert thousandfold.load(out, trusted=public).metadata["task"] == "point_u_maze"
        for trusted, name, passed in (
            (("--trusted", public), str(out), True),
            ((), str(out), True),
            ((), artifact.name, None),
            (("--trusted", public), artifact.name, False),
        ):
            verify = ("policy", "verify", name, "--episodes", "1", *trusted, "--json")
            found = json.loads(
                invoke(workspace, *verify, code=1 if passed is False else 0).stdout.splitlines()[-1]
            )
            checks = {check["name"]: check["passed"] for check in found["checks"]}
            assert checks["signature"] is passed, (trusted, name)

    def test_run_policy_and_load_refuse_what_is_not_trusted(
        self, content: bytes, tmp_path: Path, key: Path
    ) -> None:
        path, public = tmp_path / "foreign.onnx", f"{key}.pub"
        path.write_bytes(signed(content, KEY))
        run = ("run-policy", "--policy", str(path), "--fast", "--episodes", "1", "--viewer", "off")
        assert "which is not a trusted key" in self.refused(tmp_path, *run, "--trusted", public)
        with pytest.raises(UserError, match="which is not a trusted key"):
            thousandfold.load(path, trusted=public)

    def test_what_was_changed_is_not_signed(self, tmp_path: Path, key: Path) -> None:
        path = tamper(write_policy(tmp_path / "policy.onnx"))
        sign = ("policy", "sign", str(path), "--key", str(key), "--out", str(tmp_path / "out.onnx"))
        assert "was changed since it was exported" in self.refused(tmp_path / "none", *sign)
        assert not (tmp_path / "out.onnx").exists()

    @pytest.mark.parametrize("name", ["a weight", "something after"])
    def test_what_was_changed_after_it_was_signed_is_not_signed_again(
        self, name: str, content: bytes, tmp_path: Path, key: Path
    ) -> None:
        path = tmp_path / "policy.onnx"
        path.write_bytes(FORGED[name][0](content))
        sign = ("policy", "sign", str(path), "--key", str(key), "--out", str(tmp_path / "out.onnx"))
        assert "was changed after it was signed" in self.refused(tmp_path / "none", *sign)
        assert not (tmp_path / "out.onnx").exists()

    def test_no_key_in_a_workspace_and_no_copy_in_an_artifact(self, tmp_path: Path, key: Path) -> None:
        artifact = policy_artifact(tmp_path / "w")
        inside = str(tmp_path / "w/keys/robot")
        assert "lies in the workspace" in self.refused(tmp_path / "w", "policy", "new-key", inside)
        assert not Path(inside).exists()
        shutil.copytree(key.parent, tmp_path / "w/keys")
        sign = ("policy", "sign", artifact.name, "--key")
        line = self.refused(tmp_path / "w", *sign, inside, "--out", str(tmp_path / "out.onnx"))
        assert "lies in the workspace" in line
        line = self.refused(tmp_path / "w", *sign, str(key), "--out", str(artifact.file("policy.onnx")))
        assert "lies in an artifact" in line
        within = str(artifact.file("policy.onnx").parent / "task/copy.onnx")
        assert "lies in an artifact" in self.refused(tmp_path / "w", *sign, str(key), "--out", within)
        fresh = str(tmp_path / "fresh/keys/robot")
        assert "lies in the workspace" in self.refused(tmp_path / "fresh", "policy", "new-key", fresh)
        (tmp_path / "notes.txt").write_text("mine")
        line = self.refused(tmp_path / "w", *sign, str(key), "--out", str(tmp_path / "notes.txt"))
        assert "notes.txt is no policy file" in line and (tmp_path / "notes.txt").read_text() == "mine"
