"""Rows and prepared data, made in the process that tests.

write_rows(tmp_path / "rows.jsonl", questions(5))
data = prepare(tmp_path, sample_packing=True)
"""

import json
from pathlib import Path

from newtune.config.load import load_config
from newtune.data.prepare import PreparedData, prepare_data
from tiny import tiny_tokenizer


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(count: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"Add one to {n}.", "input": "", "output": f"It is {n + 1}."}
        for n in range(start, start + count)
    ]


def prepare(folder: Path, *, force: bool = False, **keys) -> PreparedData:
    """Prepare `rows.jsonl` of the folder as alpaca unless `keys` say otherwise."""
    given = {
        "base_model": "tiny",
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": 256,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        **keys,
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(given))  # JSON is YAML
    return prepare_data(load_config(file), tiny_tokenizer(), force=force)
