"""`newtune generate CONFIG|FOLDER`: greedy answers to prompts of the command line or of a file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newtune.cli.loading import load
from newtune.cli.show_results import show_text_lines
from newtune.cli.target import check_target
from newtune.errors import DataError

if TYPE_CHECKING:
    from newtune.outputs.load import Which

Messages = list[dict[str, str]]


def run(
    config_path: Path,
    overrides: list[str],
    *,
    prompts: tuple[str, ...] = (),
    input_path: Path | None = None,
    output_path: Path | None = None,
    which: "Which | None" = None,
    max_new_tokens: int = 256,
    system: str | None = None,
) -> int:
    """Print the answers, or write them to `output_path` beside what was asked.

    Before a bare prompt stands `system`, else the system message of the training.
    """
    rows = [*({"prompt": prompt} for prompt in prompts), *_read(input_path)]
    if not rows:
        raise DataError("nothing to answer: give `--prompt TEXT` or `--input FILE.jsonl`")
    asked = [_messages(row, index) for index, row in enumerate(rows, start=1)]
    if output_path is not None:
        check_target(output_path, "--output")
    loaded = load(config_path, overrides, which=which)
    from newtune.outputs.conversation import answer_all
    from newtune.run_dir import write_text

    begin = _begin(loaded.system if system is None else system)
    asked = [
        messages if "messages" in row else [*begin, *messages]
        for row, messages in zip(rows, asked, strict=True)
    ]
    answers = answer_all(loaded, asked, max_new_tokens=max_new_tokens)
    if output_path is None:
        show_text_lines(answers)
        return 0
    answered = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
    write_text(output_path, "".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in answered))
    return 0


def _read(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a row is an object, not {type(row).__name__}")
        rows.append(row)
    return rows


def _begin(system: str | None) -> Messages:
    return [{"role": "system", "content": system}] if system else []


def _messages(row: dict[str, Any], number: int) -> Messages:
    """Return what is asked in a row: its `prompt`, or its `messages` without the last answer."""
    if isinstance(row.get("prompt"), str) and "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}]
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"row {number} holds neither `prompt` nor `messages`; it has: {', '.join(row)}"
        )
    return messages[:-1] if messages[-1].get("role") == "assistant" else messages
