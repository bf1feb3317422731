"""The formats by name: what `type` of a dataset may be."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from newtune.config.formats import REFUSED_FORMATS
from newtune.data.formats.conversation import CONVERSATIONS
from newtune.data.formats.function import function_format, is_function, source_digest
from newtune.data.formats.instruction import mapping_format, prompt_format
from newtune.data.formats.options import Format, FormatOptions, PromptMapping
from newtune.data.formats.prompts import FORMATS as PROMPTS
from newtune.data.formats.text import completion, input_output, tokenized
from newtune.data.rendered import Drop, Outcome, Rendered, Tokens, trained_text
from newtune.errors import DataError
from newtune.lookup import choose

FORMAT_VERSION = 5
"""Part of the cache's key: raise it when the same row would give other tokens or labels."""

MakeFormat = Callable[[FormatOptions], Format]

FORMATS: Mapping[str, MakeFormat] = {
    **{name: partial(prompt_format, prompt) for name, prompt in PROMPTS.items()},
    "completion": completion,
    "pretrain": completion,
    "input_output": input_output,
    **CONVERSATIONS,
}

_COMPLETION = "completion:"


def uses_template(type_: object) -> bool:
    """Say whether rows of this `type` need a chat template; a function may return some that do."""
    return isinstance(type_, str) and (type_ in CONVERSATIONS or is_own_function(type_))


def is_own_function(type_: object) -> bool:
    """Say whether `type` names a function of the user's own."""
    return (
        isinstance(type_, str)
        and type_ not in FORMATS
        and not type_.startswith(_COMPLETION)
        and is_function(type_)
    )


def make_format(type_: str | PromptMapping | None, options: FormatOptions) -> Format:
    """Return the format a dataset's `type` names.

    Raises:
        DataError: there is no such format, or its options contradict each other.
    """
    if type_ is None or type_ == "":
        return tokenized(options)
    if isinstance(type_, PromptMapping):
        return mapping_format(type_, options)
    if type_ in REFUSED_FORMATS:
        raise DataError(f"`type: {type_}` {REFUSED_FORMATS[type_]}.")
    if type_.startswith(_COMPLETION):
        column = options.text_field or type_.removeprefix(_COMPLETION)
        return completion(replace(options, text_field=column))
    if is_own_function(type_):
        return function_format(type_, options)
    try:
        return choose(FORMATS, type_)(options)
    except KeyError as error:
        raise DataError(f"`type: {type_}`: {error.args[0]}") from error


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
    "is_own_function",
    "make_format",
    "source_digest",
    "trained_text",
    "uses_template",
]
