"""Upload a run's result to a model hub: adapter or model, tokenizer and card, no checkpoints."""

from pathlib import Path
from typing import Any, Protocol, cast

from newtune.errors import ExportError, SetupError
from newtune.logs import notice
from newtune.plan.parts import HubPlan

STAYS_HERE = ("checkpoint-*", "merged/*", "*.partial", ".*")
"""What is not uploaded: everything that a user of the model has no use for."""


class HubApi(Protocol):
    """What is needed of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        """Make a repository."""
        ...

    def upload_folder(self, **options: Any) -> Any:
        """Write a folder's files as one commit."""
        ...


def check_hub(hub: HubPlan | None) -> None:
    """Make sure, before weights load, that there is a token to upload with.

    Raises:
        SetupError: there is none.
    """
    from huggingface_hub import get_token

    if hub is not None and get_token() is None:
        raise SetupError(
            f"`hub_model_id: {hub.model_id}` asks for an upload, but there is no token. Log in "
            "with `hf auth login` or set HF_TOKEN; or leave `hub_model_id` out."
        )


def upload_result(folder: Path, hub: HubPlan, *, api: HubApi | None = None) -> None:
    """Upload what lies at the folder's root, as one commit.

    Raises:
        ExportError: the hub refused it or cannot be reached; the result stays in `folder`.
    """
    from huggingface_hub import HfApi

    hub_api = cast("HubApi", HfApi()) if api is None else api
    try:
        hub_api.create_repo(hub.model_id, private=hub.private, exist_ok=True)
        hub_api.upload_folder(
            repo_id=hub.model_id,
            folder_path=str(folder),
            revision=hub.revision,
            ignore_patterns=list(STAYS_HERE),
            commit_message="Upload the result of a newtune run",
        )
    except (OSError, ValueError) as error:  # hub errors derive from OSError
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"the upload to {hub.model_id} failed: {reason} The result is whole in {folder}."
        ) from error
    notice(f"Uploaded to {hub.model_id}")
