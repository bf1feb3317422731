"""Axolotl's preparation, as `axolotl preprocess` does it: one worker process per core."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}  # noqa: TID251  before the import

from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.utils.trainer import disable_datasets_caching
from served import Prepare, serve
from transformers import LlamaConfig

SEQUENCE_LEN = 8192


def make(tokenizer_folder: Path, work: Path, template: str) -> Prepare:
    """Return what prepares a file, with nothing in the cache."""
    base = work / "axolotl-base"
    shutil.copytree(tokenizer_folder, base, dirs_exist_ok=True)
    LlamaConfig(max_position_embeddings=SEQUENCE_LEN).save_pretrained(base)

    def prepare(rows: Path) -> Callable[[], dict[str, int]]:
        cache = work / "axolotl"
        shutil.rmtree(cache, ignore_errors=True)
        file = work / "axolotl.yaml"
        keys = {
            "base_model": str(base),
            "datasets": [{"path": str(rows), "ds_type": "json", "type": "chat_template"}],
            "chat_template": "jinja",
            "chat_template_jinja": template,
            "dataset_prepared_path": str(cache),
            "output_dir": str(work / "axolotl-output"),
            "dataset_num_proc": os.cpu_count(),
            "sequence_len": SEQUENCE_LEN,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 1e-4,
            "special_tokens": {"pad_token": "<|im_end|>"},
        }
        file.write_text(json.dumps(keys), encoding="utf-8")  # JSON is YAML
        config = load_cfg(str(file))

        def run() -> dict[str, int]:
            with disable_datasets_caching():
                return {"rows": len(load_datasets(cfg=config).train_dataset)}

        return run

    return prepare


if __name__ == "__main__":
    serve(make, ["axolotl", "tokenizers", "transformers", "datasets", "torch"])
