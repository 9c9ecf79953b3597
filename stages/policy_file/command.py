"""`pipeline policy`: look at a policy file, check it, sign it, share it, write it as C, put it into use."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thousandfold.ground.errors import UserError
from thousandfold.pipeline.command_help import PlainGroup
from thousandfold.pipeline.completion import complete_artifacts, complete_tasks
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.session import Session, json_option
from thousandfold.pipeline.settings import MOST_EPISODES

if TYPE_CHECKING:
    from thousandfold.pipeline.artifacts import Artifact
    from thousandfold.stages.policy_file.c_code import Weights
    from thousandfold.stages.policy_file.c_policy import CPolicy
    from thousandfold.stages.policy_file.onnx_bytes import ModelBytes
    from thousandfold.stages.policy_file.source import PolicyPlace
    from thousandfold.stages.policy_file.verification import Verification

_episodes_option = click.option(
    "--episodes",
    type=click.IntRange(1, MOST_EPISODES),
    default=256,
    show_default=True,
    help="Fresh episodes of the closed loop.",
)
_task_option = click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Name of a task, or the YAML file of your own task [default: the policy's].",
)
_seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the episodes."
)
trusted_option = click.option(
    "--trusted",
    metavar="KEY",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Public key, as new-key writes it: the file must be signed with it. Give several to allow each.",
)
_WORDS = {True: "passed", False: "FAILED", None: "not run"}


@click.group(cls=PlainGroup)
def policy() -> None:
    """Inspect, verify, sign, share and promote policy files, and write them as C."""


@policy.command()
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_artifacts("policy"))
@json_option
@click.pass_obj
def inspect(session: Session, name: str | None) -> None:
    """Show the metadata of POLICY: a path of an ONNX file, a name, or nothing for the newest."""
    with session.open(mujoco=True):
        from thousandfold.stages.policy_file.source import find_policy

        show_policy(session.console, find_policy(session.workspace, name))


@policy.command()
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_artifacts("policy"))
@_episodes_option
@_task_option
@_seed_option
@click.option("--robustness", is_flag=True, help="Also repeat the robustness card in the file.")
@trusted_option
@json_option
@click.pass_obj
def verify(
    session: Session,
    name: str | None,
    episodes: int,
    task: str | None,
    seed: int,
    robustness: bool,
    trusted: tuple[Path, ...],
) -> None:
    """Check POLICY: signature, hashes, description, golden rows, the task's model, success in closed loop.

    POLICY is a path of an ONNX file, a name, or nothing for the newest. Exits with 1 if a check failed.
    """
    with session.open(mujoco=True):
        from thousandfold.stages.policy_file.signature import read_public_key
        from thousandfold.stages.policy_file.source import find_policy

        place, keys = find_policy(session.workspace, name), [read_public_key(path) for path in trusted]
        found = _verified(session, place, episodes, task, seed, robustness, trusted=keys)
        session.console.result(found.results())
    sys.exit(bool(found.failed))


@policy.command("to-c")
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_artifacts("policy"))
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for policy.h and policy.c.",
)
@_episodes_option
@_task_option
@_seed_option
@click.option(
    "--weights",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="How to store the weights; int8 takes a third to a quarter of the flash.",
)
@click.option("--unchecked", is_flag=True, help="Write the files without compiling and checking them.")
@json_option
@click.pass_obj
def to_c(
    session: Session,
    name: str | None,
    folder: Path,
    episodes: int,
    task: str | None,
    seed: int,
    weights: Weights,
    unchecked: bool,
) -> None:
    """Write POLICY as C99, policy.h and policy.c, checked against the file before they are kept.

    POLICY is a path of an ONNX file, a name, or nothing for the newest. It is verified as by `verify`. Its C
    code is compiled here, must reproduce the golden rows (with int8 weights: be near them) and must do as
    well in equal episodes.
    """
    if weights == "int8" and unchecked:
        raise click.UsageError("int8 weights are compiled and checked: leave out --unchecked.")
    with session.open(mujoco=True):
        from thousandfold.ground.files import atomic_file
        from thousandfold.stages.policy_file.c_code import C_BEGINNING, HEADER, SOURCE, c_files
        from thousandfold.stages.policy_file.onnx_bytes import read_model
        from thousandfold.stages.policy_file.source import find_policy, open_policy

        place, folder = find_policy(session.workspace, name), folder.expanduser()
        model = read_model(place.path)
        written = {each: folder / each for each in (HEADER, SOURCE)}
        for path in filter(os.path.lexists, written.values()):
            if not path.is_file() or not path.read_bytes().startswith(C_BEGINNING):
                raise UserError(
                    f"{path} was not written by to-c, which would replace it: give another --out."
                )
        result: dict[str, Any] = {"policy": place.name, "sha256": model.policy_sha256, "verification": None}
        if unchecked:
            files = c_files(model, place.path)
            open_policy(place)
        else:
            files, found = _verified_in_c(session, place, model, weights, episodes, task, seed)
            result["verification"] = found.results()
        with contextlib.ExitStack() as whole:  # both or, but for a kill between two renames, none
            for each, path in written.items():
                whole.enter_context(atomic_file(path)).write_text(files[each], encoding="utf-8")
        said = "unchecked" if unchecked else "checked as compiled here"
        paths = {each: str(path) for each, path in written.items()}
        session.console.say(f"C code of {place.name}, {said}: {', '.join(paths.values())}.")
        session.console.result(result | {"files": paths})


def _verified_in_c(
    session: Session,
    place: PolicyPlace,
    model: ModelBytes,
    weights: Weights,
    episodes: int,
    task: str | None,
    seed: int,
) -> tuple[dict[str, str], Verification]:
    """Return a policy's C code, and what was found of both; raise UserError where a check fails."""
    from thousandfold.stages.policy_file.c_code import c_files
    from thousandfold.stages.policy_file.c_policy import CPolicy, NotCompiledError, int8_code
    from thousandfold.stages.policy_file.metadata import parse_metadata
    from thousandfold.stages.policy_file.onnx_bytes import METADATA_KEY

    with tempfile.TemporaryDirectory() as folder:
        try:
            if weights == "int8":
                files, c_policy = int8_code(model, place.path, Path(folder))
            else:
                metadata = parse_metadata(model.metadata.get(METADATA_KEY), place.path)
                files = c_files(model, place.path)
                c_policy = CPolicy(files, Path(folder), metadata)
        except NotCompiledError as error:
            without = " --unchecked writes the files nevertheless." if weights == "float32" else ""
            raise UserError(f"{error}: nothing was written.{without}") from None
        found = _verified(session, place, episodes, task, seed, c_policy=c_policy)
    if found.failed:
        wrong = "; ".join(f"{check.name} ({check.detail})" for check in found.failed)
        raise UserError(f"{place.name} is not written as C, because these checks failed: {wrong}")
    return files, found


