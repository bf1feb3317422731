"""The formats by name: what `type` of a dataset may be."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from newtune.data.formats.conversation import chat_template, pygmalion, sharegpt
from newtune.data.formats.instruction import FORMATS as PROMPTS
from newtune.data.formats.instruction import mapping_format, prompt_format
from newtune.data.formats.options import Format, FormatOptions, PromptMapping
from newtune.data.formats.text import completion, input_output, tokenized
from newtune.data.rendered import Drop, Outcome, Rendered, Tokens, trained_text
from newtune.data.sources import NumberedRow
from newtune.errors import DataError
from newtune.lookup import choose

FORMAT_VERSION = 1
"""Part of the cache's key: raise it when the same row would give other tokens or labels."""

MakeFormat = Callable[[FormatOptions], Format]

FORMATS: Mapping[str, MakeFormat] = {
    **{name: partial(prompt_format, prompt) for name, prompt in PROMPTS.items()},
    "completion": completion,
    "input_output": input_output,
    "chat_template": chat_template,
    "sharegpt": sharegpt,
    "pygmalion": pygmalion,
}

CONVERSATIONS = {"chat_template", "sharegpt", "pygmalion"}
"""Formats that use the chat template."""


def make_format(type_: str | PromptMapping | None, options: FormatOptions) -> Format:
    """Return the format a dataset's `type` names.

    Raises:
        DataError: there is no such format, or its options contradict each other.
    """
    if type_ is None or type_ == "":
        return tokenized(options)
    if isinstance(type_, PromptMapping):
        return mapping_format(type_, options)
    if type_ in FORMATS:
        return FORMATS[type_](options)
    if ":" in type_ and "." in type_.split(":", 1)[0]:
        return _function_format(type_, options)
    try:
        return choose(FORMATS, type_)(options)
    except KeyError as error:
        raise DataError(f"`type: {type_}`: {error.args[0]}") from error


def _function_format(dotted: str, options: FormatOptions) -> Format:
    """Return the format of the user's own function: a row in, one of four shapes out.

    The shapes: `{"messages": [...]}`, `{"segments": [...]}`, `{"input_ids": [...], "labels":
    [...]}`, or None to leave the row out.
    """
    function = _import(dotted)
    shapes: Mapping[str, MakeFormat] = {
        "messages": chat_template,
        "segments": input_output,
        "input_ids": tokenized,
    }
    made: dict[str, Format] = {}

    def read(row: NumberedRow) -> Outcome:
        result = function(dict(row.row))
        if result is None:
            return Drop(f"`{dotted}` left it out")
        shape = next((name for name in shapes if isinstance(result, dict) and name in result), None)
        if shape is None:
            raise DataError(
                f"{row.place}: `{dotted}` must return a mapping with one of "
                f"{', '.join(shapes)}, or None; got {result!r:.200}"
            )
        if shape not in made:
            made[shape] = shapes[shape](options)
        return made[shape].read(row._replace(row=result))

    return Format(read)


def _import(dotted: str) -> Callable[[dict[str, Any]], Any]:
    module_name, _, name = dotted.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DataError(f"`type: {dotted}`: no module `{error.name}` to import.") from error
    function = vars(module).get(name)
    if not callable(function):
        raise DataError(f"`type: {dotted}`: `{module_name}` has no function `{name}`.")
    return function  # type: ignore[no-any-return]


__all__ = [
    "CONVERSATIONS",
    "FORMATS",
    "FORMAT_VERSION",
    "Drop",
    "Format",
    "FormatOptions",
    "Outcome",
    "PromptMapping",
    "Rendered",
    "Tokens",
    "make_format",
    "trained_text",
]
