"""The result of a run in numbers: collected from the files that the run wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from newtune.outputs.card import write_card
from newtune.outputs.verify import VERIFICATION
from newtune.plan.parts import Plan
from newtune.run_dir import RunDir, read_json_lines, write_json

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunReport:
    """What a finished run did; losses in nats per trained token."""

    folder: Path
    base_model: str
    kind: str
    """`adapter` or `model`: what lies at the folder's root."""
    steps: int
    losses: tuple[tuple[int, float], ...]
    """(step, mean loss since the step before) as logged."""
    eval_losses: tuple[tuple[int, float], ...]
    exact_match_before: float | None
    """Share of held-out rows answered exactly by the base model, 0 to 1; None = not measured."""
    exact_match_after: float | None
    exact_match_rows: int
    tokens: int
    """Trained on, repeats counted, padding left out."""
    trained_tokens: int
    tokens_per_second: float
    """Over the steps alone; evaluating and saving are left out."""
    training_seconds: float
    peak_memory_bytes: int
    trainable_parameters: int
    parameters: int
    merge: Mapping[str, Any] | None = None
    """verification.json of the merged model; None = not merged."""
    upload_problems: tuple[str, ...] = ()
    """Uploads that failed; the run itself did not."""

    def as_dict(self) -> dict[str, Any]:
        """Return what summary.json holds."""
        return {**asdict(self), "folder": str(self.folder)}


def report_run(run_dir: RunDir, plan: Plan) -> RunReport:
    """Collect the result of a finished run, and write summary.json and the model card."""
    report = read_report(run_dir, plan)
    write_json(run_dir.summary_file, report.as_dict())
    write_card(run_dir, plan, report.as_dict())
    return report


def report_uploads(run_dir: RunDir, report: RunReport, problems: Sequence[str]) -> RunReport:
    """Add to a report, and to summary.json, which uploads failed."""
    if not problems:
        return report
    told = replace(report, upload_problems=tuple(problems))
    write_json(run_dir.summary_file, told.as_dict())
    return told


def read_report(run_dir: RunDir, plan: Plan) -> RunReport:
    """Return the result of a run from its metrics and, if it was merged, from the proof of that."""
    lines = read_json_lines(run_dir.metrics_file)
    steps = [line for line in lines if "loss" in line]
    answered = [line for line in lines if "eval_exact_match" in line]
    seconds = _training_seconds(steps)
    tokens = int(steps[-1]["tokens"]) if steps else 0
    proof = run_dir.merged / VERIFICATION
    return RunReport(
        folder=run_dir.root,
        base_model=plan.model.source,
        kind="model" if plan.adapter is None else "adapter",
        steps=int(steps[-1]["step"]) if steps else 0,
        losses=tuple((int(line["step"]), float(line["loss"])) for line in steps),
        eval_losses=tuple(
            (int(line["step"]), float(line["eval_loss"])) for line in lines if "eval_loss" in line
        ),
        exact_match_before=_exact_match([line for line in answered if line["step"] == 0]),
        exact_match_after=_exact_match([line for line in answered if line["step"] > 0]),
        exact_match_rows=int(answered[-1]["eval_answers"]) if answered else 0,
        tokens=tokens,
        trained_tokens=int(steps[-1]["trained_tokens"]) if steps else 0,
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        training_seconds=round(seconds, 1),
        peak_memory_bytes=max((int(line.get("memory_bytes", 0)) for line in steps), default=0),
        trainable_parameters=plan.trainable_parameters,
        parameters=plan.model_facts.parameters,
        merge=json.loads(proof.read_text(encoding="utf-8")) if proof.is_file() else None,
    )


def _training_seconds(steps: Metrics) -> float:
    """Add up the time of the windows between logs: tokens of each over its tokens per second."""
    seconds, before = 0.0, 0
    for line in steps:
        if line["tokens_per_second"]:
            seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    return seconds


def _exact_match(lines: Metrics) -> float | None:
    return float(lines[-1]["eval_exact_match"]) if lines else None
