"""Instruction formats: a prompt made of some columns, untrained; an answer, trained."""

import re
import string
from collections.abc import Mapping
from typing import Any

from newtune.data.formats.options import Format, FormatOptions, PromptMapping, text_of
from newtune.data.formats.prompts import PromptFormat
from newtune.data.rendered import Drop, Outcome, Rendered, trained_text
from newtune.data.sources import NumberedRow
from newtune.errors import DataError

OPTIONAL = {"input", "system"}
"""Slots whose column may be absent or empty."""

_SLOT = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_BRACES = {"{{": "{", "}}": "}"}


def prompt_format(prompt: PromptFormat, options: FormatOptions) -> Format:
    """Return a format for single-turn rows."""

    def read(row: NumberedRow) -> Outcome:
        values = _read_slots(prompt, row)
        if isinstance(values, Drop):
            return values
        values["system"] = _system_text(prompt, values, options)
        text = prompt.with_input if values["input"].strip() else prompt.without_input
        segments = (
            (_fill(text, values), options.train_on_inputs),
            (_fill(prompt.answer, values), True),
        )
        return Rendered(*trained_text(*segments), bos=True, eos="trained")

    return Format(read)


def mapping_format(mapping: PromptMapping, options: FormatOptions) -> Format:
    """Return the format of a custom prompt mapping.

    Raises:
        DataError: a text uses a slot it must not use.
    """
    with_input = mapping.format if mapping.format is not None else "{instruction} {input} "
    without_input = mapping.no_input_format
    if without_input is None:
        without_input = mapping.format if mapping.format is not None else "{instruction} "
    else:
        _check_slots("no_input_format", without_input, {"instruction", "system"})
    _check_slots("format", with_input, {"instruction", "input", "system"})
    _check_slots("system_format", mapping.system_format, {"system"})
    system = "" if "{system}" in with_input else "{system}"
    prompt = PromptFormat(
        with_input=system + with_input,
        without_input=("" if "{system}" in without_input else "{system}") + without_input,
        columns={
            "instruction": mapping.field_instruction,
            "input": mapping.field_input,
            "output": mapping.field_output,
            "system": mapping.field_system,
        },
        system=mapping.system_prompt,
        system_format=mapping.system_format,
    )
    return prompt_format(prompt, options)


def _check_slots(key: str, text: str, allowed: set[str]) -> None:
    names = ", ".join(f"`{{{name}}}`" for name in sorted(allowed))
    try:
        fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise DataError(
            f"`{key}`: {error}. A literal brace is written `{{{{` or `}}}}`."
        ) from error
    for _, name, width, conversion in fields:
        if name not in allowed:
            raise DataError(f"`{key}` uses `{{{name}}}`; it may use {names}.")
        if width or conversion:
            raise DataError(
                f"`{key}` uses `{{{name}}}` with a width or a conversion; write {names}."
            )


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Fill slots in one pass, so that braces in a row's own text stay text."""
    return _SLOT.sub(lambda slot: _BRACES.get(slot[0]) or values.get(slot[1], slot[0]), text)


def _read_slots(prompt: PromptFormat, row: NumberedRow) -> dict[str, str] | Drop:
    used = _SLOT.findall(prompt.with_input + prompt.without_input + prompt.answer)
    values: dict[str, str] = {}
    for slot in dict.fromkeys([*filter(None, used), *OPTIONAL]):
        column = prompt.column(slot)
        if column in ("choices", "scores"):
            value = _listed(row, column)
        else:
            value = text_of(row, column, optional=slot in OPTIONAL)
        if value is None and slot not in OPTIONAL:
            return Drop(f"`{column}` is empty")
        values[slot] = value or ""
    return values


def _system_text(prompt: PromptFormat, values: Mapping[str, str], options: FormatOptions) -> str:
    default = prompt.system
    if not values["input"].strip() and prompt.system_without_input is not None:
        default = prompt.system_without_input
    system = values["system"] or options.default_system_message or default
    return _fill(prompt.system_format, {"system": system}) if system else ""


def _listed(row: NumberedRow, column: str) -> str | None:
    """Return a column of several values as text: a line for each."""
    value: Any = row.row.get(column)
    if isinstance(value, list) and value:
        return "\n".join(f"- {item}" for item in value)
    if isinstance(value, dict) and value:
        return "\n".join(f"{name}: {item}" for name, item in value.items())
    return text_of(row, column) or None
