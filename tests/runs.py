"""Tiny training runs: a plan, batches and a model small enough for a hundred runs a minute.

run = TinyRun(tmp_path, accumulation=2)
run.trainer().train()
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Tensor, nn

from newtune.data.collate import collate
from newtune.model.head import compute_loss_sum, install_head
from newtune.model.load import unfreeze
from newtune.objectives.causal_lm import causal_lm_loss
from newtune.plan.facts import DataFacts, ModelFacts
from newtune.plan.parts import (
    AdapterPlan,
    EvaluationPlan,
    ModelPlan,
    OptimizerPlan,
    OutputPlan,
    Plan,
    PrecisionPlan,
    SavePlan,
    SchedulePlan,
    StepPlan,
    TrackerPlan,
    TrainingPlan,
)
from newtune.run_dir import RunDir, read_json_lines
from newtune.training.build import build_trainer
from newtune.training.feed import TrainingData
from newtune.training.trainer import NewtuneTrainer
from newtune.types import IGNORE_INDEX, Batch, Example
from tiny import tiny_llama, tiny_tokenizer

PAD = 3


def example(seed: int, *, prompt: int = 4, answer: int = 5) -> Example:
    """Return random tokens of which the last `answer` are trained."""
    ids = np.random.default_rng(seed).integers(6, 384, prompt + answer, dtype=np.int32)
    labels = ids.copy()
    labels[:prompt] = IGNORE_INDEX
    return Example(ids, labels)


def filler() -> Batch:
    """Return a micro-batch without a trained token."""
    ids = np.array([7, 8], dtype=np.int32)
    nothing = Example(ids, np.full(2, IGNORE_INDEX, dtype=np.int32))
    return collate([[nothing]], pad_id=PAD, pad_to=None, flatten=False)


class ListedBatches:
    """Micro-batches given as lists of packs of example numbers."""

    def __init__(self, micro_batches: Sequence[Sequence[Sequence[int]]]) -> None:
        self.micro_batches = micro_batches

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> Batch:
        packs = self.micro_batches[index]
        if not packs:
            return filler()
        rows = [[example(n, answer=3 + n % 4) for n in pack] for pack in packs]
        return collate(rows, pad_id=PAD, pad_to=None, flatten=False)

    def rows_of(self, index: int) -> list[str]:
        return [f"rows.jsonl, row {n}" for pack in self.micro_batches[index] for n in pack]


def packed(count: int, *, rows: int = 1, first: int = 0) -> ListedBatches:
    """Return `count` micro-batches of `rows` packs of two examples each."""
    numbers = iter(range(first, first + 2 * rows * count))
    return ListedBatches(
        [[[next(numbers), next(numbers)] for _ in range(rows)] for _ in range(count)]
    )


def plain_loss_sum(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss in its plain form, all logits at once."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits
    return causal_lm_loss(logits, batch["labels"])


@dataclass
class TinyRun:
    """A run's settings; every field may be given, the sections as mappings of what differs."""

    root: Path
    steps: int = 4
    accumulation: int = 1
    rows: int = 1
    epochs: Sequence[int] | None = None
    lora: bool = False
    dropout: float = 0.0
    unfrozen: Sequence[str] = ()
    train: Any = None
    evaluation_batches: Any = None
    eval_examples: Sequence[Example] = ()
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    save: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    trackers: TrackerPlan = field(default_factory=lambda: TrackerPlan((), None, {}))
    seed: int = 42
    loss_sum: Any = compute_loss_sum
    build: Mapping[str, Any] = field(default_factory=dict)
    output: io.StringIO = field(default_factory=io.StringIO)

    def model(self) -> Any:
        dropout = 0.0 if self.lora else self.dropout
        model = tiny_llama(seed=1, attention_dropout=dropout)
        install_head(model)
        unfreeze(model, self.unfrozen)
        if self.lora:
            torch.manual_seed(1)
            config = LoraConfig(
                r=4,
                lora_alpha=8,
                lora_dropout=self.dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, config)
        return model

    def plan(self) -> Plan:
        steps_in_epoch = tuple(self.epochs or (self.steps,))
        steps = StepPlan(
            self.rows, self.accumulation, 1, len(steps_in_epoch), steps_in_epoch, self.seed
        )
        return Plan(
            model=self._model_plan(),
            adapter=_adapter_plan(self.dropout) if self.lora else None,
            training=self._training_plan(steps),
            output=OutputPlan(self.root),
            model_facts=model_facts(),
            data_facts=_data_facts(lambda epoch: steps_in_epoch[epoch] * steps.rows_per_step),
            trainable_parameters=0,
            tokens_per_step=18.0 * steps.rows_per_step,
        )

    def _model_plan(self) -> ModelPlan:
        precision = PrecisionPlan("float32", "float32", None, None)
        return ModelPlan(
            source="tiny",
            config_source="tiny",
            revision=None,
            model_class="AutoModelForCausalLM",
            trust_remote_code=False,
            ignore_patterns=(),
            config_overrides={},
            load_kwargs={},
            attention="sdpa",
            precision=dataclasses.replace(precision, **self.precision),
            device="cpu",
            gradient_checkpointing=False,
            gradient_checkpointing_kwargs={},
            embedding_multiple=None,
            unfrozen_parameters=tuple(self.unfrozen),
        )

    def _training_plan(self, steps: StepPlan) -> TrainingPlan:
        optimizer = OptimizerPlan("adamw_torch", 1e-2, 0.0, 0.9, 0.999, 1e-8, {}, 1.0)
        schedule = SchedulePlan("constant", 0, False, None, None, {})
        evaluation = EvaluationPlan(
            frozenset(), self.rows, False, 8, None, None, 0.0, "eval_loss", False
        )
        save = SavePlan(frozenset(), False, None, False, False)
        training = TrainingPlan(
            steps=steps,
            optimizer=dataclasses.replace(optimizer, **self.optimizer),
            schedule=dataclasses.replace(schedule, **self.schedule),
            evaluation=dataclasses.replace(evaluation, **self.evaluation),
            save=dataclasses.replace(save, **self.save),
            trackers=self.trackers,
            logging_steps=1,
            neftune_noise_alpha=None,
            loss_watchdog_threshold=None,
            loss_watchdog_patience=3,
            dataloader_workers=0,
            dataloader_pin_memory=False,
            dataloader_prefetch_factor=None,
        )
        return dataclasses.replace(training, **self.training)

    def trainer(self, model: Any = None) -> NewtuneTrainer:
        plan = self.plan()
        count = plan.training.steps.total_steps * self.accumulation
        return build_trainer(
            plan,
            self.model() if model is None else model,
            tiny_tokenizer(),
            TrainingData(
                packed(count, rows=self.rows) if self.train is None else self.train,
                self.evaluation_batches,
                self.eval_examples,
            ),
            RunDir(self.root),
            loss_sum=self.loss_sum,
            console=Console(file=self.output, width=200),
            **self.build,
        )

    def metrics(self) -> list[dict[str, Any]]:
        return read_json_lines(self.root / "metrics.jsonl")

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.metrics() if "loss" in line}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained parameters."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], **close: float) -> None:
    """Compare parameters: bit for bit, or within `atol` and `rtol`."""
    assert left.keys() == right.keys()
    for name in left:
        if close:
            torch.testing.assert_close(left[name], right[name], **close)
        else:
            assert torch.equal(left[name], right[name]), name


def _adapter_plan(dropout: float) -> AdapterPlan:
    return AdapterPlan(
        "lora", 4, 8, dropout, "all-linear", None, (), False, False, False, True, None
    )


def model_facts() -> ModelFacts:
    return ModelFacts(
        "llama", "LlamaForCausalLM", 0, 2, 32, 384, 512, "float32", {}, "lm_head", {}, False
    )


def _data_facts(packs_in_epoch: Any) -> DataFacts:
    return DataFacts(0, 0, 0, 0, 0, packs_in_epoch, None)
