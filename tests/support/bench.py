"""One family's tiny checkpoint, its data, and runs over them through newtune's entry points."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from newtune.config.load import load_config
from newtune.config.run import RunConfig
from newtune.data.collate import collate
from newtune.model.head import compute_loss_sum
from newtune.model.load import load_model
from newtune.prepare import Prepared, prepare
from newtune.run import train
from newtune.run_dir import RunDir, read_json_lines
from newtune.types import Batch, Example
from tiny import FAMILIES, save_tiny_checkpoint

ROWS = (
    "What is the capital of France?", "Paris.", "How many days are there in a week?",
    "There are seven days in a week, and twelve months in a year.", "A river, a bridge.",
    "Every weekday at nine in the morning", "Train the model, merge the adapter, compare.", "No.",
)  # fmt: skip
STEPS_IN_EPOCH, EPOCHS = 2, 4
ADAPTER: Mapping[str, Any] = {
    "adapter": "lora", "lora_r": 4, "lora_dropout": 0.0, "lora_target_linear": True,
    "learning_rate": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A folder in which a family's runs lie."""

    root: Path
    family: str

    @classmethod
    def new(cls, root: Path, family: str) -> "Bench":
        """Make model and data; widths are multiples of 64, as all real models have."""
        save_tiny_checkpoint(root / "base", family, **_wide(family))
        lines = "\n".join(json.dumps({"text": row}) for row in ROWS)
        (root / "rows.jsonl").write_text(lines)
        return cls(root, family)

    def config(self, name: str, **changes: Any) -> RunConfig:
        """Return the configuration of a run that lies in a folder of its name."""
        values = {
            "base_model": str(self.root / "base"),
            "datasets": [{"path": str(self.root / "rows.jsonl"), "type": "completion"}],
            "dataset_prepared_path": str(self.root / "prepared"),
            "sequence_len": 64, "micro_batch_size": 4, "num_epochs": EPOCHS,
            "learning_rate": 0.003, "optimizer": "adamw_torch", "weight_decay": 0.0,
            "lr_scheduler": "constant", "warmup_steps": 0, "logging_steps": 1,
            "save_strategy": "no", "bf16": False, "output_dir": str(self.root / name), **changes,
        }  # fmt: skip
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return load_config(file, [])

    def train(self, name: str, **changes: Any) -> list[float]:
        """Run a training; return the loss of each step."""
        train(self.config(name, **changes))
        lines = read_json_lines(RunDir(self.root / name).metrics_file)
        return [line["loss"] for line in lines if "loss" in line]

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return what a run saved at its end."""
        files = sorted((self.root / name).glob("*.safetensors"))
        return {key: value for file in files for key, value in load_file(file).items()}

    def loaded(self, name: str, **changes: Any) -> tuple[Any, Prepared]:
        """Return a model ready to train, as a run's configuration has it, and its plan."""
        prepared = prepare(self.config(name, **changes))
        plan = prepared.plan
        model = load_model(plan.model, plan.adapter, tokenizer=prepared.tokenizer, new_token_ids=[])
        return model, prepared


def _wide(family: str) -> dict[str, Any]:
    own = FAMILIES[family]
    wide = {"hidden_size": 64, "intermediate_size": 128} if "hidden_size" not in own else {}
    named_otherwise = own.keys() & {"n_embd", "d_model", "n_layer", "num_heads", "ffn_dim"}
    mamba = family in ("mamba", "mamba2", "falcon_mamba")
    return {} if named_otherwise or mamba else {k: v for k, v in wide.items() if k not in own}


def examples(prepared: Prepared) -> list[Example]:
    """Return a few rows of the data, one of them a single token."""
    rows = [prepared.data.train[index] for index in (0, 3, 1, 4)]  # type: ignore[union-attr]
    return [*rows, Example(rows[0].input_ids[:1], rows[0].labels[:1])]


def batch_of(packs: list[list[Example]]) -> Batch:
    """Lay packs out as the data does."""
    return collate(packs, pad_id=3, pad_to=None, flatten=False)


def loss_and_gradients(model: Any, *batches: Batch) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss of some batches and its gradients."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss, _ = compute_loss_sum(model, batch)
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total, gradients


def farthest(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sets of tensors, as a share of the largest value."""
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    scale = max(float(value.abs().max()) for value in right.values())
    return max(float((left[name] - right[name]).abs().max()) for name in left) / scale


@contextmanager
def calls(model: nn.Module) -> Iterator[list[int]]:
    """Count the forwards of the innermost modules."""
    count = [0]

    def more(*_: Any) -> None:
        count[0] += 1

    innermost = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(more) for module in innermost]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def zero_matrices(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the LoRA matrices that were never trained: B starts as zeros."""
    return [n for n, value in weights.items() if "lora_B" in n and not torch.count_nonzero(value)]
