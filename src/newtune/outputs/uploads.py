"""The uploads of a run: its checkpoints while it trains, as `hub_strategy` says, then its result.

uploads = open_uploads(plan, run_dir, tokenizer)   # before weights load: may we write there?
with uploads:
    uploads.follow(trainer)
    trainer.train()
    uploads.add_result()
uploads.problems                                   # what failed; the run itself never does

A checkpoint may be deleted before it is uploaded, so its files are linked to a hidden folder first.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from newtune.distributed.world import World
from newtune.errors import ExportError
from newtune.hub import Repository
from newtune.logs import notice
from newtune.outputs.card import CARD, card_of_run
from newtune.outputs.publish import Change, commit, listed_files, open_repository
from newtune.outputs.report import read_report
from newtune.outputs.result_files import left_behind, result_kind
from newtune.outputs.save import TOKENIZER_BYTES, write_tokenizer
from newtune.outputs.staging import require_space
from newtune.outputs.upload import collect_result, upload_result
from newtune.outputs.upload_queue import Upload, UploadQueue
from newtune.plan.parts import HubPlan, Plan
from newtune.run_dir import RunDir, write_text

ASIDE = ".uploading"
"""Folder of a run in which checkpoints wait to be uploaded."""
LAST_CHECKPOINT = "last-checkpoint"
"""Where `hub_strategy: checkpoint` keeps the newest checkpoint in the repository."""
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json"),
    *("adapter_config.json", "config.json", "generation_config.json"),
)
"""What of a checkpoint a user of the model loads, besides the tokenizer."""


class Uploads:
    """The uploads of one run; none without a hub in its plan. Leaving waits for what goes on."""

    def __init__(
        self,
        hub: HubPlan | None,
        repository: Repository | None,
        plan: Plan,
        run_dir: RunDir,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.hub = hub
        self.repository = repository
        self.plan = plan
        self.run_dir = run_dir
        self.tokenizer = tokenizer
        self._queue = UploadQueue()
        self._aside = run_dir.root / ASIDE

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what failed."""
        return tuple(self._queue.problems)

    def follow(self, trainer: Trainer) -> None:
        """Upload the checkpoints that a trainer writes, if the strategy says so."""
        if self.hub is not None and self.hub.strategy != "end":
            trainer.add_callback(UploadOnSave(self))

    def add_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Upload the model as it is in a checkpoint, and the checkpoint if the strategy says so."""
        hub, repository = self._destination()
        folder = self._aside / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        places = {"checkpoint": LAST_CHECKPOINT, "all_checkpoints": checkpoint.name}
        place = places.get(hub.strategy)
        try:
            self._set_aside(checkpoint, folder, whole=place is not None)
        except (ExportError, OSError) as error:  # a full disk: the checkpoint itself is written
            shutil.rmtree(folder, ignore_errors=True)
            self._queue.note(f"step {step}: could not be set aside: {error}")
            return
        self._queue.add(
            Upload(
                label=f"step {step}",
                send=lambda: _send_checkpoint(repository, folder, place, step),
                clear=lambda: shutil.rmtree(folder, ignore_errors=True),
                may_be_skipped=not hub.always_push,
            )
        )

    def add_result(self) -> None:
        """Upload what the run leaves at the root of its folder."""
        if self.repository is not None:
            self._queue.add(Upload("the result", self._send_result))

    def __enter__(self) -> Self:
        if self.repository is None:
            return self
        shutil.rmtree(self._aside, ignore_errors=True)  # of a run that was killed
        disable_progress_bars()  # they would be printed over the run's own
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.repository is None:
            return
        if not self._queue.is_idle:
            notice(f"waiting for the upload to {self.repository.page}")
            self._queue.wait()
        if self._queue.skipped:
            notice(
                f"not uploaded, because an earlier upload had not ended: "
                f"{', '.join(self._queue.skipped)} (`hub_always_push: true` uploads them all)"
            )
        shutil.rmtree(self._aside, ignore_errors=True)

    def _destination(self) -> tuple[HubPlan, Repository]:
        assert self.hub is not None
        assert self.repository is not None
        return self.hub, self.repository

    def _set_aside(self, checkpoint: Path, folder: Path, *, whole: bool) -> None:
        """Keep a checkpoint's files, and beside them the tokenizer and the card of this moment."""
        require_space(self._aside, TOKENIZER_BYTES)
        if whole:
            link_files(checkpoint.rglob("*"), checkpoint, folder / "checkpoint")
        model = folder / "model"
        link_files((path for name in MODEL_FILES for path in checkpoint.glob(name)),
                   checkpoint, model)  # fmt: skip
        write_tokenizer(self.tokenizer, model)
        report = read_report(self.run_dir, self.plan)
        write_text(model / CARD, card_of_run(self.run_dir, self.plan, report.as_dict()))

    def _send_result(self) -> None:
        result = collect_result(self.run_dir, result_kind(self.run_dir))
        upload_result(self._destination()[1], result)


class UploadOnSave(TrainerCallback):
    """Hands every checkpoint that the trainer has written to the uploads."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Set the checkpoint of this step aside and queue it."""
        checkpoint = self.uploads.run_dir.root / f"checkpoint-{state.global_step}"
        self.uploads.add_checkpoint(checkpoint, state.global_step)


def open_uploads(plan: Plan, run_dir: RunDir, tokenizer: PreTrainedTokenizerBase) -> Uploads:
    """Make sure of the repository, before weights load; only the first process uploads.

    `tokenizer` has the chat template of the training.

    Raises:
        SetupError: this user may not write there, or the hub cannot be reached.
    """
    hub = plan.output.hub if World.current().rank == 0 else None
    repository = None
    if hub is not None:
        repository = open_repository(
            hub.model_id, asked_by="`hub_model_id`", private=hub.private, revision=hub.revision
        )
    return Uploads(hub, repository, plan, run_dir, tokenizer)


def _send_checkpoint(repository: Repository, folder: Path, place: str | None, step: int) -> None:
    """Commit the model of a checkpoint and, into `place`, the whole of it."""
    files = files_below(folder / "model")
    there = listed_files(repository)
    removed = left_behind(there, files)
    if place is not None:
        kept = files_below(folder / "checkpoint")
        whole = {f"{place}/{name}": file for name, file in kept.items()}
        old = {name for name in there if name.startswith(f"{place}/")}
        files, removed = files | whole, removed | (old - whole.keys())
    commit(repository, Change(files, f"Training, step {step}", removed))


def link_files(paths: Iterable[Path], root: Path, target: Path) -> None:
    """Give files a second name below `target`; copied where the file system cannot do that."""
    for path in paths:
        if not path.is_file():
            continue
        place = target / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def files_below(folder: Path) -> dict[str, Path]:
    """Return every file of a folder by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}
