"""The jinja that chat templates run in: transformers' own, with memory and with bounds.

Templates come from anywhere, so they run in jinja's sandbox, and what could take for ever or fill
the memory is bounded (`MAX_PASSES`, `MAX_TEXT`). Jinja's own doors are used: a code generator
class, `Environment.concat`, `call`, `call_binop`, `wrap_str_format`, filters, and a change of
the parsed tree that marks each pass of a loop.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from newtune.data.traced import (
    Mark,
    Traced,
    added,
    claimed,
    concat,
    join,
    replaced,
    through,
    traced,
)
from newtune.data.traced_json import to_json

MAX_PASSES = 1_000_000
"""Passes of loops in one rendering; a long conversation needs thousands."""

MAX_TEXT = 50_000_000
"""Characters or items that one operation of a template may make at once."""

_KEEP = """
abs attr batch capitalize count d default dictsort first float groupby int items last length list
lower map max min random reject rejectattr reverse round select selectattr slice sort string sum
trim truncate unique upper wordcount
"""
KEEPS = frozenset(_KEEP.split())
"""Filters that keep the memory of strings by themselves, or return none."""


class Message(dict[str, Any]):
    """One message of a conversation; `turn` is its place in it."""

    __slots__ = ("turn",)
    turn: int

    def __str__(self) -> str:
        return claimed(dict.__repr__(self), self)


_OF_EVERY_MESSAGE = frozenset(dir(Message))
"""What `message.items` and the like mean, whatever fields it has."""

_OF_LOOPS = frozenset(
    ("first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem")
)
"""Plain values of jinja's `loop`."""


class _CodeGenerator(CodeGenerator):
    """Compile `a ~ b` and `a + b + c` to one join that keeps memory; the rest is jinja's."""

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802
        operands: list[nodes.Expr] = []
        first: nodes.Expr = node
        while isinstance(first, nodes.Add):
            operands.append(first.right)
            first = first.left
        self.write("environment.added((")
        for operand in (first, *reversed(operands)):
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

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
        self.loop: tuple[str, nodes.Const] | None = None
        """Variable and number of the loop around, if it has one variable."""

    def visit_Assign(self, node: nodes.Assign) -> list[nodes.Node]:  # noqa: N802
        """A pass over numbers is about the message that it takes by its number: `messages[i]`."""
        if (
            self.loop is not None
            and isinstance(node.target, nodes.Name)
            and isinstance(node.node, nodes.Getitem)
            and isinstance(node.node.arg, nodes.Name)
            and node.node.arg.name == self.loop[0]
        ):
            taken = nodes.Name(node.target.name, "load")
            return [node, _output("begin_pass", taken, self.loop[1])]
        return [node]

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:  # noqa: N802
        self.loops += 1
        number = nodes.Const(self.loops)
        around = self.loop
        self.loop = (node.target.name, number) if isinstance(node.target, nodes.Name) else None
        self.generic_visit(node)
        self.loop = around
        if not isinstance(node.target, nodes.Name):
            node.body.insert(0, _output("count_pass", nodes.Const(None)))
            return [node]
        target = nodes.Name(node.target.name, "load")
        node.body.insert(0, _output("begin_pass", target, number))
        return [node, _output("end_loop", number)]


