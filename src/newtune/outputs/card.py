"""The model card: README.md of a result, with the front matter that model hubs read."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from newtune import __version__
from newtune.plan.parts import Plan
from newtune.run_dir import RunDir, write_text

CARD = "README.md"


def write_card(run_dir: RunDir, plan: Plan, results: Mapping[str, Any]) -> None:
    """Write the card of a finished run, and that of its merged model, if there is one.

    `results` is the content of summary.json.
    """
    write_text(run_dir.root / CARD, card_of_run(run_dir, plan, results))
    if results["merge"] is not None:
        write_text(run_dir.merged / CARD, card_of_run(run_dir, plan, results, merged=True))


def card_of_run(
    run_dir: RunDir, plan: Plan, results: Mapping[str, Any], *, merged: bool = False
) -> str:
    """Return the card of a run as far as it has come."""
    counts = _read_json(run_dir.data_file, [])
    environment = _read_json(run_dir.environment_file, {})
    return card_text(plan, results, counts, environment, merged=merged)


def card_text(
    plan: Plan,
    results: Mapping[str, Any],
    counts: list[Mapping[str, Any]],
    environment: Mapping[str, Any],
    *,
    merged: bool = False,
) -> str:
    """Return the card as Markdown: of what was trained, or of the merged model."""
    sections = (
        _title(plan, merged=merged),
        _scores(results),
        _use(plan, is_adapter=plan.adapter is not None and not merged),
        _proof(results["merge"]) if merged else (),
        _data(plan, counts),
        _training(plan, results),
        _versions(environment),
    )
    body = "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))
    # JSON values are YAML values, and quoting never surprises
    front = [
        f"{key}: {json.dumps(value)}" for key, value in front_matter(plan, merged=merged).items()
    ]
    return "\n".join(["---", *front, "---", "", body, ""])


def front_matter(plan: Plan, *, merged: bool = False) -> dict[str, Any]:
    """Return what hubs read: base, library, tags.

    A base of this machine is left out: a hub refuses a card that names one it does not have.
    """
    source, adapter = plan.model.source, plan.adapter is not None
    base = {"base_model": source} if is_hub_id(source) else {}
    tags = ["newtune", "lora" if adapter else "full-fine-tuning", *(["merged"] if merged else [])]
    return {
        **base,
        "library_name": "peft" if adapter and not merged else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }


def is_hub_id(source: str) -> bool:
    """Tell a hub id from a path of this machine."""
    return source.count("/") <= 1 and not source.endswith(".gguf") and not Path(source).exists()


def published_name(source: str) -> str:
    """Return a hub id as it is, and of a local path only the last part."""
    return source if is_hub_id(source) else Path(source).name


def _title(plan: Plan, *, merged: bool) -> Iterator[str]:
    base = published_name(plan.model.source)
    yield f"# {plan.output.folder.name}"
    yield ""
    if merged:
        yield f"`{base}` with a LoRA adapter merged in, trained and merged with newtune."
    elif plan.adapter is None:
        yield f"`{base}`, all of its weights fine-tuned with newtune."
    else:
        yield f"A LoRA adapter of rank {plan.adapter.rank} for `{base}`, trained with newtune."


def _scores(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Results"
    yield ""
    yield "| measure | value |"
    yield "|---|---|"
    if results["exact_match_before"] is not None:
        rows = results["exact_match_rows"]
        yield f"| exact match before, {rows} held-out rows | {results['exact_match_before']:.1%} |"
    if results["exact_match_after"] is not None:
        yield f"| exact match after | {results['exact_match_after']:.1%} |"
    if results["eval_losses"]:
        yield f"| loss on held-out rows, nats per token | {results['eval_losses'][-1][1]:.4f} |"
    if results["losses"]:
        yield f"| training loss, last logged | {results['losses'][-1][1]:.4f} |"
    yield f"| tokens trained on | {results['tokens']:,} |"


def _use(plan: Plan, *, is_adapter: bool) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```python"
    if is_adapter:
        yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'folder = "."  # this folder, or its hub id'
    yield "tokenizer = AutoTokenizer.from_pretrained(folder)"
    if is_adapter:
        yield f'base = AutoModelForCausalLM.from_pretrained("{published_name(plan.model.source)}")'
        yield "model = PeftModel.from_pretrained(base, folder)"
    else:
        yield "model = AutoModelForCausalLM.from_pretrained(folder)"
    yield "```"
    if is_adapter:
        yield ""
        yield "A `merged/` folder beside this card, if there is one, loads without PEFT."


def _proof(merge: Mapping[str, Any]) -> Iterator[str]:
    yield "## Proof of the merge"
    yield ""
    yield f"Compared with base + adapter on {merge['positions']:,} tokens ({merge['source']}):"
    yield ""
    yield "| measure | value |"
    yield "|---|---|"
    yield f"| precision | {merge['dtype']} |"
    yield f"| largest logit difference | {merge['largest_logit_difference']:.3g} |"
    yield f"| KL(adapter‖merged), share of KL(adapter‖base) | {merge['kl_share']:.3%} |"
    yield f"| equal greedy tokens | {merge['equal_greedy']:.2%} |"


def _data(plan: Plan, counts: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield "| dataset | rows read | dropped | truncated | examples | tokens | trained tokens |"
    yield "|---|---|---|---|---|---|---|"
    for entry in counts:
        dropped = sum(reason["rows"] for reason in entry["dropped"])
        numbers = (
            entry["rows_read"],
            dropped,
            entry["rows_truncated"],
            entry["examples"],
            entry["tokens"],
            entry["trained_tokens"],
        )
        cells = " | ".join(f"{number:,}" for number in numbers)
        yield f"| {published_name(entry['name'])} | {cells} |"
    facts = plan.data_facts
    for system in dict.fromkeys(entry.get("system") for entry in counts):
        if system:
            yield ""
            yield "The conversations begin with this system message:"
            yield ""
            yield from (f"> {line}" for line in system.splitlines())
    yield ""
    trained = "a stream" if facts.streamed else f"{facts.train_examples:,} examples"
    yield f"Trained on {trained}, {facts.eval_examples:,} held out."


def _training(plan: Plan, results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield "| what | value |"
    yield "|---|---|"
    for name, value in _hyper_parameters(plan):
        yield f"| {name} | {value} |"
    yield f"| speed | {results['tokens_per_second']:,.0f} tokens per second |"
    yield f"| peak memory | {results['peak_memory_bytes'] / 1e9:.2f} GB |"


def _hyper_parameters(plan: Plan) -> Iterator[tuple[str, Any]]:
    training, precision = plan.training, plan.model.precision
    optimizer = training.optimizer
    if plan.adapter is not None:
        targets = plan.adapter.target_modules
        listed = targets if isinstance(targets, str) else ", ".join(targets)
        yield "adapter", f"LoRA r={plan.adapter.rank}, alpha={plan.adapter.alpha:g}, on {listed}"
    share = plan.trainable_parameters / plan.model_facts.parameters
    yield "trained parameters", f"{plan.trainable_parameters:,} ({share:.2%} of the base)"
    yield "optimizer", f"{optimizer.name}, weight decay {optimizer.weight_decay:g}"
    schedule = training.schedule
    yield (
        "learning rate",
        f"{optimizer.learning_rate:g}, {schedule.name}, {schedule.warmup_steps} warm-up steps",
    )
    yield "steps", f"{training.steps.total_steps:,}, {training.steps.epochs:g} epochs"
    yield (
        "per step",
        f"{training.steps.rows_per_step} sequences, {plan.tokens_per_step:,.0f} tokens on average",
    )
    yield (
        "precision",
        f"frozen {precision.frozen_weights}, trained {precision.trained_weights}, "
        f"autocast {precision.autocast or 'none'}",
    )
    yield "seed", training.steps.seed


def _versions(environment: Mapping[str, Any]) -> Iterator[str]:
    yield "## Versions"
    yield ""
    versions = {"newtune": __version__, **environment.get("versions", {})}
    named = [f"{name} {version}" for name, version in versions.items()]
    yield ", ".join([*named, f"Python {environment['python']}"] if environment else named)


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
