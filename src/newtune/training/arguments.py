"""TrainingArguments from a plan: every value that acts is written out; the rest is off.

What newtune decides itself (loss, order, cadence, schedule, evaluation, checkpoints) is decided in
`trainer.py`; here the Trainer only learns the facts it needs for its own part.
"""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from newtune.errors import SetupError
from newtune.plan.parts import OptimizerPlan, Plan
from newtune.plan.sharing import ParallelPlan


class OneDeviceArguments(TrainingArguments):
    """TrainingArguments that never see more than one GPU, so that DataParallel is never chosen."""

    @property
    def n_gpu(self) -> int:
        """Return 1 on a machine with GPUs, 0 without."""
        return int(min(1, super().n_gpu))

    @property
    def place_model_on_device(self) -> bool:
        """Return False: the model is on its device, or sharded."""
        return False


def training_arguments(plan: Plan, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments for the plan.

    Raises:
        SetupError: fp16 on a CPU, which has no gradient scaler that transformers would use.
    """
    on_cpu = plan.model.device == "cpu"
    if on_cpu and plan.model.precision.autocast == "float16":
        raise SetupError("`fp16` needs a GPU; on a CPU use `bf16: auto` or leave precision out.")
    return OneDeviceArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,
        # bf16 is our own autocast context; fp16 is accelerate's, which brings the gradient scaler
        bf16=False,
        fp16=plan.model.precision.autocast == "float16",
        tf32=None if on_cpu else plan.model.precision.tf32,
        max_grad_norm=plan.training.optimizer.max_grad_norm,
        neftune_noise_alpha=plan.training.neftune_noise_alpha,
        seed=plan.training.steps.seed,
        **_steps(plan),
        **optimizer_arguments(plan.training.optimizer),
        **_data(plan),
        **_processes(plan.training.parallel),
        **_SILENT,
    )


def optimizer_arguments(plan: OptimizerPlan) -> dict[str, Any]:
    """Return what transformers' optimizer table reads."""
    known = {name.value for name in OptimizerNames}
    # transformers takes these as text; `build_optimizer` hands over the rest, with its types
    plain = [
        f"{key}={value}"
        for key, value in plan.arguments.items()
        if isinstance(value, int | float) or (isinstance(value, str) and "," not in value)
    ]
    return {
        "optim": plan.name if plan.name in known else "adamw_torch",
        "optim_args": ",".join(plain) or None,
        "learning_rate": plan.learning_rate,
        "weight_decay": plan.weight_decay,
        "adam_beta1": plan.beta1,
        "adam_beta2": plan.beta2,
        "adam_epsilon": plan.epsilon,
        "warmup_steps": 0,
    }


def _steps(plan: Plan) -> dict[str, Any]:
    steps = plan.training.steps
    evaluates = bool(plan.training.evaluation.at_steps or plan.training.evaluation.generate)
    return {
        "max_steps": steps.total_steps,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": steps.accumulation,
        # When these happen is decided by the plan's step sets; the Trainer only has to know that
        # they do, so that it keeps track of the best step.
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_strategy": "steps",
        "logging_steps": plan.training.logging_steps,
        "logging_nan_inf_filter": False,
        "metric_for_best_model": plan.training.evaluation.best_metric if evaluates else None,
        "greater_is_better": plan.training.evaluation.greater_is_better,
        "load_best_model_at_end": plan.training.save.load_best_at_end and evaluates,
        "save_only_model": plan.training.save.weights_only,
    }


def _data(plan: Plan) -> dict[str, Any]:
    training = plan.training
    return {
        "dataloader_num_workers": training.dataloader_workers,
        "dataloader_pin_memory": training.dataloader_pin_memory and plan.model.device != "cpu",
        "dataloader_prefetch_factor": (
            training.dataloader_prefetch_factor if training.dataloader_workers else None
        ),
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    }


def _processes(plan: ParallelPlan) -> dict[str, Any]:
    return {
        "ddp_backend": plan.backend,
        "ddp_timeout": plan.timeout_seconds,
        "ddp_bucket_cap_mb": plan.bucket_cap_mb,
        "ddp_broadcast_buffers": plan.broadcast_buffers,
        "ddp_find_unused_parameters": plan.find_unused_parameters,
        # gradients of which each process keeps a part are exchanged for every micro-batch: kept
        # until the step's last one, they would be whole
        "accelerator_config": {
            "gradient_accumulation_kwargs": {"sync_each_batch": plan.engine in ("fsdp2", "zero")}
        },
    }


_SILENT: dict[str, Any] = {
    "disable_tqdm": True,
    "report_to": "none",
    "push_to_hub": False,
    "lr_scheduler_type": "constant",
    "average_tokens_across_devices": False,
    "auto_find_batch_size": False,
    "label_names": ["labels"],
}
