"""Render a chat template once, and know which message wrote each character.

The strings of a conversation enter the template as `Traced`: a `str` that remembers where its
characters came from (`traced`). Besides, each pass of a loop over messages is marked
(`sandbox`), so that what the template adds around a message (role header, end-of-turn token) is
known to be that turn's too.
"""

import re
from collections.abc import Iterable, Mapping, Set
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
from jinja2 import meta

from newtune.data.sandbox import Message, TemplateEnvironment
from newtune.data.traced import Mark, Piece, Traced
from newtune.data.traced_json import JsonMapping, WrittenList, WrittenMapping
from newtune.errors import DataError

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names a message's reasoning goes by; templates read the first or the second."""

_REASONING = frozenset(REASONING_FIELDS)

TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template that refuses or fails raises."""


class Block(NamedTuple):
    """Characters `start` to `end` were written by one pass of a loop, the one over `turn`."""

    start: int
    end: int
    turn: int


class Rendering(NamedTuple):
    """A rendered conversation, and who wrote what in it."""

    text: str
    pieces: tuple[Piece, ...]
    blocks: tuple[Block, ...]


class ChatTemplate:
    """A compiled chat template.

    `bos_token` and the like are given to the template as `tokens`; `arguments` are the dataset's
    own (`enable_thinking: false`).

    Raises:
        DataError: `source` is not valid jinja.
    """

    def __init__(
        self,
        source: str,
        *,
        tokens: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.variables = {**(tokens or {}), **(arguments or {})}
        _ = self._template

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.source, self.variables)

    @cached_property
    def _environment(self) -> TemplateEnvironment:
        return TemplateEnvironment()

    @cached_property
    def _template(self) -> jinja2.Template:
        try:
            return self._environment.compiled(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"The chat template is not valid jinja: line {error.lineno}: {error.message}"
            ) from error

    def reads(self, name: str) -> bool:
        """Say whether the template looks at a variable."""
        return name in self._variables

    @cached_property
    def _variables(self) -> Set[str]:
        return meta.find_undeclared_variables(self._environment.parse(self.source))

    def mentions(self, *names: str) -> bool:
        """Say whether one of these words stands in the template."""
        return not self._words.isdisjoint(names)

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self.source))

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendering:
        """Render one conversation.

        Raises:
            jinja2.TemplateError: the template refused the conversation (`raise_exception`); the
                other `TEMPLATE_ERRORS` when it failed.
        """
        self._environment.passes = 0
        result = self._template.render(
            messages=WrittenList(_message(turn, message) for turn, message in enumerate(messages)),
            tools=tools or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
        )
        if not isinstance(result, Traced):
            return Rendering(result, (), ())
        # exactly a `str` from here on: tokenizers and numpy need not know of the memory
        text = str.__getitem__(result, slice(None))
        return Rendering(text, result._pieces, _blocks(result._marks, len(result)))


def _restore(source: str, variables: Mapping[str, Any]) -> ChatTemplate:
    return ChatTemplate(source, arguments=variables)


def _message(turn: int, message: Mapping[str, Any]) -> Message:
    """Return a message with every string traced, role and name excepted."""
    made = Message()
    made.turn = turn
    for key, value in message.items():
        if type(value) is str:
            made[key] = value if key in ("role", "name") else Traced.whole(value, turn, key)
        else:
            made[key] = _trace(value, turn, key)
    if not _REASONING.isdisjoint(made):
        for name in REASONING_FIELDS:
            if made.get(name) is not None:
                made.setdefault("thinking", made[name])
                made["reasoning_content"] = made[name]
                break
    return made


def _trace(value: Any, turn: int, field: str) -> Any:
    if isinstance(value, str):
        return Traced.whole(value, turn, field)
    if isinstance(value, JsonMapping):
        arguments = JsonMapping({key: _trace(item, turn, field) for key, item in value.items()})
        source = value.source
        arguments.source = None if source is None else Traced.whole(source, turn, field)
        return arguments
    if isinstance(value, Mapping):
        return WrittenMapping({key: _trace(item, turn, field) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return WrittenList(_trace(item, turn, field) for item in value)
    return value


def _blocks(marks: tuple[Mark, ...], length: int) -> tuple[Block, ...]:
    """Turn loop marks into the characters each pass wrote; a loop inside a pass nests."""
    blocks: list[Block] = []
    open_passes: list[Mark] = []

    def close(position: int) -> None:
        begun = open_passes.pop()
        if begun.turn is not None and position > begun.position:
            blocks.append(Block(begun.position, position, begun.turn))

    for mark in marks:
        if open_passes and open_passes[-1].loop == mark.loop:
            close(mark.position)
        if mark.turn is not None:
            open_passes.append(mark)
    while open_passes:
        close(length)
    return tuple(sorted(blocks))
