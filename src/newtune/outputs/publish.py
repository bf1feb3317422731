"""Write to a repository of a hub: make it, make its branch, commit files as one change."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from newtune.errors import ExportError, SetupError
from newtune.hub import HubError, Repository, first_line, is_unreachable, token_in_use
from newtune.logs import logger

ATTEMPTS = 3
"""How often a commit is tried; the client itself tries each of its transfers six times."""
WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Change:
    """What one commit does to a repository."""

    files: Mapping[str, Path]
    """Path in the repository → file of this machine."""
    message: str
    removed: frozenset[str] = frozenset()
    """Paths in the repository that go."""


def open_repository(
    id: str,
    *,
    asked_by: str,
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
) -> Repository:
    """Make sure that a repository and its branch are there and that this user may write to them.

    A repository that is there stays as public or private as it is; a new one is private if
    `private`, else what the owner's settings say. `asked_by` is the key or option that wants the
    upload.

    Raises:
        SetupError: there is no token, or not one that may write there; the name is no hub id; the
            hub cannot be reached.
    """
    if get_token() is None:
        raise SetupError(
            f"{asked_by} asks for an upload, but there is no token. Log in with `hf auth login` or "
            "set HF_TOKEN; or leave it out."
        )
    api = HfApi()
    try:
        made = api.create_repo(id, repo_type=kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, repo_type=kind, exist_ok=True)
        whole = Repository(made.repo_id, "dataset" if kind == "dataset" else "model", revision)
        # reading is allowed where writing is not; this asks the same that a commit asks first
        probe = CommitOperationAdd("README.md", b"-")
        api.preupload_lfs_files(whole.id, [probe], repo_type=kind, revision=revision)
    except HFValidationError as error:
        raise SetupError(f"{asked_by}: `{id}` is no hub id: {first_line(error)}") from error
    except (HubError, OSError, ValueError) as error:
        raise SetupError(
            f"{asked_by}: cannot write to the {kind} repository: {why_refused(error)}"
        ) from error
    return whole


def commit(repository: Repository, change: Change) -> str:
    """Commit a change, tried again where the network fails; returns the commit's address.

    Raises:
        ExportError: the hub refused it or cannot be reached.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _commit_once(repository, change)
        except (HubError, OSError, ValueError, RuntimeError) as error:
            if attempt == ATTEMPTS or not is_unreachable(_cause(error)):
                raise ExportError(
                    f"the upload to {repository.id} failed: {why_refused(error)}"
                ) from error
            logger.warning(
                "the upload to %s broke off (%s); trying again", repository.id, first_line(error)
            )
            time.sleep(WAIT_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def listed_files(repository: Repository) -> list[str]:
    """Return the paths that a repository holds.

    Raises:
        ExportError: the hub refused it or cannot be reached.
    """
    try:
        return HfApi().list_repo_files(
            repository.id, repo_type=repository.kind, revision=repository.revision
        )
    except (HubError, OSError) as error:
        raise ExportError(f"cannot list {repository.id}: {why_refused(error)}") from error


def why_refused(error: BaseException) -> str:
    """Return what a hub said against an upload, and which token was sent."""
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
        said = cause.server_message or first_line(cause)
        return f"{said.rstrip('.')} ({cause.response.status_code}; {token_in_use()})."
    return first_line(cause)


def _commit_once(repository: Repository, change: Change) -> str:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, file) for name, file in sorted(change.files.items())
    ]
    operations += [CommitOperationDelete(name) for name in sorted(change.removed)]
    made = HfApi().create_commit(
        repository.id,
        operations,
        commit_message=change.message,
        repo_type=repository.kind,
        revision=repository.revision,
    )
    return made.commit_url


def _cause(error: BaseException) -> BaseException:
    """Return what is behind the client's `Error while uploading FILE`."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error
