r"""From a conversation to its text and the characters in it that are trained.

The conversation is rendered once (`tracing`). A trained turn's characters run from where the
generation prompt ends, because that is where the model will start to write, to the end of its
end-of-turn token, because that is how it will stop:

    <|im_start|>assistant\n Four.<|im_end|> \n
    └ generation prompt ─┘ └ trained ─────┘
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jinja2

from newtune.data.rendered import Rendered, Span
from newtune.data.tracing import Block, ChatTemplate, Piece, Rendering
from newtune.errors import DataError

TrainOn = Literal["turn", "all", "last", "none"]
"""Which end tokens are trained: of trained turns, all, the last one, or none."""


class Detail(NamedTuple):
    """Characters `begin` to `end` (exclusive) of a message's content are trained, or not."""

    begin: int
    end: int
    train: bool


@dataclass(frozen=True)
class Turn:
    """One message as the template gets it, and what is to be trained of it.

    `train` is the decision for the whole turn; `details`, if any, decide by character instead.
    """

    message: Mapping[str, Any]
    train: bool
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The turns of one row, and the tools offered in it."""

    turns: Sequence[Turn]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class ChatRenderer:
    """Renders conversations with one template and finds what is trained.

    `end_tokens` are the texts that may end a turn (the tokenizer's special tokens, or the ones
    the user named); `eos_token` is trained as `train_on_eos` says, every other as `train_on_eot`.
    """

    template: ChatTemplate
    end_tokens: tuple[str, ...]
    eos_token: str | None = None
    train_on_eos: TrainOn = "turn"
    train_on_eot: TrainOn = "turn"

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to make the assistant speak; empty if it writes nothing."""
        return _generation_prompt(self.template)

    @cached_property
    def end_pattern(self) -> re.Pattern[str]:
        """Matches any of the end tokens, the longest first."""
        longest_first = sorted(filter(None, self.end_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(self, conversation: Conversation, place: str) -> Rendered:
        """Return the text of a conversation and its trained characters.

        Raises:
            DataError: the template refused the conversation, or one of its turns is not in the
                text; `place` (source and row) is named.
        """
        messages = [turn.message for turn in conversation.turns]
        try:
            rendering = self.template.render(messages, tools=conversation.tools)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{place}: the chat template failed: {error}") from error
        ranges = [
            self._turn_range(rendering, index, turn, place)
            for index, turn in enumerate(conversation.turns)
        ]
        return self._rendered(conversation.turns, rendering, ranges)

    def _turn_range(self, rendering: Rendering, index: int, turn: Turn, place: str) -> "TurnRange":
        """Find where turn `index` begins, where its end token stands, and where it ends."""
        text = rendering.text
        own = _own_pieces(rendering, index, turn, place)
        block = _block_of(rendering.blocks, index, own)
        is_assistant = turn.message.get("role") == "assistant"
        prompt = self.generation_prompt if is_assistant and block else ""
        if block and prompt and text.startswith(prompt, block.start):
            start = min([block.start + len(prompt), *(piece.start for piece in own)])
        elif own:
            start = own[0].start
        elif turn.train:
            raise DataError(
                f"{place}, turn {index + 1} ({turn.message.get('role')}): cannot tell where its "
                "text begins in what the chat template wrote. Leave the turn untrained, or use a "
                "template that writes its generation prompt before the turn."
            )
        else:
            return TurnRange(0, 0, 0, own)
        body_end = max([start, *(piece.end for piece in own)])
        end_start, end = self._end_token(rendering, index, body_end, block)
        return TurnRange(start, end_start, end, own)

    def _end_token(
        self, rendering: Rendering, index: int, body_end: int, block: Block | None
    ) -> tuple[int, int]:
        """Return the characters of the token that ends a turn; an empty range if there is none.

        Inside the turn's own block it is the last end token after the body (tool calls may hold
        others before it), or, when the template's marker is no token of the tokenizer, whatever
        the template wrote there. Without a block it is the first end token before the next turn.
        """
        text = rendering.text
        if block:
            found = list(self.end_pattern.finditer(text, body_end, block.end))
            if found:
                return found[-1].span()
            closing = text[body_end : block.end].rstrip()
            if closing:
                return body_end, body_end + len(closing)
            if any(other.start >= block.end for other in rendering.blocks):
                return body_end, body_end
        others = (piece.start for piece in rendering.pieces if piece.turn != index)
        limit = min((start for start in others if start >= body_end), default=len(text))
        match = self.end_pattern.search(text, body_end, limit)
        follows = match and not (block and text[block.end : match.start()].strip())
        return match.span() if match and follows else (body_end, body_end)

    def _rendered(
        self, turns: Sequence[Turn], rendering: Rendering, ranges: Sequence["TurnRange"]
    ) -> Rendered:
        """Put together what is trained of each turn and of its end."""
        trained: list[Span] = []
        trained_turns = ended = 0
        last_end = max((i for i, found in enumerate(ranges) if found.has_end), default=-1)
        for index, (turn, found) in enumerate(zip(turns, ranges, strict=True)):
            is_trained = turn.train or any(detail.train for detail in turn.details)
            trained_turns += is_trained
            if turn.details:
                trained += _detail_spans(turn.details, found.own)
            elif turn.train and found.body_end > found.start:
                trained += _without_others(Span(found.start, found.body_end), index, rendering)
            is_eos = rendering.text[found.body_end : found.end] == self.eos_token
            wish = self.train_on_eos if is_eos else self.train_on_eot
            is_last = index == last_end
            if found.has_end and _trains_end(wish, turn_trained=is_trained, is_last=is_last):
                ended += is_trained
                trained.append(Span(found.body_end, found.end))
        return Rendered(rendering.text, _merged(trained), turns=trained_turns, ended=ended)


class TurnRange(NamedTuple):
    """Where a turn stands: text from `start` to `body_end`, its end token from there to `end`."""

    start: int
    body_end: int
    end: int
    own: Sequence[Piece]

    @property
    def has_end(self) -> bool:
        """The template closed this turn with a token."""
        return self.end > self.body_end


def _trains_end(wish: TrainOn, *, turn_trained: bool, is_last: bool) -> bool:
    choices = {"turn": turn_trained, "all": True, "last": is_last, "none": False}
    return choices[wish]


def _generation_prompt(template: ChatTemplate) -> str:
    question = [{"role": "user", "content": "?"}]
    try:
        without = template.render(question).text
        with_prompt = template.render(question, add_generation_prompt=True).text
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return ""  # the template refuses so short a conversation; turns are found without it
    return with_prompt[len(without) :] if with_prompt.startswith(without) else ""


def _own_pieces(rendering: Rendering, index: int, turn: Turn, place: str) -> list[Piece]:
    """Return the pieces of turn `index`; search for the text when the memory of it was lost."""
    own = [piece for piece in rendering.pieces if piece.turn == index]
    content = turn.message.get("content")
    if any(piece.field == "content" for piece in own) or not _has_text(content):
        return own
    found = _search(rendering, index, content) if isinstance(content, str) else None
    if found is None:
        raise DataError(
            f"{place}, turn {index + 1} ({turn.message.get('role')}): not in the text that the "
            f"chat template wrote: {_shorten(content)}. Use a template that writes it"
            + (", or set `drop_system_message`." if index == 0 else ", or leave the row out.")
        )
    return [*own, found]


def _has_text(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, list):
        return any(_has_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return False


def _search(rendering: Rendering, index: int, content: str) -> Piece | None:
    """Find a content that went through something that forgets, as it is or as JSON."""
    blocks = [block for block in rendering.blocks if block.turn == index]
    areas = blocks or [Block(0, len(rendering.text), index)]
    escaped = (json.dumps(content, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    for candidate in (content, content.strip(), *escaped):
        places = [
            start for area in areas for start in _occurrences(rendering.text, candidate, area)
        ]
        if len(places) == 1:
            return Piece(places[0], places[0] + len(candidate), index, "content", 0)
    return None


def _occurrences(text: str, wanted: str, area: Block) -> Iterable[int]:
    start = text.find(wanted, area.start, area.end)
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1, area.end)


def _shorten(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _block_of(blocks: Sequence[Block], index: int, own: Sequence[Piece]) -> Block | None:
    """Return the pass of a loop that wrote turn `index`; the innermost if several hold it."""
    candidates = [block for block in blocks if block.turn == index]
    if own:
        inside = (b for b in candidates if b.start <= own[0].start and own[-1].end <= b.end)
        return min(inside, key=lambda block: block.end - block.start, default=None)
    return max(candidates, key=lambda block: block.end - block.start, default=None)


def _detail_spans(details: Iterable[Detail], own: Sequence[Piece]) -> list[Span]:
    """Map character ranges of the content to where those characters stand in the text."""
    spans = []
    for piece in own:
        if piece.field != "content":
            continue
        for detail in details:
            low = max(detail.begin, piece.offset)
            high = min(detail.end, piece.offset + piece.end - piece.start)
            if detail.train and low < high:
                shift = piece.start - piece.offset
                spans.append(Span(low + shift, high + shift))
    return spans


def _without_others(span: Span, index: int, rendering: Rendering) -> list[Span]:
    """Cut from a turn's span what other turns wrote inside it (a tool's answer, say)."""
    kept = []
    start = span.start
    for piece in rendering.pieces:
        if piece.turn != index and piece.end > start and piece.start < span.end:
            kept.append(Span(start, max(start, piece.start)))
            start = max(start, piece.end)
    kept.append(Span(start, max(start, span.end)))
    return [part for part in kept if part.end > part.start]


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        elif span.end > span.start:
            merged.append(span)
    return merged
