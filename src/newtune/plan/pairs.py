"""Which ways of sharing a model go with which ways of training it: the page, from the rules.

python -m newtune.plan.pairs > docs/parallel.md

Every cell is a plan that was made, or the error that refused it, for a small Llama on four
processes; no weights are read.
"""

import sys
from collections.abc import Mapping
from typing import Any

from newtune.config.load import config_from
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.facts import DataFacts, ModelFacts
from newtune.plan.plan import make_plan, plan_model_side

ENGINES: Mapping[str, Mapping[str, Any]] = {
    "DDP": {},
    "FSDP2": {"fsdp_config": {"reshard_after_forward": True}},
    "FSDP2 + offload": {"fsdp_config": {"offload_params": True}},
    "HSDP": {"dp_replicate_size": 2, "dp_shard_size": 2},
    "ZeRO-1": {"deepspeed": "deepspeed_configs/zero1.json"},
    "ZeRO-2": {"deepspeed": "deepspeed_configs/zero2.json"},
    "ZeRO-3": {"deepspeed": "deepspeed_configs/zero3.json"},
    "TP": {"tensor_parallel_size": 4},
    "TP × FSDP2": {"tensor_parallel_size": 2, "dp_shard_size": 2},
    "CP": {"context_parallel_size": 4},
    "CP × FSDP2": {"context_parallel_size": 2, "dp_shard_size": 2},
    "EP": {"expert_parallel_size": 4},
    "device_map": {"device_map": "balanced"},
}
LORA: Mapping[str, Any] = {"adapter": "lora", "lora_target_linear": True}
QLORA: Mapping[str, Any] = {**LORA, "adapter": "qlora"}
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "LoRA": LORA,
    "LoRA, 8 bit": {**LORA, "load_in_8bit": True},
    "QLoRA": QLORA,
    "DoRA": {**LORA, "peft_use_dora": True},
    "ReLoRA": {**LORA, "relora_steps": 2},
    "packing": {"sample_packing": True},
    "recomputed activations": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "muon": {"optimizer": "muon"},
    "answers while training": {"val_set_size": 4, "eval_generate": True},
}
COMMON: Mapping[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "learning_rate": 1e-4,
    "sequence_len": 256,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "bf16": False,
    "optimizer": "adamw_torch_fused",
}
_LAYERS = {
    **{f"self_attn.{name}_proj": "rowwise" if name == "o" else "colwise" for name in "qkvo"},
    **{f"mlp.{name}_proj": "colwise" for name in ("gate", "up")},
    "mlp.down_proj": "rowwise",
}
LLAMA = ModelFacts(
    model_type="llama",
    architecture="LlamaForCausalLM",
    parameters=1000,
    layers=1,
    hidden_size=64,
    vocab_size=384,
    max_positions=512,
    checkpoint_dtype="float32",
    linear_modules={f"model.layers.0.{name}": (64, 64) for name in _LAYERS},
    head_name="lm_head",
    parameter_shapes={f"model.layers.0.{name}.weight": (64, 64) for name in _LAYERS},
    tied_embeddings=False,
    tensor_plan={f"model.layers.*.{name}": style for name, style in _LAYERS.items()},
    heads=8,
    key_heads=4,
)
ROWS = DataFacts(64, 8, 6400, 3200, 400, lambda epoch: 64, None)
HEAD = """# Which engine goes with which training

Written by `make docs` from the rules themselves: each cell is a plan that was made for a small
Llama on four processes, or the reason for which none is. `yes` says that the rules let it run; what
was run and measured against one process is in [parity](parity.md). Models differ: mixtures of
experts and families without a plan of transformers are refused under TP, families that no test
compared under CP. Engines are explained in
[scaling](scaling.md).
"""


def refusal(engine: Mapping[str, Any], training: Mapping[str, Any]) -> str | None:
    """Return why a pair is refused, or None for one that has a plan."""
    processes = 1 if "device_map" in engine else 4
    world = World(0, processes, "cuda:0", processes, bf16_is_fast=True, local_size=processes)
    try:
        config = config_from({**COMMON, **training, **engine})
        side = plan_model_side(config, world, LLAMA)
        make_plan(config, world, side, ROWS)
    except ConfigError as error:
        said = [f"`{problem.path}` {problem.message.rstrip('.')}" for problem in error.problems]
        return "; ".join(said)
    return None


def page() -> str:
    """Return the page as Markdown."""
    reasons: dict[str, int] = {}
    lines = [f"| | {' | '.join(ENGINES)} |", f"|---{'|---' * len(ENGINES)}|"]
    for name, training in TRAININGS.items():
        cells = [_cell(refusal(engine, training), reasons) for engine in ENGINES.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    why = [f"{number}. {reason}." for reason, number in reasons.items()]
    return "\n".join([HEAD, *lines, "", *why]) + "\n"


def _cell(reason: str | None, reasons: dict[str, int]) -> str:
    if reason is None:
        return "yes"
    return f"no ({reasons.setdefault(reason, len(reasons) + 1)})"


if __name__ == "__main__":
    sys.stdout.write(page())
