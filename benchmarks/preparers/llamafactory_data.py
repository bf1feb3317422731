"""LLaMA-Factory's preparation, as `llamafactory-cli train` does it: one worker process per core."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ |= {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}  # noqa: TID251  before the import

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from served import Prepare, serve
from transformers import LlamaConfig

SEQUENCE_LEN = 8192
COLUMNS = {"messages": "messages"}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def make(tokenizer_folder: Path, work: Path, _: str) -> Prepare:
    """Return what prepares a file, with nothing in the cache; its own ChatML is the same text."""
    base = work / "llamafactory-base"
    shutil.copytree(tokenizer_folder, base, dirs_exist_ok=True)
    LlamaConfig(max_position_embeddings=SEQUENCE_LEN).save_pretrained(base)

    def prepare(rows: Path) -> Callable[[], dict[str, int]]:
        cache = work / "llamafactory"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        entry = {
            "file_name": str(rows),
            "formatting": "sharegpt",
            "columns": COLUMNS,
            "tags": TAGS,
        }
        (cache / "dataset_info.json").write_text(json.dumps({"rows": entry}), encoding="utf-8")
        model, data, training, _, _ = get_train_args(arguments(base, cache))
        module = load_tokenizer(model)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data)

        def run() -> dict[str, int]:
            prepared = get_dataset(template, model, data, training, stage="sft", **module)
            return {"rows": len(prepared["train_dataset"])}

        return run

    return prepare


def arguments(base: Path, cache: Path) -> dict[str, object]:
    """Return what the command line would say."""
    return {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "model_name_or_path": str(base),
        "cache_dir": str(cache),
        "dataset": "rows",
        "dataset_dir": str(cache),
        "template": "chatml",
        "cutoff_len": SEQUENCE_LEN,
        "preprocessing_num_workers": os.cpu_count(),
        "output_dir": str(cache / "output"),
        "report_to": "none",
        "use_cpu": True,
    }


if __name__ == "__main__":
    serve(
        make,
        ["llamafactory", "tokenizers", "transformers", "datasets", "torch"],
    )