@policy.command()
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_artifacts("policy"))
@_episodes_option
@_seed_option
@click.option("--teacher", is_flag=True, help="Allow an exported teacher, which is refused by default.")
@json_option
@click.pass_obj
def promote(session: Session, name: str | None, episodes: int, seed: int, teacher: bool) -> None:
    """Verify POLICY (a name, or nothing for the newest) and move the registry's alias `production` to it."""
    with session.open(mujoco=True):
        from thousandfold.pipeline.model_registry import PRODUCTION_ALIAS, promote
        from thousandfold.stages.policy_file.registration import registered_name
        from thousandfold.stages.policy_file.source import find_policy

        place = find_policy(session.workspace, name)
        artifact = _promotable(place, teacher)
        found = _verified(session, place, episodes, None, seed)
        if found.failed:
            wrong = "; ".join(f"{check.name} ({check.detail})" for check in found.failed)
            raise UserError(f"{place.name} is not promoted, because these checks failed: {wrong}")
        model = registered_name(artifact.manifest.task)
        loop = found.success
        success = f"{loop['success']:.4f} over {loop['episodes']} episodes, seed {loop['seed']}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        notes = {"verified_at": now, "verified_success": success}
        moved = promote(session.workspace.root, model, artifact.name, place.path, notes, session.console.say)
        was = f"from version {moved.before}" if moved.before else "which no version had"
        session.console.say(
            f"Alias {PRODUCTION_ALIAS} of {model}, {was}, is now on version {moved.after}: {artifact.name}."
        )
        session.console.result(
            {
                "policy": artifact.name,
                "model": model,
                "alias": PRODUCTION_ALIAS,
                "from_version": moved.before,
                "to_version": moved.after,
                "verification": found.results(),
            }
        )


