"""Render a chat template once, and know which message wrote each character.

The strings of a conversation enter the template as `Traced`: a `str` that remembers, through
slicing, stripping, splitting and joining, where its characters came from. A `Traced` is equal to
the plain string in every test a template can make, so the text is exactly what the template
writes; only the memory may be lost (through `tojson`, say), never the text. Besides, each pass of
a loop over messages is marked, so that what the template adds around a message (role header,
end-of-turn token) is known to be that turn's too.

Jinja's own doors are used: a code generator class, `Environment.concat`, `Environment.call`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from newtune.errors import DataError

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names a message's reasoning goes by; templates read the first or the second."""


class Piece(NamedTuple):
    """Characters `start` to `end` are `field` of message `turn`, from character `offset` on.

    A piece may be empty: an empty content still tells where its turn's text would stand.
    """

    start: int
    end: int
    turn: int
    field: str
    offset: int


class Mark(NamedTuple):
    """At this position loop number `loop` reached message `turn` (None: the loop ended)."""

    position: int
    loop: int
    turn: int | None


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


class Traced(str):
    """A string that remembers which of its characters are whose; equal to the plain string."""

    __slots__ = ("_marks", "_pieces")
    _pieces: tuple[Piece, ...]
    _marks: tuple[Mark, ...]

    @classmethod
    def whole(cls, text: str, turn: int, field: str) -> "Traced":
        """Return `text`, all of it from one field of one message."""
        return _traced(text, (Piece(0, len(text), turn, field, 0),))

    def __str__(self) -> "Traced":
        return self

    def __add__(self, other: str) -> "Traced":
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> "Traced":
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> "str":
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            start, _, step = key.indices(len(self))
            return self._cut(start, text) if step == 1 else text
        index = key.__index__()
        return self._cut(index if index >= 0 else index + len(self), text)

    def strip(self, chars: str | None = None, /) -> "Traced":
        """Strip, as `str` does; the memory of what is left stays."""
        return self._cut(len(self) - len(str.lstrip(self, chars)), str.strip(self, chars))

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        """Strip at the start."""
        text = str.lstrip(self, chars)
        return self._cut(len(self) - len(text), text)

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        """Strip at the end."""
        return self._cut(0, str.rstrip(self, chars))

    def removeprefix(self, prefix: str, /) -> "Traced":
        """Cut a prefix off."""
        text = str.removeprefix(self, prefix)
        return self._cut(len(self) - len(text), text)

    def removesuffix(self, suffix: str, /) -> "Traced":
        """Cut a suffix off."""
        return self._cut(0, str.removesuffix(self, suffix))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split; every part keeps its memory."""
        return self._locate(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split from the end."""
        return self._locate(str.rsplit(self, sep, maxsplit), gap=len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        """Split at line ends."""
        return self._locate(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """Split in three at the first `sep`."""
        head, middle, tail = self._locate(str.partition(self, sep))
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """Split in three at the last `sep`."""
        head, middle, tail = self._locate(str.rpartition(self, sep))
        return head, middle, tail

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Replace; the text between the replaced keeps its memory."""
        return join(new, self.split(old, count)) if old else str.replace(self, old, new, count)

    def join(self, parts: Iterable[str], /) -> "str":
        """Join; the parts keep their memory."""
        return join(self, parts)

    def upper(self) -> str:
        """Change case; characters stay in their places, or the memory is lost."""
        return self._same_places(str.upper(self))

    def lower(self) -> str:
        """Change case."""
        return self._same_places(str.lower(self))

    def capitalize(self) -> str:
        """Change case."""
        return self._same_places(str.capitalize(self))

    def title(self) -> str:
        """Change case."""
        return self._same_places(str.title(self))

    def _same_places(self, text: str) -> str:
        return _traced(text, self._pieces, self._marks) if len(text) == len(self) else text

    def _cut(self, start: int, text: str) -> "Traced":
        """Return `text`, which stands at `start` in this string, with its memory."""
        end = start + len(text)
        kept = []
        for piece in self._pieces:
            low, high = max(piece.start, start), min(piece.end, end)
            touches = low < high or (low == high and (start == end or piece.start == piece.end))
            if touches:
                offset = piece.offset + low - piece.start
                kept.append(Piece(low - start, high - start, piece.turn, piece.field, offset))
        return _traced(text, tuple(kept))

    def _locate(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """Return each of `parts`, which follow each other in this string, with its memory."""
        found: list[str] = []
        cursor = 0
        for part in parts:
            start = str.find(self, part, cursor)
            found.append(self._cut(start, part))
            cursor = start + len(part) + gap
        return found


def _traced(text: str, pieces: tuple[Piece, ...], marks: tuple[Mark, ...] = ()) -> Traced:
    traced = Traced(text)
    traced._pieces = pieces
    traced._marks = marks
    return traced


def concat(parts: Iterable[str]) -> Traced:
    """Join strings, some of them traced, keeping their memory."""
    texts: list[str] = []
    pieces: list[Piece] = []
    marks: list[Mark] = []
    length = 0
    for part in parts:
        if type(part) is Traced:
            for start, end, turn, field, offset in part._pieces:
                pieces.append(Piece(start + length, end + length, turn, field, offset))
            for position, loop, owner in part._marks:
                marks.append(Mark(position + length, loop, owner))
        texts.append(part)
        length += len(part)
    return _traced("".join(texts), tuple(pieces), tuple(marks))


def join(separator: str, parts: Iterable[str]) -> str:
    """Return `separator.join(parts)`, keeping the memory of traced parts."""
    strings = list(parts)
    if not all(isinstance(part, str) for part in strings):
        return str.join(separator, strings)  # raises the error a template would see
    between = [part for string in strings for part in (separator, string)]
    return concat(between[1:])


class TracedMessage(dict[str, Any]):
    """One message of a conversation; `_turn` is its place in it."""

    __slots__ = ("_turn",)
    _turn: int


def trace_messages(messages: Iterable[Mapping[str, Any]]) -> list[TracedMessage]:
    """Return the conversation with every string traced, roles and names excepted."""
    return [_trace_message(turn, message) for turn, message in enumerate(messages)]


def _trace_message(turn: int, message: Mapping[str, Any]) -> TracedMessage:
    traced = TracedMessage()
    traced._turn = turn
    for key, value in message.items():
        traced[key] = value if key in ("role", "name") else _trace(value, turn, key)
    for name in REASONING_FIELDS:
        if traced.get(name) is not None:
            traced.setdefault("thinking", traced[name])
            traced["reasoning_content"] = traced[name]
            break
    return traced


def _trace(value: Any, turn: int, field: str) -> Any:
    if isinstance(value, str):
        return Traced.whole(value, turn, field)
    if isinstance(value, Mapping):
        return {key: _trace(item, turn, field) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_trace(item, turn, field) for item in value]
    return value


class ChatTemplate:
    """A compiled chat template.

    `bos_token` and the like are given to the template as `tokens`; `arguments` are the dataset's
    own (`enable_thinking: false`).
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
        self._template = _compile(source)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.source, self.variables)

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendering:
        """Render one conversation.

        Raises:
            jinja2.TemplateError: the template refused the conversation (`raise_exception`) or
                failed.
        """
        result = self._template.render(
            messages=trace_messages(messages),
            tools=tools or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
        )
        if not isinstance(result, Traced):
            return Rendering(result, (), ())
        blocks = _blocks(result._marks, len(result))
        return Rendering(str.__str__(result), result._pieces, blocks)


def _restore(source: str, variables: Mapping[str, Any]) -> ChatTemplate:
    return ChatTemplate(source, arguments=variables)


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


class _TracingCodeGenerator(CodeGenerator):
    """Compile `a ~ b` so that it keeps memory; everything else is jinja's."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for child in node.nodes:
            self.write("str(")
            self.visit(child, frame)
            self.write("), ")
        self.write("))")


class _GenerationTag(Extension):
    """Accept `{% generation %}`; newtune finds the assistant's text without such marks."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _LoopMarker(NodeTransformer):
    """Make each pass of each loop say which message it is about, and each loop say it ended."""

    def __init__(self) -> None:
        self.loops = 0

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:  # noqa: N802
        self.loops += 1
        number = nodes.Const(self.loops)
        self.generic_visit(node)
        if not isinstance(node.target, nodes.Name):
            return [node]
        target = nodes.Name(node.target.name, "load")
        node.body.insert(0, _output("begin_pass", target, number))
        return [node, _output("end_loop", number)]


def _output(name: str, value: nodes.Expr, *arguments: nodes.Expr) -> nodes.Output:
    call = nodes.Filter(value, name, list(arguments), [], None, None)
    output = nodes.Output([call])
    output.set_lineno(1)
    return output


def _begin_pass(value: Any, loop: int) -> str:
    turn = _turn_of(value)
    return "" if turn is None else _traced("", (), (Mark(0, loop, turn),))


def _end_loop(loop: int) -> str:
    return _traced("", (), (Mark(0, loop, None),))


def _turn_of(value: Any) -> int | None:
    """Return which message a loop variable is; templates may rebuild messages around the text."""
    if isinstance(value, TracedMessage):
        return value._turn
    content = value.get("content") if isinstance(value, dict) and "role" in value else None
    if isinstance(content, Traced) and content._pieces:
        return content._pieces[0].turn
    return None


class _TracingEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _TracingCodeGenerator
    concat = staticmethod(concat)

    def call(self, context: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if type(owner) is str and function.__name__ == "join" and len(args) == 1:
            return join(owner, args[0])
        return super().call(context, function, *args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # templates name the argument
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@jinja2.pass_eval_context
def _join_filter(
    eval_ctx: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None
) -> str:
    items = list(value)
    if attribute is None and all(isinstance(item, str) for item in items):
        return join(d, items)
    joined: str = do_join(eval_ctx, items, d, attribute)
    return joined


def _environment() -> _TracingEnvironment:
    environment = _TracingEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters.update(
        tojson=_tojson, join=_join_filter, begin_pass=_begin_pass, end_loop=_end_loop
    )
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = _environment()
    try:
        tree = environment.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"The chat template is not valid jinja: line {error.lineno}: {error.message}"
        ) from error
    tree = _LoopMarker().visit(tree)
    return environment.from_string(tree)
