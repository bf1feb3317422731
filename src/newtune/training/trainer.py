"""The trainer: transformers' loop with newtune's loss, order of data, cadence and checkpoints.

The Trainer sees one pass over micro-batches that are ready and in order (`max_steps` of them times
the accumulation). Everything that depends on epochs is decided by the plan's step sets.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback
from transformers.trainer_utils import TrainOutput

from newtune.distributed.group import ALONE, Group
from newtune.errors import Interrupted, TrainingError
from newtune.plan.parts import Plan, TrackerPlan
from newtune.run_dir import RunDir
from newtune.training import checkpoint as checkpoints
from newtune.training.arguments import training_arguments
from newtune.training.callbacks import Cadence, Marks, watchers, whole_last_epoch
from newtune.training.checkpoint import Model
from newtune.training.engines import start_engine
from newtune.training.evaluator import Evaluator
from newtune.training.feed import Streamed, TrainingData, loader
from newtune.training.frozen_rows import freeze_rows, trained_parts
from newtune.training.metrics import Meter, MeterClock, MetricsFile, TokenCounts, count_tokens
from newtune.training.optim import build_optimizer
from newtune.training.progress import ProgressDisplay
from newtune.training.restarts import Restarts
from newtune.training.resumable import ResumableTrainer
from newtune.training.schedules import learning_rate_share
from newtune.training.stopping import (
    CutShort,
    EndedByEvaluation,
    StopRequest,
    is_out_of_memory,
    out_of_memory,
    require_finite,
    require_finite_elsewhere,
)
from newtune.training.stream_place import StreamPlace
from newtune.training.trackers import Reporting, facts_of
from newtune.types import Batch


class NewtuneTrainer(ResumableTrainer):
    """transformers' Trainer, with what newtune decides itself put in its place."""

    # compute_loss divides by the trained tokens of the whole step, so the Trainer must not divide
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        plan: Plan,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        data: TrainingData,
        run_dir: RunDir,
        evaluator: Evaluator,
        *,
        console: Console,
        group: Group = ALONE,
    ) -> None:
        self.plan = plan
        self.network = model
        self.tokenizer = tokenizer
        self.data = data
        self.run_dir = run_dir
        self.evaluator = evaluator
        self.meter = Meter.new()
        self.group = group
        self.watch = group.watch
        self.stop = StopRequest(group)
        self.display = ProgressDisplay(self.meter, console, evaluator.kinds_of_steps())
        trackers = plan.training.trackers if group.is_main else TrackerPlan((), None, {})
        self.reporting = Reporting(trackers, run_dir.root, facts_of(plan))
        self._remembered = {"meter": self.meter, "stop": self.stop}
        self._micro_losses: list[Tensor] = []
        self._micro_counts: list[Tensor] = []
        self._own_counts = self._step_counts = TokenCounts(0, 0)
        self._doing = "training"
        use_cache = model.config.use_cache
        arguments = training_arguments(plan, run_dir.root)
        self.engine = start_engine(model, plan.training.parallel, group)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.evaluation or data.eval_examples or None,
            callbacks=self._callbacks(),
        )
        # the Trainer switches the cache off in the config that is saved with the model; the loss
        # switches it off for its own forwards
        model.config.use_cache = use_cache
        self.remove_callback(DefaultFlowCallback)
        self.remove_callback(PrinterCallback)

    def _callbacks(self) -> list[TrainerCallback]:
        training = self.plan.training
        cadence = Cadence(
            training,
            evaluation_steps=self.evaluator.steps,
            last_epoch_steps=whole_last_epoch(training.steps, self.plan.data_facts.packs_in_epoch),
        )
        watching = {**watchers(training, self.meter), **self._stream_place()}
        self._remembered |= watching
        return [
            Marks(self.watch),
            MeterClock(self.meter),
            *self._restarts(),
            cadence,
            self.stop,
            *watching.values(),
            *self._metrics_file(),
            self.display,
            self.reporting,
        ]

    def _metrics_file(self) -> list[MetricsFile]:
        if not self.group.is_main:
            return []
        return [MetricsFile(self.run_dir.metrics_file, lambda: self.stop.evaluation_due)]

    def _restarts(self) -> list[Restarts]:
        plan = self.plan.training
        if plan.relora is None:
            return []
        assert isinstance(self.network, PeftModel)  # plan/restarts.py
        return [Restarts(plan.relora, self.network, total_steps=plan.steps.total_steps)]

    def _stream_place(self) -> dict[str, StreamPlace]:
        if not isinstance(self.data.train, Streamed):
            return {}
        place = StreamPlace(self.data.train, self.plan.training.steps.accumulation)
        self.meter.further = place.report
        return {"stream": place}

    # --- the whole run

    def train(
        self,
        resume_from_checkpoint: Any = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train from the start, or on from a checkpoint, to the end of the plan.

        A damaged checkpoint is named in a notice and the newest intact one before it taken.

        Raises:
            Interrupted: stopped by a signal, a checkpoint being saved.
            TrainingError: the run cannot go on; the message says where and what is kept.
        """
        start: str | None = None
        if resume_from_checkpoint is not None:
            intact = checkpoints.intact_checkpoint(Path(resume_from_checkpoint))
            checkpoints.require_resumable(intact)
            start = str(intact)
        self.group.on_main(lambda: checkpoints.remove_partials(self.run_dir.root))
        evaluates_first = 0 in self.evaluator.steps
        self.args.eval_on_start = start is None and evaluates_first
        set_seed(self.plan.training.steps.seed + self.group.draw)  # dropout
        try:
            with self.stop.listening():
                output: TrainOutput = super().train(resume_from_checkpoint=start)
        except EndedByEvaluation:
            output = self._end_without_a_step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            step = self.state.global_step + (self._doing == "training")
            raise out_of_memory(error, self.plan, step=step, doing=self._doing) from error
        except OSError as error:
            if not checkpoints.is_disk_full(error):
                raise
            raise TrainingError(
                f"step {self.state.global_step}: the disk is full ({error}). "
                f"{self._what_is_kept()} Make room and go on with `--resume`."
            ) from error
        finally:
            self._leave()
        self._prepared_optimizer().eval()  # schedule-free optimizers hold two sets of weights
        return output

    def _end_without_a_step(self) -> TrainOutput:
        if self.plan.training.save.load_best_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, 0.0, {})

    def _leave(self) -> None:
        self.display.close()
        self.reporting.close()
        if self.is_in_train and self.neftune_noise_alpha is not None:
            self.neftune_hook_handle.remove()
        self.is_in_train = False

    # --- data

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Return the run's micro-batches in order."""
        return loader(self.data.train, self.args)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> int:
        """Count the trained tokens of the whole step, which the loss is divided by."""
        self._micro_losses, self._micro_counts = [], []
        mine = count_tokens(batch_samples, self.tokenizer.pad_token_id)
        tokens, trained = self.group.sums([mine.tokens, mine.trained_tokens])
        self._own_counts, self._step_counts = mine, TokenCounts(int(tokens), int(trained))
        return max(1, self._step_counts.trained_tokens)

    # --- loss, gradient, update

    def autocast_smart_context_manager(
        self,
        cache_enabled: bool | None = True,  # noqa: FBT001, FBT002 (the library's signature)
    ) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast of bf16; that of fp16 is accelerate's, with the gradient scaler."""
        if self.plan.model.precision.autocast != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (the library's signature)
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the micro-batch's share of the step's loss, in nats per trained token.

        Over several processes gradients are averaged where a sum is meant, so that it is multiplied
        by the number of those that have rows of their own.
        """
        loss_sum, count = self.evaluator.loss_sum(model, inputs)
        self.watch.at("backward")
        self._micro_losses.append(loss_sum.detach())
        self._micro_counts.append(count.detach())
        assert num_items_in_batch is not None
        return loss_sum * self.group.data_size / num_items_in_batch

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self.engine.clip(model, self.args.max_grad_norm, self.accelerator)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> float:
        """Return the gradient's norm before clipping, once the step is known to be sound."""
        self.watch.at("update")
        if grad_norm is None:
            grad_norm = self.engine.clip(model, math.inf, self.accelerator)
        values = [torch.as_tensor(value) for value in (*self._micro_losses, *self._micro_counts)]
        values.append(torch.as_tensor(grad_norm))
        # one wait for the device per step
        numbers = torch.stack([value.to(self.args.device, torch.float64) for value in values])
        *sums, norm = numbers.tolist()
        losses, counts = sums[: len(self._micro_losses)], sums[len(self._micro_losses) :]
        if sum(counts) != self._own_counts.trained_tokens:
            raise RuntimeError(
                f"the loss counted {counts} trained tokens, the batches hold "
                f"{self._own_counts.trained_tokens}"
            )
        everyones = self.group.numbers(losses)
        self._require_finite(everyones, norm)
        once = everyones[:: self.group.sharers]
        self.meter.add_step(sum(map(sum, once)), self._step_counts)
        return float(norm)

    def _require_finite(self, everyones: Sequence[Sequence[float]], norm: float) -> None:
        step = self.state.global_step
        first = step * self.args.gradient_accumulation_steps
        mine = everyones[self.group.rank]
        if all(map(math.isfinite, mine)):  # otherwise this process knows the rows
            require_finite_elsewhere(everyones, step=step + 1)
        require_finite(
            mine,
            norm,
            step=step + 1,
            rows_of=lambda index: self.data.train.rows_of(first + index),
            kept=self._what_is_kept(),
            gradient_scaled=self.accelerator.scaler is not None,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the plan's optimizer over the trained parameters."""
        if self.optimizer is None:
            made = build_optimizer(self.plan.training.optimizer, self.network, self.args)
            freeze_rows(self.network, made, trained_parts(self.network, self.plan))
            self.optimizer = self.engine.prepare(made, self)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Make the plan's schedule, which multiplies the rate of each group."""
        if self.lr_scheduler is None:
            share = learning_rate_share(self.plan.training.schedule, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self._prepared_optimizer(), share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the plan counts operations, and counting here costs time per batch."""
        return 0

    # --- reports

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand a report to the callbacks, with our loss and counts in place of the Trainer's."""
        if "loss" in logs:
            logs = {**logs, **self.meter.report()}
        elif "train_runtime" in logs:
            logs = {"train_runtime": logs["train_runtime"]}
        super().log(logs)

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run one micro-batch forward and backward."""
        self._doing = "training"
        self.watch.at("forward")
        model.train()
        self._prepared_optimizer().train()  # schedule-free optimizers hold two sets of weights
        batch = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
        self.engine.backward(loss, self.accelerator)
        return loss.detach()

    # --- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure what is due after the current step: loss, answers, or both.

        Outside of training, everything is due.

        Raises:
            Interrupted: a signal came before the first step, also that of a resumed run.
        """
        started, step = time.monotonic(), self.state.global_step
        try:
            with self._evaluating(), self.stop.at_once():
                metrics = self.evaluator.measure(
                    step,
                    self._eval_batches,
                    everything=not self.is_in_train,
                    together=self.engine.forwards_together,
                )
        except CutShort:
            self._require_something_to_save()
            self.stop.cut_short(step, self.control)
            return {}
        metrics["eval_runtime"] = round(time.monotonic() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.meter.restart_clock()
        if self.stop.evaluation_due:
            self._catch_up(metrics)
        return metrics

    def _require_something_to_save(self) -> None:
        if self.state.global_step == self.display.first_step:
            assert self.stop.signal is not None
            kept = f" {self._what_is_kept()}" if self.state.global_step else ""
            raise Interrupted(f"Stopped by {self.stop.signal.name} before the first step.{kept}")

    def _catch_up(self, metrics: dict[str, float]) -> None:
        """Do what follows the evaluation that a stopped run could not take."""
        self.stop.evaluation_due = False
        if self._determine_best_metric(metrics, trial=None):
            self._point_to_best()
        if self.control.should_training_stop:
            raise EndedByEvaluation

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._doing, was_training = "evaluating", self.network.training
        self.watch.at("evaluate")
        self.network.eval()
        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                yield
        finally:
            self.network.train(was_training)
            self.engine.end_evaluation()

    def _eval_batches(self) -> Iterable[Batch]:
        if self.data.evaluation is None:
            return
        for batch in loader(self.data.evaluation, self.args):
            if self.group.size > 1 and self.is_in_train and self.stop.agree():
                raise CutShort
            self.watch.at("evaluate")
            yield cast("Batch", self._prepare_inputs({**batch}))
