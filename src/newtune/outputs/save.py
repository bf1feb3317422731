"""Write the final adapter or model with its tokenizer, and prove that all of it is on the disk.

manifest.json is written last, so a folder with a manifest is whole: it lists every file with its
hash, and for an adapter the base model it belongs to.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from newtune.errors import ExportError
from newtune.outputs.base_identity import BaseIdentity, identify_base
from newtune.outputs.staging import (
    FileRecord,
    make_readable,
    move_files,
    record_files,
    require_space,
    staging_folder,
)
from newtune.plan.facts import Dtype
from newtune.plan.parts import Plan
from newtune.run_dir import ADAPTER_WEIGHTS, MANIFEST, write_json

ADAPTER_CONFIG = "adapter_config.json"

TOKENIZER_BYTES = 64 << 20
"""Room kept for tokenizer and small files; the largest tokenizers have some 30 MB."""

Kind = Literal["adapter", "model", "merged"]


@dataclass(frozen=True)
class Manifest:
    """What was written: the record that a complete folder ends with."""

    kind: Kind
    parameters: int
    dtype: str
    base: BaseIdentity | None
    """The base an adapter belongs to; None for whole models."""
    files: Mapping[str, FileRecord]


def save_final(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    plan: Plan,
    chat_template: str | None = None,
) -> Manifest:
    """Write what a run trained to its folder: see `save_weights`."""
    return save_weights(
        model,
        tokenizer,
        folder,
        dtype=None if plan.adapter else plan.model_facts.checkpoint_dtype,
        base_source=plan.model.source,
        base_revision=plan.model.revision,
        chat_template=chat_template,
    )


def save_weights(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: Dtype | None = None,
    base_source: str = "",
    base_revision: str | None = None,
    chat_template: str | None = None,
) -> Manifest:
    """Write what was trained to `folder`, over an earlier result, and read it back.

    An adapter is written as it was trained (float32). A whole model is written in `dtype`, the
    base checkpoint's; None keeps the dtype it has. `chat_template` replaces the tokenizer's.

    Raises:
        ExportError: no space, or what is on the disk is not what was trained; `folder` is as it
            was before.
    """
    require_space(folder, _bytes_to_write(model, dtype) + TOKENIZER_BYTES)
    with staging_folder(folder) as stage:
        if isinstance(model, PeftModel):
            base = identify_base(model, source=base_source, revision=base_revision)
            written = _write_adapter(model, stage)
            kind: Kind = "adapter"
        else:
            base, kind = None, "model"
            written = write_model(model, stage, dtype=dtype)
        # After the weights: on a full disk `tokenizers` raises an error that has no type.
        write_tokenizer(tokenizer, stage, chat_template=chat_template)
        manifest = write_manifest(stage, kind, written, base)
        move_files(stage, folder, last=MANIFEST)
    return manifest


@dataclass(frozen=True)
class Written:
    """Weights that were written and found whole."""

    parameters: int
    dtype: str


def write_model(model: PreTrainedModel, stage: Path, *, dtype: Dtype | None) -> Written:
    """Write a whole model into an empty folder, and check what was written."""
    state = _cast_state(model, getattr(torch, dtype)) if dtype else model.state_dict()
    model.save_pretrained(stage, state_dict=state)
    if dtype:
        config = copy.deepcopy(model.config)
        config.dtype = dtype
        config.save_pretrained(stage)
    return Written(require_whole_model(type(model), stage), dtype or _name(model.dtype))


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase, stage: Path, *, chat_template: str | None = None
) -> None:
    """Write the tokenizer with the chat template that the training used."""
    with_template(tokenizer, chat_template).save_pretrained(stage)


def with_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that has this chat template; None leaves it its own."""
    if chat_template is None:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = chat_template
    return changed


def write_manifest(
    stage: Path, kind: Kind, written: Written, base: BaseIdentity | None = None
) -> Manifest:
    """Hash what lies in `stage` and write manifest.json beside it."""
    make_readable(stage)
    manifest = Manifest(kind, written.parameters, written.dtype, base, record_files(stage))
    write_json(stage / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return what `save_final` recorded, or None for a folder that something else wrote."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    base = BaseIdentity(**value["base"]) if value["base"] else None
    files = {name: FileRecord(**record) for name, record in value["files"].items()}
    return Manifest(value["kind"], value["parameters"], value["dtype"], base, files)


def _write_adapter(model: PeftModel, stage: Path) -> Written:
    # Grown embeddings travel as trainable token rows or as modules_to_save, so the embedding layers
    # need no copy of their own; "auto" would ask the hub for the base's vocabulary size.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.save_pretrained(str(stage), save_embedding_layers=False)
    (stage / "README.md").unlink()  # PEFT's; ours is written by `card.py`
    written = _shapes_on_disk(stage)
    wrong = [name for name, tensor in expected.items() if written.get(name) != tuple(tensor.shape)]
    if wrong or len(written) != len(expected):
        raise ExportError(
            f"the adapter on the disk is not the one in memory: {len(written)} of "
            f"{len(expected)} tensors, wrong or missing: {', '.join(wrong[:4])}"
        )
    broken = [name for name, tensor in expected.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ExportError(f"the adapter holds NaN or infinite values in {', '.join(broken[:4])}")
    parameters = sum(tensor.numel() for tensor in expected.values())
    return Written(parameters, _name(next(iter(expected.values())).dtype))


def require_whole_model(model_class: type[PreTrainedModel], stage: Path) -> int:
    """Ask transformers whether the folder gives every parameter of the model, in its shape."""
    # With `output_loading_info` it returns a pair, which its signature does not say.
    loaded, report = cast(
        "tuple[PreTrainedModel, dict[str, set[str]]]",
        model_class.from_pretrained(stage, device_map="meta", output_loading_info=True),
    )
    faults = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if faults:
        listed = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in faults.items())
        raise ExportError(f"the model on the disk is not the one in memory: {listed}")
    return int(loaded.num_parameters())


def _cast_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state in `dtype`; tied tensors stay one tensor, so that they are written once."""
    cast: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        state[name] = cast.setdefault(tensor.data_ptr(), tensor.to(dtype))
    return state


def _shapes_on_disk(stage: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(stage / ADAPTER_WEIGHTS, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _bytes_to_write(model: PreTrainedModel | PeftModel, dtype: Dtype | None) -> int:
    if isinstance(model, PeftModel):
        trained = (value for value in model.parameters() if value.requires_grad)
        return sum(value.numel() * value.element_size() for value in trained)
    width = getattr(torch, dtype).itemsize if dtype else None
    return sum(value.numel() * (width or value.element_size()) for value in model.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
