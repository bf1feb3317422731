"""What a chat template does, found by letting it write sample conversations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from newtune.data.traced_json import JsonMapping
from newtune.data.tracing import REASONING_FIELDS, TEMPLATE_ERRORS, ChatTemplate, Rendering

_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_QUESTION = {"role": "user", "content": "?"}
_ANSWER = {"role": "assistant", "content": "!"}

WHOLE_MESSAGES = ("items", "values", "tojson")
"""How a template may write properties of a message that it does not name."""

_MARKER = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


def generation_prompt(template: ChatTemplate) -> str:
    """Return what the template writes to make the assistant speak; empty if it writes nothing."""
    without = _sample(template, [_QUESTION])
    with_prompt = _sample(template, [_QUESTION], add_generation_prompt=True)
    if without is None or with_prompt is None or not with_prompt.text.startswith(without.text):
        return ""  # turns are found without it
    return with_prompt.text[len(without.text) :]


def answer_headers(template: ChatTemplate) -> Iterator[str]:
    """Yield what the template writes before the last and before an earlier answer.

    They serve where the generation prompt does not stand: the template has none, or it opens a
    train of thought that not every answer has.
    """
    rendering = _sample(template, [_QUESTION, _ANSWER, _QUESTION, _ANSWER])
    if rendering is None:
        return
    for turn in (3, 1):
        header = _written_before(rendering, turn)
        if header is not None:
            yield header


def ends_with_next_turn(template: ChatTemplate, end_pattern: re.Pattern[str]) -> bool:
    """Say whether the token that ends an answer is written only when the next question comes.

    Then it stands before the later question and not before the first one.
    """
    rendering = _sample(template, [_QUESTION, _ANSWER, _QUESTION])
    if rendering is None:
        return False
    first, later = _written_before(rendering, 0), _written_before(rendering, 2)
    if first is None or later is None:
        return False
    shared = _common_length(first[::-1], later[::-1])
    return bool(end_pattern.fullmatch(later[: len(later) - shared].strip()))


def writes_reasoning(template: ChatTemplate, key: str) -> bool:
    """Say whether the template writes the reasoning of an answer, or of a call, given as `key`."""
    answer: dict[str, Any] = {**_ANSWER, key: "T"}
    call: dict[str, Any] = {**answer, "content": "", "tool_calls": [_call()]}
    renderings = [_sample(template, [_QUESTION, last]) for last in (answer, call)]
    written = [rendering for rendering in renderings if rendering is not None]
    if not written:
        names = REASONING_FIELDS if key in REASONING_FIELDS else (key,)
        return template.mentions(*names, *WHOLE_MESSAGES)
    return any(
        piece.field == key and piece.end > piece.start
        for rendering in written
        for piece in rendering.pieces
    )


def writes_any(template: ChatTemplate, texts: Sequence[str]) -> bool:
    """Say whether one of the texts stands in the template, or in what it writes of a sample."""
    rendering = _sample(template, [_QUESTION, _ANSWER, _QUESTION, _ANSWER])
    written = template.source + (rendering.text if rendering else "")
    return rendering is None or any(text in written for text in texts)


def shared_length(header: str, text: str) -> int:
    """Return how far a text begins as a header does, no marker and no word cut in two.

    shared_length("<|bot|><|text|>", "<|bot|><|tool|>f") == len("<|bot|>")
    """
    length = _common_length(header, text)
    for whole in (header, text):
        for marker in _MARKER.finditer(whole):
            if marker.start() < length < marker.end():
                length = marker.start()
    while length and header[length - 1].isalnum() and (header + " ")[length].isalnum():
        length -= 1
    return length


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _call() -> dict[str, Any]:
    arguments = JsonMapping()
    arguments.source = None
    return {
        "id": "call00000",
        "type": "function",
        "function": {"name": "f", "arguments": arguments},
    }


def _sample(
    template: ChatTemplate,
    talk: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> Rendering | None:
    """Render a sample, with a tool where the template needs one; None: the template refuses it."""
    for tools in (None, [_TOOL]):
        try:
            return template.render(talk, tools=tools, add_generation_prompt=add_generation_prompt)
        except TEMPLATE_ERRORS:
            continue
    return None


def _written_before(rendering: Rendering, turn: int) -> str | None:
    """Return what the one pass over a turn writes before the turn's own text."""
    own = [piece for piece in rendering.pieces if piece.turn == turn and piece.end > piece.start]
    blocks = [block for block in rendering.blocks if block.turn == turn]
    return rendering.text[blocks[0].start : own[0].start] if own and len(blocks) == 1 else None
