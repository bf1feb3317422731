"""TRL's preparation, as `SFTTrainer` does it when it is made: one worker process per core."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
from served import Prepare, serve
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

SEQUENCE_LEN = 8192


def make(tokenizer_folder: Path, work: Path, template: str) -> Prepare:
    """Return what prepares a file, with nothing in the cache; the template carries marks."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = template
    datasets.disable_progress_bars()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads))

    def prepare(rows: Path) -> Callable[[], dict[str, int]]:
        cache = work / "trl"
        shutil.rmtree(cache, ignore_errors=True)
        arguments = SFTConfig(
            output_dir=str(work / "trl-output"),
            assistant_only_loss=True,
            max_length=SEQUENCE_LEN,
            dataset_num_proc=os.cpu_count(),
            report_to="none",
            use_cpu=True,
            bf16=False,
        )

        def run() -> dict[str, int]:
            read = datasets.load_dataset(
                "json", data_files=str(rows), split="train", cache_dir=str(cache)
            )
            trainer = SFTTrainer(
                model, args=arguments, train_dataset=read, processing_class=tokenizer
            )
            return {"rows": len(trainer.train_dataset)}

        return run

    return prepare


if __name__ == "__main__":
    serve(make, ["trl", "tokenizers", "transformers", "datasets", "torch"])
