"""Policies on the Hugging Face Hub: a repository holds one policy file, its page, and a user's own task."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from thousandfold.envs.user_tasks.task_copy import PAGE_NAME, SOURCE_NAME
from thousandfold.ground.errors import DamagedFileError, UserError, is_disk_full
from thousandfold.pipeline.artifact_task import TASK_FOLDER
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.policy_file.hub_card import LIBRARY, model_card
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy
from thousandfold.stages.policy_file.source import PolicyPlace, find_task, open_policy, require_same_task

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"
_MOST_FILES, _MOST_BYTES = 1000, 2**30
"""How much of a repository is fetched: a policy has some MB, a robot's meshes may have hundreds."""


def push_policy(
    workspace: Workspace,
    place: PolicyPlace,
    repository: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Check a policy and write it to a repository, in one commit; make the repository where there is none.

    Args:
        workspace: where a benchmark of the policy is looked for.
        place: the file.
        repository: `NAMESPACE/NAME`, or the name alone in the namespace of who is logged in.
        private: whether a repository that is made is to be private.
        message: of the commit.
        revision: branch; None: `main`.

    Returns:
        `repository`, `url`, `commit`, `revision`, `files`, and `needs_task`: whether the policy's task is a
        user's whose folder does not lie beside the file.

    Raises:
        UserError: the policy is damaged or off its golden rows, or the Hub refuses or does not answer.
    """
    policy = _checked(place)
    task_folder = place.path.parent / TASK_FOLDER
    names = [POLICY_FILE, CARD_FILE]
    if with_task := (task_folder / PAGE_NAME).is_file():
        # The record of the copy names folders of the machine that made it.
        names += sorted(
            f"{TASK_FOLDER}/{path.relative_to(task_folder).as_posix()}"
            for path in task_folder.rglob("*")
            if path.is_file() and not path.is_symlink() and path.name != SOURCE_NAME
        )
    benchmark = None
    if place.artifact is not None:
        with contextlib.suppress(UserError):  # another artifact that is damaged
            found = workspace.newest_if_any("benchmark", place.artifact)
            benchmark = found and found.results
    with _one_line_errors(repository) as api:
        from huggingface_hub import CommitOperationAdd

        made = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise UserError(f"{made.repo_id} is there already and is public: make it private there first.")
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        model = read_model(place.path)
        hashes = {
            "policy": model.policy_sha256,
            "graph": model.graph_sha256,
            "task's MuJoCo model": policy.metadata.model_sha256,
        }
        card = model_card(made.repo_id, policy.metadata, hashes, benchmark=benchmark, with_task=with_task)
        contents = {POLICY_FILE: str(place.path), CARD_FILE: card.encode()}
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(name, contents.get(name, str(place.path.parent / name))) for name in names],
            commit_message=message or f"Policy for {policy.metadata.task}",
            revision=revision,
        )
    return {
        "repository": made.repo_id,
        "url": str(made),
        "commit": commit.oid,
        "revision": revision or "main",
        "needs_task": policy.metadata.task_file is not None and not with_task,
        "files": names,
    }


def pull_policy(
    repository: str, folder: Path, *, revision: str | None = None, trusted: Collection[bytes] = ()
) -> dict[str, Any]:
    """Fetch a policy to a new folder, which appears once everything in it is checked.

    Args:
        repository: `NAMESPACE/NAME`.
        folder: for policy.onnx, README.md and the folder of a user's task.
        revision: branch, tag or commit; None: `main`.
        trusted: public keys, one of which must have signed the file; empty: it need not be signed.

    Returns:
        `repository`, `commit`, `path` of the policy file, its `sha256`, `task`, `files`, and `needs_task`:
        whether its task is a user's that is not among them.

    Raises:
        UserError: the folder exists, the Hub refuses or does not answer, or the policy is damaged, off its
            golden rows, not signed as required, or does not fit the task that lies beside it.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: give another --out, or remove it first.")
    with tempfile.TemporaryDirectory(prefix=f".tmp-{folder.name}-", dir=_parent(folder)) as temporary:
        fetched = Path(temporary) / "repository"
        with _one_line_errors(repository) as api:
            info = api.model_info(repository, revision=revision, files_metadata=True)
            wanted = [each for each in info.siblings or [] if _is_part(each.rfilename)]
            names = [each.rfilename for each in wanted]
            if POLICY_FILE not in names:
                raise UserError(f"{repository} has no {POLICY_FILE}: `pipeline policy push` writes one.")
            if len(wanted) > _MOST_FILES or sum(each.size or 0 for each in wanted) > _MOST_BYTES:
                raise UserError(
                    f"{repository} is larger than a policy and its task are: {len(wanted)} files, "
                    f"{sum(each.size or 0 for each in wanted) / 1e9:.1f} GB."
                )
            for name in names:
                api.hf_hub_download(repository, name, revision=info.sha, local_dir=fetched)
        shutil.rmtree(fetched / ".cache", ignore_errors=True)  # the Hub's own notes
        path = fetched / POLICY_FILE
        try:
            policy = _checked(PolicyPlace(path, str(path), None), trusted)
        except UserError as error:  # which names a folder that is about to vanish
            raise UserError(str(error).replace(str(fetched), repository)) from None
        fetched.rename(folder)
    return {
        "repository": repository,
        "commit": info.sha,
        "path": str(folder / POLICY_FILE),
        "sha256": read_model(folder / POLICY_FILE).policy_sha256,
        "task": policy.metadata.task,
        "needs_task": policy.metadata.task_file is not None and f"{TASK_FOLDER}/{PAGE_NAME}" not in names,
        "files": names,
    }


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def _checked(place: PolicyPlace, trusted: Collection[bytes] = ()) -> OnnxPolicy:
    """Return a policy that gives its golden rows, and fits the user's task where that lies beside it."""
    policy = open_policy(place, trusted)
    if (place.path.parent / TASK_FOLDER / PAGE_NAME).is_file():
        require_same_task(policy.metadata, find_task(policy.metadata, place), place.name)
    return policy


def _is_part(name: str) -> bool:
    """Tell a file of a policy from what else a repository holds, and from a name that leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DamagedFileError(f"The repository names a file {name!r}, which would lie outside its folder.")
    return name in (POLICY_FILE, CARD_FILE) or path.parts[0] == TASK_FOLDER


@contextlib.contextmanager
def _one_line_errors(repository: str) -> Iterator[HfApi]:
    """Give the Hub's API, without progress bars; turn what it raises into one line each."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    api = HfApi(library_name=LIBRARY)
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield api
    except UserError:
        raise
    except errors.HFValidationError:
        raise UserError(f"{repository!r} is no name of a repository: give NAMESPACE/NAME.") from None
    except errors.OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: unset it to reach the Hub.") from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"The Hub needs a token: {log_in}.") from None
    except errors.GatedRepoError:
        raise UserError(f"{repository} is gated: ask for access on {api.endpoint}/{repository}.") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository} has no such --revision.") from None
    except errors.RepositoryNotFoundError:  # to the Hub one that may not be seen is one that does not exist
        raise UserError(
            f"{api.endpoint} has no {repository}, or does not show it to you: check the name, or {log_in}."
        ) from None
    except errors.HfHubHTTPError as error:
        said = {
            401: f"does not accept your token: {log_in}",
            403: f"does not let you do this with {repository}: use a token with access to it",
        }.get(error.response.status_code, f"refused: {_first_line(error.server_message or str(error))}")
        raise UserError(f"{api.endpoint} {said}.") from None
    except OSError as error:
        if error.filename is not None or is_disk_full(error):  # of this machine
            raise
        raise _unreachable(api.endpoint, error) from None
    # The network's own errors, of whichever library huggingface_hub makes its requests with.
    except (errors.HTTPError, RuntimeError, ValueError) as error:  # pyright: ignore
        raise _unreachable(api.endpoint, error) from None


def _unreachable(endpoint: str, error: Exception) -> UserError:
    return UserError(
        f"{endpoint} does not answer as the Hub does: {_first_line(str(error.__cause__ or error))}."
    )


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "no reason given")[
        :300
    ]