@policy.command("new-key")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--encrypt", is_flag=True, help="Ask for a passphrase, and encrypt the private key with it.")
@json_option
@click.pass_obj
def new_key(session: Session, path: Path, encrypt: bool) -> None:
    """Write a new key for `sign`: the private key to FILE, the public one to FILE.pub."""
    with session.open():
        from thousandfold.stages.policy_file.signature import show_key, write_new_key

        private = _outside_workspace(session, path)
        passphrase = (
            click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
            if encrypt
            else None
        )
        public = private.with_name(f"{private.name}.pub")
        key = show_key(write_new_key(private, public, passphrase))
        session.console.say(
            f"Wrote {private}, which signs and stays with you, and {public}, which robots trust: {key}."
        )
        session.console.result({"private_key": str(private), "public_key": str(public), "key": key})


@policy.command()
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_artifacts("policy"))
@click.option(
    "--key",
    metavar="KEY",
    type=click.Path(path_type=Path),
    required=True,
    help="Private key, as new-key writes it.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File for the signed copy.",
)
@json_option
@click.pass_obj
def sign(session: Session, name: str | None, key: Path, out: Path) -> None:
    """Write a copy of POLICY that is signed with KEY, for `verify`, `run-policy` and robots that require it.

    POLICY is a path of an ONNX file, a name, or nothing for the newest. Its hashes and golden rows are
    checked before. The files of an artifact stay as they are: give a place outside.
    """
    with session.open():
        from thousandfold.ground.files import write_atomic
        from thousandfold.pipeline.artifacts import MANIFEST_NAME
        from thousandfold.stages.policy_file import signature
        from thousandfold.stages.policy_file.onnx_bytes import METADATA_KEY, read_content
        from thousandfold.stages.policy_file.source import find_policy, open_policy

        place, out = find_policy(session.workspace, name), out.expanduser()
        private = _outside_workspace(session, key)
        if any((folder / MANIFEST_NAME).exists() for folder in out.absolute().parents):
            raise UserError(f"{out} lies in an artifact, whose files stay as they are: give another --out.")
        if os.path.lexists(out) and METADATA_KEY.encode() not in (out.read_bytes() if out.is_file() else b""):
            raise UserError(f"{out} is no policy file, and sign would replace it: give another --out.")
        content = read_content(place.path)
        signature.check_signature(content, (), place.name)
        open_policy(place, content=content)
        try:
            signing_key = signature.read_private_key(private)
        except signature.PassphraseNeededError:
            passphrase = click.prompt(f"Passphrase of {private}", hide_input=True, err=True)
            signing_key = signature.read_private_key(private, passphrase)
        write_atomic(out, signature.signed(content, signing_key))
        shown = signature.show_key(signing_key.public_key().public_bytes_raw())
        session.console.say(f"Wrote {out}: {place.name}, signed with {shown}.")
        session.console.result({"policy": place.name, "path": str(out), "key": shown})


@policy.command()
@click.argument("name", metavar="POLICY", shell_complete=complete_artifacts("policy"))
@click.argument("repository", metavar="REPO")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--message", metavar="TEXT", help="Message of the commit.")
@click.option("--revision", metavar="NAME", help="Branch to write to, made if needed [default: main].")
@json_option
@click.pass_obj
def push(
    session: Session, name: str, repository: str, private: bool, message: str | None, revision: str | None
) -> None:
    """Write POLICY to the repository REPO of the Hugging Face Hub, with a page and a task of your own.

    POLICY is a path of an ONNX file, a name, or `newest`. Its hashes and golden rows are checked before. REPO
    is NAMESPACE/NAME, and is made if needed. Log in with `hf auth login`, or set HF_TOKEN.
    """
    with session.open(mujoco=True):
        from thousandfold.stages.policy_file.hub import push_policy
        from thousandfold.stages.policy_file.source import find_policy

        place = find_policy(session.workspace, name)
        pushed = push_policy(
            session.workspace, place, repository, private=private, message=message, revision=revision
        )
        if pushed["needs_task"]:
            session.console.warn(
                f"{place.name} is for a task of your own, whose folder `task` does not lie beside it: who "
                "pulls the policy must give the task with --task."
            )
        session.console.say(f"Pushed {place.name} to {pushed['url']} ({', '.join(pushed['files'])}).")
        session.console.result({"policy": place.name, **pushed})


