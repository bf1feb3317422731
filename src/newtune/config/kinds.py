"""What a key takes, in words: "a whole number above 0", "`drop`, `truncate` or `raise`"."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from newtune.config.section import Section

_NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "anything",
}
_BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


def describe(cls: type[Section], key: str) -> str:
    """Return what `key` of `cls` takes, without the "or nothing" that every key allows."""
    field = cls.__pydantic_fields__[key]
    return _words(field.annotation, field.metadata)


def describe_value(value: Any) -> str:
    """Return a given value with its kind: "`no` (text)"."""
    kinds = {bool: "", str: "text", int: "a number", float: "a number", dict: "a mapping"}
    kind = kinds.get(type(value), "a list" if isinstance(value, list) else "")
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"`{shown}` ({kind})" if kind else f"`{shown}`"


def literal_choices(cls: type[Section], key: str) -> tuple[Any, ...]:
    """Return the values that a key lists, if it lists any."""
    return tuple(_choices(cls.__pydantic_fields__[key].annotation))


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _choices(argument)


def _words(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], _constraints(arguments[1:]))
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return ", or ".join(dict.fromkeys(_words(kind, metadata) for kind in kinds))
    if origin is Literal:
        return _or([f"`{value}`" for value in arguments])
    if origin is tuple:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        below = arguments[1]
        return "a mapping" if below is Any else f"a mapping to {_words(below, [])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a mapping"
    return _NOUNS[annotation] + _bounds(metadata)


def _constraints(metadata: tuple[Any, ...]) -> list[Any]:
    """Return the bounds inside Annotated; pydantic nests them in a FieldInfo within unions."""
    found: list[Any] = []
    for item in metadata:
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found


def _bounds(metadata: list[Any]) -> str:
    limits = {
        name: getattr(item, name) for item in metadata for name, _ in _BOUNDS if name in dir(item)
    }
    words = [f"{word} {limits[name]:g}" for name, word in _BOUNDS if name in limits]
    return f" {' and '.join(words)}" if words else ""


def _plural(annotation: Any) -> str:
    nouns = {str: "texts", int: "whole numbers", float: "numbers"}
    if annotation in nouns:
        return nouns[annotation]
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return "mappings" if is_section else "lists"


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