def _output(name: str, value: nodes.Expr, *arguments: nodes.Expr) -> nodes.Output:
    call = nodes.Filter(value, name, list(arguments), [], None, None)
    output = nodes.Output([call])
    output.set_lineno(1)
    return output


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """A jinja environment for one template."""

    code_generator_class = _CodeGenerator
    concat = staticmethod(concat)
    added = staticmethod(added)
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.passes = 0
        """Of the rendering at work; two threads may share it, so it bounds and does not count."""
        guarded = {name: _guarded(f) for name, f in self.filters.items() if name not in KEEPS}
        self.filters.update(
            guarded,
            tojson=to_json,
            join=_join_filter,
            replace=_replace_filter,
            format=_format_filter,
            begin_pass=self._begin_pass,
            count_pass=self._count_pass_of,
            end_loop=_end_loop,
        )
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def compiled(self, source: str) -> jinja2.Template:
        """Return the template, its loops marked.

        Raises:
            jinja2.TemplateSyntaxError: `source` is not jinja.
        """
        return self.from_string(_LoopMarker().visit(self.parse(source)))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Read `message.role` and `loop.first` at once; everything else as the sandbox does."""
        if type(obj) is Message:
            if attribute in obj and attribute not in _OF_EVERY_MESSAGE:
                return obj[attribute]
        elif type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; a plain string's methods keep the memory of arguments."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            return self._string_method(context, owner, function, args, kwargs)
        return super().call(context, function, *args, **kwargs)

    def _string_method(
        self, context: Any, owner: str, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        name = function.__name__
        if any(isinstance(value, int) and value > MAX_TEXT for value in args):
            raise SecurityError(f"`{name}` would make more than {MAX_TEXT} characters")
        if type(owner) is str and name == "join" and len(args) == 1:
            return join(owner, args[0])
        if type(owner) is str and name == "replace":
            return replaced(owner, *args, **kwargs)
        result = super().call(context, function, *args, **kwargs)
        if type(owner) is Traced and type(result) is str:
            return claimed(result, owner, args)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply within bounds; format keeping memory."""
        if operator == "*":
            return _multiplied(left, right)
        if operator == "**":
            return _powered(left, right)
        if type(left) is str:
            return through(lambda values: left % values, right)
        return left % right

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Let `"{}".format(text)` keep the memory of `text`."""
        format_in_sandbox = super().wrap_str_format(value)
        if format_in_sandbox is None:
            return None

        @wraps(format_in_sandbox)
        def formatted(*args: Any, **kwargs: Any) -> str:
            owner = value.__self__
            text = through(lambda given: format_in_sandbox(*given[0], **given[1]), [args, kwargs])
            return (
                claimed(str.__str__(text), owner, args, kwargs) if type(owner) is Traced else text
            )

        return formatted

    def _begin_pass(self, value: Any, loop: int) -> str:
        self._count_pass()
        turn = value.turn if type(value) is Message else _turn_of(value)
        return "" if turn is None else _mark_at(loop, turn)

    def _count_pass(self) -> None:
        self.passes += 1
        if self.passes > MAX_PASSES:
            raise SecurityError(f"the template's loops make more than {MAX_PASSES} passes")

    @jinja2.pass_context
    def _count_pass_of(self, _: Any, __: Any) -> str:
        self._count_pass()
        return ""


@jinja2.pass_context  # or jinja would work it out once, when it compiles
def _end_loop(_: Any, loop: int) -> str:
    return _mark_at(loop, None)


@lru_cache(maxsize=10_000)
def _mark_at(loop: int, turn: int | None) -> Traced:
    return traced("", (), (Mark(0, loop, turn),))


def _turn_of(value: Any) -> int | None:
    """Return which message a loop variable is, if a template rebuilt it around the text."""
    content = value.get("content") if isinstance(value, dict) and "role" in value else None
    if type(content) is Traced and content._pieces:
        return content._pieces[0].turn
    return None


def _multiplied(left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            if len(sequence) * times > MAX_TEXT:
                raise SecurityError(f"`*` would make more than {MAX_TEXT} characters or items")
            break
    return left * right


def _powered(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 10_000:
        raise SecurityError("`**` would make a number of more than 10,000 bits")
    return left**right


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter; text that it makes of traced text is claimed for its owner."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, str) and type(result) is not Traced:
            made = claimed(str(result), args, kwargs)
            return made if type(made) is Traced else result  # `safe` makes more than a `str`
        return result

    return guarded


@jinja2.pass_eval_context
def _join_filter(
    eval_ctx: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None
) -> str:
    items = list(value)
    if attribute is None and all(isinstance(item, str) for item in items):
        return join(d, items)
    joined: str = do_join(eval_ctx, items, d, attribute)
    return claimed(joined, items)


def _replace_filter(s: Any, old: str, new: str, count: int | None = None) -> str:
    return replaced(s if isinstance(s, str) else str(s), old, new, -1 if count is None else count)


def _format_filter(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.exceptions.FilterArgumentError("can't take positional and named arguments")
    text = through(lambda values: str(value) % values, kwargs or args)
    return claimed(text, value, args, kwargs) if type(value) is Traced else text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # templates name the argument
    return datetime.now().strftime(format)