@policy.command()
@click.argument("repository", metavar="REPO")
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="New folder for the policy [default: the repository's name].",
)
@click.option("--revision", metavar="NAME", help="Branch, tag or commit to read [default: main].")
@trusted_option
@json_option
@click.pass_obj
def pull(
    session: Session, repository: str, folder: Path | None, revision: str | None, trusted: tuple[Path, ...]
) -> None:
    """Fetch a policy from the repository REPO of the Hugging Face Hub, NAMESPACE/NAME, to a new folder.

    Its signature, hashes and golden rows, and the task beside it, are checked before the folder appears.
    """
    with session.open(mujoco=True):
        from thousandfold.stages.policy_file.hub import pull_policy
        from thousandfold.stages.policy_file.signature import read_public_key

        folder = (folder or Path(repository.rpartition("/")[2])).expanduser()
        keys = [read_public_key(path) for path in trusted]
        pulled = pull_policy(repository, folder, revision=revision, trusted=keys)
        path = shlex.quote(pulled["path"])
        needed = " --task YOUR_TASK.yaml" if pulled["needs_task"] else ""
        session.console.say(
            f"Pulled {repository} at {pulled['commit'][:12]}; hashes and golden rows hold. "
            f"Run it: pipeline run-policy --policy {path}{needed}"
        )
        session.console.result(pulled)


def _outside_workspace(session: Session, path: Path) -> Path:
    """Return where a private key lies; raise UserError in a workspace, whose files are shared and tracked."""
    path, root = path.expanduser().absolute(), session.workspace.root
    folders = path.resolve().parents
    inside = [each for each in folders if (each / "runs").is_dir() and (each / "mlflow").is_dir()]
    if root.resolve() in folders and (session.workspace.runs.is_dir() or root.resolve() != Path.cwd()):
        inside.append(root)
    if inside:
        raise UserError(
            f"{path} lies in the workspace {inside[-1]}, whose files are shared: keep keys elsewhere."
        )
    return path


def _promotable(place: PolicyPlace, teacher: bool) -> Artifact:
    """Return the artifact of a policy that may be promoted; `teacher` lets an exported teacher pass."""
    from thousandfold.stages.policy_file.metadata import parse_metadata
    from thousandfold.stages.policy_file.onnx_bytes import METADATA_KEY, read_model
    from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE

    if place.artifact is None or place.path.name != POLICY_FILE:
        raise UserError(f"{place.name} is not the policy of an artifact: promote one by its name.")
    role = parse_metadata(read_model(place.path).metadata.get(METADATA_KEY), place.path).role
    if role == "teacher" and not teacher:
        raise UserError(
            f"{place.name} is an exported teacher: promote a student's policy, or this one with --teacher."
        )
    return place.artifact


def _verified(
    session: Session,
    place: PolicyPlace,
    episodes: int,
    task: str | None,
    seed: int,
    robustness: bool = False,
    c_policy: CPolicy | None = None,
    trusted: Collection[bytes] = (),
) -> Verification:
    """Verify a policy and print what was found, a line a check."""
    from thousandfold.stages.policy_file.verification import verify_policy

    found = verify_policy(
        place,
        task=task,
        episodes=episodes,
        seed=seed,
        robustness=robustness,
        c_policy=c_policy,
        trusted=trusted,
    )
    rows = [(check.name, _WORDS[check.passed], check.detail) for check in found.checks]
    session.console.table(place.name, ("check", "result", "found"), rows)
    verdict = f"{len(found.failed)} of {len(rows)} checks failed" if found.failed else "every check passed"
    session.console.say(f"{place.name}: {verdict}.")
    return found


# -- A policy file as a page to read: what it is, what goes in and out, how well it does, its descent


