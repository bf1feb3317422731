"""What a run began with, base weights and data, so that it goes on with the same.

A branch of a hub moves on, and files of a folder change, while a run is stopped.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from newtune.data.prepare import PreparedData
from newtune.data.stream.prepare import StreamedData
from newtune.distributed.world import World
from newtune.errors import DataError, ModelError
from newtune.logs import logger
from newtune.outputs.base_identity import identify_base
from newtune.plan.parts import ModelPlan
from newtune.run_dir import write_json

INPUTS = "inputs.json"


@dataclass(frozen=True)
class Inputs:
    """Digests of what a run trains with; None where a checkpoint itself holds it."""

    base: str | None
    """Of the weights below an adapter. A whole model is in its checkpoints."""
    base_dtype: str | None
    data: str | None
    """Of the prepared data. A stream's place, and its source's identity, are in checkpoints."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel | PeftModel | None,
        plan: ModelPlan,
        data: PreparedData | StreamedData,
    ) -> "Inputs":
        """Return the digests of a model that was just loaded (None: not here), and of its data."""
        digest = data.folder.name if isinstance(data, PreparedData) else None
        if not isinstance(model, PeftModel):
            return cls(None, None, digest)
        base = identify_base(model, source=plan.source, revision=plan.revision)
        return cls(base.weights, base.dtype, digest)


def keep_inputs(folder: Path, inputs: Inputs) -> None:
    """Write down what a run begins with; the first process does."""
    if World.current().rank == 0:
        write_json(folder / INPUTS, asdict(inputs))


def require_same_inputs(folder: Path, now: Inputs, *, source: str) -> None:
    """Compare with what the run in a folder began with, if that is known.

    In another precision the weights cannot be compared; then a warning says so.

    Raises:
        ModelError: the base has other weights.
        DataError: the data are others.
    """
    file = folder / INPUTS
    if not file.is_file():
        return
    before = Inputs(**json.loads(file.read_text(encoding="utf-8")))
    anyway = f"To go on all the same, remove {file}."
    if now.base_dtype != before.base_dtype:
        logger.warning(
            "the run began with a base in %s and goes on with it in %s: whether it is the same "
            "base cannot be told", before.base_dtype, now.base_dtype,
        )  # fmt: skip
    elif now.base != before.base:
        raise ModelError(
            f"`{source}`: its weights are not those that the run began with; they have changed "
            f"since. Give back what it was (for a hub: `revision_of_model`). {anyway}"
        )
    if now.data != before.data:
        raise DataError(
            "the prepared data are not those that the run began with: rows, tokenizer, template "
            "or newtune's version changed since, so that the place in the data means other rows. "
            f"Give back what they were (for a hub: `revision` of the dataset). {anyway}"
        )
