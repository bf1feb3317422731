"""The cache of prepared data: a key made of content, examples and choice on disk, a manifest."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from newtune.data.build import Limits, build_examples
from newtune.data.choice import Choice, choose_examples
from newtune.data.formats import FORMAT_VERSION
from newtune.data.reading import DatasetPlan
from newtune.data.store import ExampleStore, ExampleWriter
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate

if TYPE_CHECKING:
    from newtune.data.counts import DatasetCounts

MANIFEST = "manifest.json"


def cache_key(
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
) -> str:
    """Return the name of the folder that holds exactly this data."""

    def plain(value: Any) -> Any:
        if isinstance(value, ChatTemplate):
            return [value.source, value.variables]
        return asdict(value)

    content = {
        "version": FORMAT_VERSION,
        "datasets": [
            [plan.rows.fingerprint, plan.name, plan.type, vars(plan.options), plan.held_out]
            for plan in datasets
        ],
        "tokenizer": [
            hashlib.sha256(encoder.backend_json.encode()).hexdigest(),
            encoder.bos,
            encoder.eos,
        ],
        "limits": [limits, eval_limits],
        "choice": choice,
    }
    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_cache(
    folder: Path,
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
    processes: int,
) -> None:
    """Write aside, then rename: a folder with the final name is whole."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _write_parts(aside, datasets, encoder, limits, eval_limits, choice, processes)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_parts(
    aside: Path,
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
    processes: int,
) -> None:
    counts: list[DatasetCounts] = []
    with ExampleWriter(aside / "train.arrow") as train, ExampleWriter(aside / "eval.arrow") as test:
        for number, plan in enumerate(datasets):
            counts.append(
                build_examples(
                    plan.rows,
                    plan.reader(encoder),
                    eval_limits if plan.held_out else limits,
                    test if plan.held_out else train,
                    name=plan.name,
                    dataset=number,
                    processes=processes,
                )
            )
    every = ExampleStore(aside / "train.arrow")
    held_out_store = ExampleStore(aside / "eval.arrow")
    trained, held_out = choose_examples(every, choice, held_out_store)
    np.save(aside / "train.npy", trained)
    np.save(aside / "held_out.npy", held_out)
    manifest = {"counts": [asdict(count) for count in counts]}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
