"""The trainer's checkpoints: what is written at a save, and read when a run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, Trainer

from newtune.distributed.group import Group
from newtune.distributed.watch import Watch
from newtune.errors import TrainingError
from newtune.logs import notice
from newtune.plan.parts import Plan
from newtune.run_dir import RunDir
from newtune.training import checkpoint as checkpoints
from newtune.training.checkpoint import Model
from newtune.training.engine import Engine
from newtune.training.metrics import Meter
from newtune.training.run_state import Remembers, load_run_state, save_run_state
from newtune.training.shards import take_parts, write_parts
from newtune.training.stopping import StopRequest


class ResumableTrainer(Trainer):
    """transformers' Trainer with newtune's checkpoints: complete or not there, of any engine."""

    plan: Plan
    network: Model
    tokenizer: PreTrainedTokenizerBase
    run_dir: RunDir
    engine: Engine
    group: Group
    watch: Watch
    meter: Meter
    stop: StopRequest
    _remembered: dict[str, Remembers]
    """What callbacks remember of the run so far, by name."""

    def _prepared_optimizer(self) -> AcceleratedOptimizer:
        assert isinstance(self.optimizer, AcceleratedOptimizer)
        return self.optimizer

    def _schedule(self) -> LRScheduler:
        assert self.lr_scheduler is not None
        return self.lr_scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a complete checkpoint or none."""
        step, save = self.state.global_step, self.plan.training.save
        self.watch.at("save")
        # a run that is stopped by a signal must be able to go on
        resumable = not save.weights_only or self.stop.signal is not None
        root, best = self.run_dir.root, self.state.best_global_step
        if best and (best == step or (root / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(root / f"checkpoint-{best}")
        random = self.group.gather(checkpoints.random_states()) if resumable else []
        self._prepared_optimizer().eval()
        state = self.engine.optimizer_state(self._prepared_optimizer()) if resumable else None
        in_parts = self.engine.writes_parts
        if in_parts:
            write_parts(root, step, self.network, state, self.group)
        with self.engine.whole("none" if in_parts else "trained") as whole:
            self.group.on_main(lambda: self._write_checkpoint(whole, state, random))
        self.meter.restart_clock()

    def _write_checkpoint(
        self,
        model: Model,
        optimizer_state: Mapping[str, Any] | None,
        random: Sequence[Mapping[str, Any]],
    ) -> None:
        step, root, in_parts = self.state.global_step, self.run_dir.root, self.engine.writes_parts
        facts = {
            "position": step * self.args.gradient_accumulation_steps,
            "rows_per_step": self.plan.training.steps.rows_per_step,
            "processes": self.group.size,
            "resumable": optimizer_state is not None,
        }
        with checkpoints.written_aside(root, step, **facts) as folder:
            if in_parts:
                take_parts(root, step, model, folder)
            else:
                bytes_to_write = checkpoints.bytes_to_write(model, optimizer_state)
                checkpoints.require_room(folder, bytes_to_write)
                checkpoints.save_weights(model, folder)
            self.tokenizer.save_pretrained(folder)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            if optimizer_state is not None:
                save_run_state(
                    folder,
                    optimizer_state,
                    self._schedule(),
                    self._remembered,
                    random,
                    in_parts=in_parts,
                )
                self._save_scaler(str(folder))
        keep, best = self.plan.training.save.keep, self.state.best_global_step
        checkpoints.rotate(root, keep=keep, best_step=best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load this process's random states, if as many processes as now wrote them."""
        if checkpoint is None:
            return
        names = {path.name for path in Path(checkpoint).glob("rng_state*.pth")}
        if names == set(checkpoints.random_state_files(self.group.size)):
            super()._load_rng_state(checkpoint)
            return
        notice(
            f"{len(names)} process(es) wrote {checkpoint}, {self.group.size} go on: data, weights "
            "and optimizer are the same, but what is drawn at random (dropout) is not"
        )

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load the weights, and nothing less than all of them."""
        self.engine.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer by parameter name, the schedule, and what our callbacks remember."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        self._point_to_best()
        optimizer = self._prepared_optimizer()
        load_run_state(
            folder,
            lambda: self.engine.load_optimizer_state(optimizer, folder),
            self._schedule(),
            self._remembered,
        )
        self.args.eval_on_start = self.stop.evaluation_due

    def _what_is_kept(self) -> str:
        complete = self.run_dir.checkpoints()
        return f"{complete[-1]} is kept." if complete else "No checkpoint was saved yet."

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Tell whether this is the best evaluation yet, and have it saved if the plan wants it."""
        if self.plan.training.evaluation.best_metric not in metrics:
            return False
        is_best: bool = super()._determine_best_metric(metrics, trial)
        save = self.plan.training.save
        if is_best and (save.on_best or save.load_best_at_end):
            self.control.should_save = True
        return is_best

    def _point_to_best(self) -> None:
        """Say where the best checkpoint lies, also when the run's folder was moved since."""
        best = self.run_dir.root / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        best = Path(str(self.state.best_model_checkpoint))
        damage = checkpoints.damage_of(best)
        if damage is not None:
            raise TrainingError(f"the best checkpoint cannot be loaded: {damage}")
        notice(f"the best checkpoint is loaded: {best} ({self.state.best_metric:.4g})")
        self.engine.load_weights(best)