def show_policy(console: Console, place: PolicyPlace) -> None:
    """Print a policy file's page.

    Raises:
        UserError: the file cannot be read, or is of another version.
    """
    from thousandfold.stages.policy_file.golden import parse_golden
    from thousandfold.stages.policy_file.graph import require_known_graph
    from thousandfold.stages.policy_file.metadata import parse_metadata
    from thousandfold.stages.policy_file.onnx_bytes import (
        GOLDEN_KEY,
        METADATA_KEY,
        POLICY_HASH_KEY,
        read_content,
        read_model,
    )
    from thousandfold.stages.policy_file.signature import show_key, split_signature

    model = read_model(place.path)
    signature = split_signature(read_content(place.path))[1]
    signer = None if signature is None else show_key(signature.public_key)
    metadata = parse_metadata(model.metadata.get(METADATA_KEY), place.path)
    require_known_graph(model, place.path)
    golden = parse_golden(model.metadata.get(GOLDEN_KEY), metadata, place.path)
    network, measured = metadata.network, metadata.evaluation
    success = "not measured"
    if measured is not None:
        low, high = measured.success_interval
        success = (
            f"{measured.success:.3f} [{low:.3f}, {high:.3f}] over {measured.episodes:,} episodes, in "
            f"{measured.runtime}"
        )
    steps, step_s = metadata.episode_steps, metadata.control_dt_s
    shape = f"{network.kind}, depth {network.depth}, width {network.width}, {network.parameters:,} parameters"
    facts: list[tuple[str, Any]] = [
        ("file", str(place.path)),
        ("size", f"{place.path.stat().st_size / 1e6:.2f} MB"),
        ("format", str(metadata.format_version)),
        ("control rate", f"{1 / step_s:g} Hz (every {step_s:g} s)"),
        ("episode", f"{steps:,} steps, {steps * step_s:g} s"),
        ("network", shape),
        ("numbers inside", f"{metadata.precision}, ONNX operator set {metadata.opset}"),
        ("success", success),
        ("input beyond its limits", "clipped, inside the graph"),
        ("input that is not finite", "to be refused, before the call"),
        ("licence", metadata.licence or "none stated"),
        ("signature", "none" if signer is None else f"names {signer}; `verify` checks it"),
        ("model SHA-256", metadata.model_sha256),
    ]
    if metadata.task_file is not None:
        facts += [("task file", metadata.task_file), ("task SHA-256", metadata.task_sha256 or "unknown")]
    if metadata.robustness:
        nominal, *others = metadata.robustness
        worst = min(others, key=lambda level: level.success, default=nominal)
        facts.append(
            (
                "robustness",
                f"{len(others)} levels over {nominal.episodes:,} episodes each; nominal "
                f"{nominal.success:.3f}, least {worst.success:.3f} ({worst.factor} {worst.value:g})",
            )
        )
    facts += [(f"task changed: {name}", str(value)) for name, value in metadata.task_changes.items()]
    facts += [("golden rows", f"{len(golden.action)}, to {golden.tolerance:.0e}")]
    for name, recorded, actual in (
        ("graph SHA-256", metadata.graph_sha256, model.graph_sha256),
        ("policy SHA-256", model.metadata.get(POLICY_HASH_KEY, "none"), model.policy_sha256),
    ):
        facts.append((name, recorded if recorded == actual else f"{recorded} (the file's is another)"))
    console.table(f"{place.name}: {metadata.role} for task {metadata.task}", ("what", "value"), facts)
    columns = ("#", "name", "unit", "seen from", "to", "limit from", "to")
    for name, elements in metadata.inputs:
        rows = [
            (index, e.name, e.unit, e.low, e.high, e.limit_low, e.limit_high)
            for index, e in enumerate(elements)
        ]
        console.table(f"Input {name} ({len(rows)})", columns, rows)
    for name, elements in metadata.outputs:
        rows = [(index, e.name, e.unit, e.low, e.high) for index, e in enumerate(elements)]
        console.table(f"Output {name} ({len(rows)})", ("#", "name", "unit", "from", "to"), rows)
    known = ("max_rate", "joint", "joint_low", "joint_high", "gear", "start", "kp", "kd")
    elements = metadata.outputs.control
    if shown := [field for field in known if any(getattr(e, field) is not None for e in elements)]:
        rows = [(e.name, *("" if (said := getattr(e, f)) is None else said for f in shown)) for e in elements]
        console.table(
            f"Actuators ({len(rows)})", ("name", *(field.replace("_", " ") for field in shown)), rows
        )
    parents = [(role, origin.name, origin.hash) for role, origin in metadata.parents.items()]
    console.table("Made from", ("role", "artifact", "hash"), parents)
    console.table("Written by", ("package", "version"), list(metadata.exporter.items()))
    change = model.change_since_export(metadata.graph_sha256)
    if change is not None:
        console.warn(f"{change}: the file was changed since it was exported.")
    console.result(
        {
            "policy": place.name,
            "path": str(place.path),
            "bytes": place.path.stat().st_size,
            "intact": change is None,
            "sha256": model.metadata.get(POLICY_HASH_KEY),
            "signed_with": signer,
            "golden": {"rows": len(golden.action), "tolerance": golden.tolerance},
            "metadata": metadata.model_dump(mode="json"),
        }
    )
