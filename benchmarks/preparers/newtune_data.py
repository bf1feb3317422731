"""newtune's whole preparation: read, render, tokenise, mask, filter, shuffle, write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from served import Prepare, serve

from newtune.config.load import load_config
from newtune.data.prepare import prepare_data
from newtune.model.tokenizer import read_tokenizer

SEQUENCE_LEN = 8192


def make(tokenizer_folder: Path, work: Path, template: str) -> Prepare:
    """Return what prepares a file, with nothing in the cache."""
    tokenizer = read_tokenizer(str(tokenizer_folder))

    def prepare(rows: Path) -> Callable[[], dict[str, int]]:
        cache = work / "prepared"
        shutil.rmtree(cache, ignore_errors=True)
        file = work / "newtune.yaml"
        keys = {
            "base_model": str(tokenizer_folder),
            "datasets": [{"path": str(rows), "type": "chat_template"}],
            "chat_template": "jinja",
            "chat_template_jinja": template,
            "dataset_prepared_path": str(cache),
            "output_dir": str(work / "output"),
            "sequence_len": SEQUENCE_LEN,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4,
        }
        file.write_text(json.dumps(keys), encoding="utf-8")  # JSON is YAML
        config = load_config(file)

        def run() -> dict[str, int]:
            data = prepare_data(config, tokenizer)
            if data.from_cache:
                raise RuntimeError("nothing was prepared: the cache was not empty")
            return {
                "rows": data.facts.train_examples,
                "tokens": data.facts.tokens,
                "trained_tokens": data.facts.trained_tokens,
            }

        return run

    return prepare


if __name__ == "__main__":
    serve(make, ["newtune", "tokenizers", "transformers", "pyarrow", "numpy", "Jinja2"])
