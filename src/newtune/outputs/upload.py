"""Upload a run's result to a model hub: weights, tokenizer, card; one commit, nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path

from newtune.hub import Repository
from newtune.logs import logger, notice
from newtune.outputs.card import is_hub_id
from newtune.outputs.publish import Change, commit, listed_files
from newtune.outputs.result_files import Published, left_behind, result_files
from newtune.outputs.save import ADAPTER_CONFIG
from newtune.run_dir import RunDir


@dataclass(frozen=True)
class ResultFiles:
    """What an upload consists of."""

    kind: Published
    files: dict[str, Path]

    def sizes(self) -> dict[str, int]:
        """Return bytes by path in the repository."""
        return {name: path.stat().st_size for name, path in self.files.items()}


def collect_result(run_dir: RunDir, kind: Published) -> ResultFiles:
    """Return what an upload of this result consists of, checked.

    Raises:
        ExportError: the result is incomplete or changed, or a merged model is not proven.
    """
    return ResultFiles(kind, result_files(run_dir, kind))


def upload_result(repository: Repository, result: ResultFiles) -> str:
    """Upload a result as one commit, in which an earlier model's files go; return its address.

    Raises:
        ExportError: the hub refused it or cannot be reached; the result stays where it is.
    """
    _say_whose_base(result)
    change = Change(
        files=result.files,
        message=f"Upload the {result.kind} of a newtune run",
        removed=left_behind(listed_files(repository), result.files),
    )
    address = commit(repository, change)
    notice(f"Uploaded the {result.kind} to {repository.page}")
    return address


def _say_whose_base(result: ResultFiles) -> None:
    """Warn where an adapter belongs to a base that only this machine has."""
    if ADAPTER_CONFIG not in result.files:
        return
    config = json.loads(result.files[ADAPTER_CONFIG].read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if not is_hub_id(base):
        logger.warning(
            "the adapter names its base as %s, a path of this machine: whoever loads the adapter "
            "has to have that base and name it. `newtune upload --merged` needs no base.",
            base,
        )
