"""`newtune chat CONFIG|FOLDER`: talk with the result; `/reset` forgets, `/exit` ends."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.loading import load
from newtune.cli.show_results import show_answer, show_chat_begin, show_prompt

if TYPE_CHECKING:
    from newtune.outputs.load import Which


def run(
    config_path: Path,
    overrides: list[str],
    *,
    which: "Which | None" = None,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
) -> int:
    """Answer line by line until `/exit` or the end of the input."""
    loaded = load(config_path, overrides, which=which)
    from newtune.outputs.conversation import Conversation

    conversation = Conversation(
        loaded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        system=loaded.system if system is None else system,
    )
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        show_chat_begin(loaded, conversation.system)
    for text in _lines(is_terminal=is_terminal):
        if text == "/exit":
            break
        if text == "/reset":
            conversation.reset()
        elif text:
            show_answer(conversation.reply(text))
    return 0


def _lines(*, is_terminal: bool) -> Iterator[str]:
    """Yield what the user says, a line each; the end of the input ends the talk."""
    while True:
        if is_terminal:
            show_prompt()
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()
