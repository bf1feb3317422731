"""What a dataset's configuration says about the meaning of its rows, as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from newtune.data.chat import ChatRenderer, Conversation, TrainOn
from newtune.data.rendered import Drop, Outcome
from newtune.data.sources import NumberedRow
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("human", "user"),
    "assistant": ("gpt", "model", "assistant"),
    "system": ("system",),
    "tool": ("tool",),
}
"""Role → names it has in public data."""


@dataclass(frozen=True)
class PromptMapping:
    """A prompt of the user's own; keys.md calls it the custom prompt mapping."""

    system_prompt: str = ""
    system_format: str = "{system}"
    field_system: str = "system"
    field_instruction: str = "instruction"
    field_input: str = "input"
    field_output: str = "output"
    format: str | None = None
    no_input_format: str | None = None


@dataclass(frozen=True)
class FormatOptions:
    """Everything besides the format's name that decides how a row is read."""

    train_on_inputs: bool = False
    default_system_message: str | None = None
    text_field: str | None = None
    """Column of raw text."""
    template: ChatTemplate | None = None
    """None: no chat template is known; formats that need one say so."""
    end_tokens: tuple[str, ...] = ()
    end_tokens_named: bool = False
    """The user named them (`eot_tokens`): they end a turn also where they open the next one."""
    eos_token: str | None = None
    vocabulary: int | None = None
    """How many ids there are, for rows that come as tokens; None: not known."""
    train_on_eos: TrainOn = "turn"
    train_on_eot: TrainOn = "turn"
    field_messages: str | None = None
    field_system: str = "system"
    field_tools: str = "tools"
    field_thinking: str = "reasoning_content"
    thinking_key: str = "reasoning_content"
    properties: Mapping[str, str] = field(default_factory=dict)
    """Property the template expects → property of the row's messages."""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: ROLES)
    roles_to_train: tuple[str, ...] = ("assistant",)
    field_training: str | None = None
    field_training_detail: str | None = None
    drop_system_message: bool = False
    split_thinking: bool = False
    drop_malformed: bool = False
    """Leave rows out that cannot be read, counted and listed, instead of stopping."""
    folder: str = ""
    """Where a function of the user's own is looked for besides the working directory."""
    code: str = ""
    """Digest of that function's module: other code makes other examples."""


@dataclass(frozen=True)
class Format:
    """How rows of one dataset become text and trained characters.

    `cut`: a text longer than the sequence is cut into several examples (raw text) instead of
    being dropped or truncated. `chat` and `conversation` (the turns of a row, as `chat` gets them)
    are there when rows are conversations.
    """

    read: Callable[[NumberedRow], Outcome]
    cut: bool = False
    chat: ChatRenderer | None = None
    conversation: Callable[[NumberedRow], Conversation | Drop] | None = None


def text_of(row: NumberedRow, column: str, *, optional: bool = False) -> str | None:
    """Return a column's text; None when it is null, or absent though optional.

    Raises:
        DataError: the column is missing, or holds something that is no text.
    """
    if column not in row.row:
        if optional:
            return None
        has = ", ".join(f"`{name}`" for name in row.row) or "none"
        raise DataError(f"{row.place}: no field `{column}`; the row has {has}.")
    value: Any = row.row[column]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{row.place}: `{column}` must be text, got {type(value).__name__}.")
