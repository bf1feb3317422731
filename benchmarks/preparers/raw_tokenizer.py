"""The floor: rendered texts through `encode_batch`, 1,000 at a time, ids and offsets read."""

import json
from collections.abc import Callable
from pathlib import Path

from served import Prepare, serve
from tokenizers import Tokenizer
from transformers import AutoTokenizer

ROWS_AT_A_TIME = 1000


def make(tokenizer_folder: Path, _: Path, template: str) -> Prepare:
    """Return what encodes the texts of a file; rendering them is not timed."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    backend = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))

    def prepare(rows: Path) -> Callable[[], dict[str, int]]:
        with rows.open(encoding="utf-8") as file:
            texts = [
                tokenizer.apply_chat_template(
                    json.loads(line)["messages"], chat_template=template, tokenize=False
                )
                for line in file
            ]
        return lambda: encode(backend, texts)

    return prepare


def encode(backend: Tokenizer, texts: list[str]) -> dict[str, int]:
    """Encode, read ids and offsets, count."""
    tokens = 0
    for start in range(0, len(texts), ROWS_AT_A_TIME):
        batch = texts[start : start + ROWS_AT_A_TIME]
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            ids, _ = encoding.ids, encoding.offsets
            tokens += len(ids)
    return {"rows": len(texts), "tokens": tokens}


if __name__ == "__main__":
    serve(make, ["tokenizers", "transformers"])
