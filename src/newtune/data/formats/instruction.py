"""Instruction formats: a prompt made of some columns, untrained; an answer, trained."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from newtune.data.formats.options import Format, FormatOptions, PromptMapping, text_of
from newtune.data.rendered import Drop, Outcome, Rendered, trained_text
from newtune.data.sources import NumberedRow
from newtune.errors import DataError

OPTIONAL = {"input", "system"}
"""Slots whose column may be absent or empty."""


@dataclass(frozen=True)
class PromptFormat:
    """`{slot}`s of the texts are filled from `columns`; `{system}` falls back to `system`."""

    with_input: str
    without_input: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Slot → column, where they differ from each other."""
    answer: str = "{output}"
    system: str = ""
    system_without_input: str | None = None
    system_format: str = "{system}"

    def column(self, slot: str) -> str:
        """Return the column that fills a slot."""
        return self.columns.get(slot, slot)


_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def _alpaca(**columns: str) -> PromptFormat:
    return PromptFormat(
        with_input="{system}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
        "### Response:\n",
        without_input="{system}### Instruction:\n{instruction}\n\n### Response:\n",
        columns=columns,
        system=_ALPACA_WITH_INPUT,
        system_without_input=_ALPACA_WITHOUT_INPUT,
        system_format="{system}\n\n",
    )


def _chat(system: str = _ALPACA_WITHOUT_INPUT, **columns: str) -> PromptFormat:
    return PromptFormat(
        with_input="{system}USER: {instruction}\n{input}\nASSISTANT: ",
        without_input="{system}USER: {instruction}\nASSISTANT: ",
        columns=columns,
        system=system,
        system_format="{system}\n",
    )


def _chatml(**columns: str) -> PromptFormat:
    opening, closing = "<|im_start|>", "<|im_end|>\n"
    return PromptFormat(
        with_input=f"{{system}}{opening}user\n{{instruction}}\n{{input}}{closing}"
        f"{opening}assistant\n",
        without_input=f"{{system}}{opening}user\n{{instruction}}{closing}{opening}assistant\n",
        columns=columns,
        system=_ALPACA_WITHOUT_INPUT,
        system_format=f"{opening}system\n{{system}}{closing}",
    )


def _phi(**columns: str) -> PromptFormat:
    return PromptFormat(
        with_input="{system}<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
        without_input="{system}<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
        columns=columns,
        system=_ALPACA_WITHOUT_INPUT,
        system_format="<|system|>\n{system}<|end|>\n",
    )


def _plain(prompt: str, answer: str, **columns: str) -> PromptFormat:
    return PromptFormat(prompt, prompt, columns=columns, answer=answer)


_QA = {"instruction": "question", "output": "answer"}
_OPEN_ORCA = {"instruction": "question", "output": "response", "system": "system_prompt"}
_CONCISE = "Answer the USER's request as concisely as possible."

FORMATS: Mapping[str, PromptFormat] = {
    "alpaca": _alpaca(),
    "alpaca:chat": _chat(),
    "alpaca:chatml": _chatml(),
    "alpaca:phi": _phi(),
    "alpaca_chat": _chat(),
    "alpaca_chat.load_qa": _chat(**_QA),
    "alpaca_chat.load_concise": _chat(_CONCISE),
    "alpaca_chat.load_no_prompt": _chat(""),
    "alpaca_chat.load_camel_ai": _chat(instruction="message_1", output="message_2"),
    "alpaca_w_system": _alpaca(),
    "alpaca_w_system:chat": _chat(),
    "alpaca_w_system:chatml": _chatml(),
    "alpaca_w_system:phi": _phi(),
    "alpaca_w_system.load_open_orca": _alpaca(**_OPEN_ORCA),
    "alpaca_w_system.load_open_orca_chatml": _chatml(**_OPEN_ORCA),
    "gpteacher": _alpaca(output="response"),
    "oasst": _alpaca(instruction="INSTRUCTION", output="RESPONSE"),
    "orcamini": PromptFormat(
        with_input="{system}### User:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        without_input="{system}### User:\n{instruction}\n\n### Response:\n",
        system_format="### System:\n{system}\n\n",
    ),
    "reflection": PromptFormat(
        with_input="{system}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
        "### Response:\n",
        without_input="{system}### Instruction:\n{instruction}\n\n### Response:\n",
        answer="{output}\n\n### Agent Reflection:\n{reflection}\n\n### Final Answer:\n{corrected}",
        system=_ALPACA_WITH_INPUT,
        system_without_input=_ALPACA_WITHOUT_INPUT,
        system_format="{system}\n\n",
    ),
    "context_qa": _plain(
        "Use the following contextual information to answer the question.\n\nContext: {article}\n\n"
        "Question: {question}\n\nAnswer: ",
        "{answer}",
    ),
    "summarizetldr": _plain("{article}\n\nTL;DR: ", "{summary}"),
    "jeopardy": _plain(
        "Below is a Jeopardy clue paired with its category. Answer it in the form of a question."
        "\n\n### Category:\n{category}\n\n### Clue:\n{question}\n\n### Response:\n",
        "what is {answer}",
    ),
    "explainchoice": _plain(
        "Choose the answer that best answers the question. Explain your reasoning.\n\n"
        "{question}\n{choices}\n\n### Response:\n",
        "{explanation}\n\nThe answer is: {solution}",
    ),
    "concisechoice": _plain(
        "Choose the answer that best answers the question. Be concise in your response.\n\n"
        "{question}\n{choices}\n\n### Response:\n",
        "{solution}",
    ),
    "metharme": _plain("{prompt}", "{generation}"),
}
"""Name → prompt; a name after the colon is a style, after the point a variant of the columns."""

_SLOT = re.compile(r"\{(\w+)\}")


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
    unknown = [slot for slot in _SLOT.findall(text) if slot not in allowed]
    if unknown:
        names = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        raise DataError(f"`{key}` uses `{{{unknown[0]}}}`; it may use {names}.")


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Fill slots in one pass, so that braces in a row's own text stay text."""
    return _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)


def _read_slots(prompt: PromptFormat, row: NumberedRow) -> dict[str, str] | Drop:
    used = _SLOT.findall(prompt.with_input + prompt.without_input + prompt.answer)
    values: dict[str, str] = {}
    for slot in dict.fromkeys([*used, *OPTIONAL]):
        column = prompt.column(slot)
        value = (
            _choices(row) if slot == "choices" else text_of(row, column, optional=slot in OPTIONAL)
        )
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


def _choices(row: NumberedRow) -> str | None:
    choices = row.row.get("choices")
    return "\n".join(f"- {choice}" for choice in choices) if isinstance(choices, list) else None
