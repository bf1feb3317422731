"""One training step of newtune beside the usual path, alternating: tokens per second, memory.

    python benchmarks/step.py [MODEL] [--steps 5] [--tokens 1024] [--example 52]

newtune: attention per packed example, fused loss, frozen weights in bfloat16 under autocast. The
usual path: transformers' sdpa over the pack's mask, all logits in memory, float32 weights. Both
LoRA r=8 on all linear layers. MODEL is a folder, hub id or `.gguf` file; left out: a random
12-layer Llama. Memory is the process's peak, measured in a process of its own for each path.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from newtune.model.facts import read_model_facts
from newtune.model.head import compute_loss_sum
from newtune.model.load import load_model
from newtune.plan.parts import AdapterPlan, ModelPlan, PrecisionPlan
from newtune.plan.targets import resolve_targets

PATHS = {
    "newtune": ("newtune_packed", PrecisionPlan("bfloat16", "float32", "bfloat16", None)),
    "usual": ("sdpa", PrecisionPlan("float32", "float32", None, None)),
}


class NoTokens:
    """Stands in for the tokenizer: only its size is asked."""

    def __len__(self) -> int:
        return 1


def build(path: str, source: str) -> torch.nn.Module:
    """Load the model as the path trains it."""
    attention, precision = PATHS[path]
    facts = read_model_facts(source)
    plan = ModelPlan(
        source, source, None, "AutoModelForCausalLM", False, (), {}, {}, attention, precision,
        "cpu", False, {}, None,
    )  # fmt: skip
    targets = resolve_targets(facts, modules=None, all_linear=True)
    adapter = AdapterPlan(
        "lora", 8, 16.0, 0.0, targets, None, (), False, False, False, True, None
    )  # fmt: skip
    tokenizer: PreTrainedTokenizerBase = NoTokens()  # type: ignore[assignment]
    return load_model(plan, adapter, tokenizer=tokenizer)


def step(path: str, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Run forward and backward once."""
    if path == "newtune":
        with torch.autocast("cpu", torch.bfloat16):
            loss, count = compute_loss_sum(model, batch)
        (loss / count).backward()
        return
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits.float()
    F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:]).backward()


def serve(path: str, source: str, batch: dict[str, torch.Tensor], pipe: Connection) -> None:
    """Answer each request with the seconds of one step; the last with the peak memory in GB."""
    model = build(path, source)
    step(path, model, batch)
    pipe.send(0.0)
    while pipe.recv():
        start = time.perf_counter()
        step(path, model, batch)
        pipe.send(time.perf_counter() - start)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main() -> None:
    """Measure both paths, one step each in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--example", type=int, default=52)
    given = parser.parse_args()
    positions = torch.arange(given.tokens) % given.example
    tokens = torch.randint(0, 30_000, (1, given.tokens))
    labels = torch.where(positions < given.example // 2, -100, tokens)
    batch = {"input_ids": tokens, "labels": labels, "position_ids": positions.unsqueeze(0)}
    with tempfile.TemporaryDirectory() as folder:
        source = given.model or folder
        if given.model is None:
            config = LlamaConfig(
                hidden_size=512, intermediate_size=1408, num_hidden_layers=12,
                num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
            )  # fmt: skip
            LlamaForCausalLM(config).save_pretrained(folder)
        seconds, memory = measure(source, batch, given.steps)
    for path, times in seconds.items():
        speed = given.tokens / statistics.median(times)
        print(f"{path:8} {speed:8.0f} tokens/s   {memory[path]:5.2f} GB peak")
    ratio = statistics.median(seconds["usual"]) / statistics.median(seconds["newtune"])
    print(f"newtune: {ratio:.2f}x the speed, {memory['newtune'] / memory['usual']:.2f}x the memory")


def measure(
    source: str, batch: dict[str, torch.Tensor], steps: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return seconds per step and peak memory of each path."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for path in PATHS:
        pipes[path], theirs = context.Pipe()
        context.Process(target=serve, args=(path, source, batch, theirs), daemon=True).start()
        pipes[path].recv()
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(steps):
        for path, pipe in pipes.items():
            pipe.send(True)
            seconds[path].append(pipe.recv())
    memory = {}
    for path, pipe in pipes.items():
        pipe.send(False)
        memory[path] = pipe.recv()
    return seconds, memory


if __name__ == "__main__":
    main()
