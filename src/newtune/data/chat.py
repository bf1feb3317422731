r"""From a conversation to its text and the characters in it that are trained.

The conversation is rendered once (`tracing`) and its turns are found in the text (`turns`). A
trained turn's characters run from where the generation prompt ends, because that is where the
model will start to write, to the end of its end-of-turn token, because that is how it will stop:

    <|im_start|>assistant\n Four.<|im_end|> \n
    └ generation prompt ─┘ └ trained ─────┘
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from newtune.data.probes import answer_headers, ends_with_next_turn, generation_prompt
from newtune.data.rendered import Rendered, Span
from newtune.data.traced import INEXACT, Piece
from newtune.data.tracing import TEMPLATE_ERRORS, ChatTemplate
from newtune.data.turns import Landmarks, TurnFinder, TurnRange
from newtune.errors import DataError

TrainOn = Literal["turn", "all", "last", "none"]
"""Which end tokens are trained: of trained turns, all, the last one, or none."""


class Detail(NamedTuple):
    """Characters `begin` to `end` (exclusive) of a message's content are trained, or not."""

    begin: int
    end: int
    train: bool


class Turn(NamedTuple):
    """One message as the template gets it, and what is to be trained of it.

    `train` is the decision for the whole turn; `details`, if any, decide by character instead.
    """

    message: Mapping[str, Any]
    train: bool
    details: tuple[Detail, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Something of it is trained."""
        return self.train or any(detail.train for detail in self.details)


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
    ends_at_next_turn: bool = False
    """An end token also ends a turn where the template writes it to open the next one."""

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to make the assistant speak; empty if it writes nothing."""
        return generation_prompt(self.template)

    @cached_property
    def landmarks(self) -> Landmarks:
        """What the template writes around answers."""
        of_answers = list(answer_headers(self.template))
        headers = [self.generation_prompt, *of_answers]
        end_pattern = self._end_pattern()
        return Landmarks(
            tuple(dict.fromkeys(filter(None, headers))),
            end_pattern,
            headless=bool(of_answers) and not any(header.strip() for header in headers),
            ends_at_next_turn=self.ends_at_next_turn
            or ends_with_next_turn(self.template, end_pattern),
        )

    def _end_pattern(self) -> re.Pattern[str]:
        """Match any of the end tokens, the longest first; one that opens a turn ends none."""
        bos = self.template.variables.get("bos_token")
        ends = [
            token
            for token in filter(None, self.end_tokens)
            if token == self.eos_token or (token != bos and token not in self.generation_prompt)
        ]
        longest_first = sorted(ends, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(self, conversation: Conversation, place: str) -> Rendered:
        """Return the text of a conversation and its trained characters.

        Raises:
            DataError: the template refused the conversation, or one of its turns is not in the
                text; `place` (source and row) is named.
        """
        messages = [turn.message for turn in conversation.turns]
        self._require_tools_are_written(conversation, place)
        try:
            rendering = self.template.render(messages, tools=conversation.tools)
        except TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            if not conversation.tools and self.template.reads("tools"):
                reason += " (the row offers no tools, which this template may need)"
            raise DataError(f"{place}: the chat template failed: {reason}") from error
        finder = TurnFinder(rendering, self.landmarks, place)
        ranges = [
            finder.find(index, turn.message, trained=turn.is_trained)
            if turn.is_trained or self._trains_other_ends
            else finder.check(index, turn.message)
            for index, turn in enumerate(conversation.turns)
        ]
        return self._rendered(conversation.turns, finder, ranges)

    @cached_property
    def _trains_other_ends(self) -> bool:
        """Whether an end token may be trained whose turn is not."""
        return not {self.train_on_eos, self.train_on_eot} <= {"turn", "none"}

    def _require_tools_are_written(self, conversation: Conversation, place: str) -> None:
        if conversation.tools and not self.template.reads("tools"):
            raise DataError(
                f"{place}: offers tools, which the chat template never writes. Use a template for "
                "tools (`qwen_25`, `qwen3`, `llama3_1`, or the model's own), or leave them out by "
                "`field_tools: none`."
            )

    def _rendered(
        self, turns: Sequence[Turn], finder: TurnFinder, ranges: Sequence[TurnRange]
    ) -> Rendered:
        """Put together what is trained of each turn and of its end."""
        trained: list[Span] = []
        trained_turns = ended = 0
        last_end = max((i for i, found in enumerate(ranges) if found.has_end), default=-1)
        for index, (turn, found) in enumerate(zip(turns, ranges, strict=True)):
            is_trained = turn.is_trained
            trained_turns += is_trained
            if turn.details:
                trained += _detail_spans(
                    turn.details, found.own, f"{finder.place}, turn {index + 1}"
                )
            elif turn.train and found.body_end > found.start:
                trained += finder.without_others(Span(found.start, found.body_end), index)
            if found.has_end and self._trains_end(
                finder.text[found.body_end : found.end], is_trained, is_last=index == last_end
            ):
                ended += is_trained
                trained.append(Span(found.body_end, found.end))
        return Rendered(finder.text, _merged(trained), turns=trained_turns, ended=ended)

    def _trains_end(self, end: str, turn_trained: bool, *, is_last: bool) -> bool:  # noqa: FBT001
        wish = self.train_on_eos if end == self.eos_token else self.train_on_eot
        return wish == "all" or (wish == "turn" and turn_trained) or (wish == "last" and is_last)


def _detail_spans(details: Iterable[Detail], own: Iterable[Piece], place: str) -> Iterator[Span]:
    """Map character ranges of the content to where those characters stand in the text."""
    for piece in own:
        if piece.field != "content":
            continue
        if piece.offset == INEXACT:
            raise DataError(
                f"{place}: has ranges of characters, but the chat template changes its text in a "
                "way that moves characters. Train the turn whole, or use another template."
            )
        for detail in details:
            low = max(detail.begin, piece.offset)
            high = min(detail.end, piece.offset + piece.end - piece.start)
            if detail.train and low < high:
                shift = piece.start - piece.offset
                yield Span(low + shift, high + shift)


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        elif span.end > span.start:
            merged.append(span)
    return merged
