"""Conversations: `chat_template`, `sharegpt` and their relatives."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from newtune.data.chat import ChatRenderer, Conversation, Turn
from newtune.data.formats.messages import MessageReader, json_of, without_nulls
from newtune.data.formats.options import ROLES, Format, FormatOptions, text_of
from newtune.data.probes import writes_any
from newtune.data.rendered import Drop, Outcome
from newtune.data.sources import NumberedRow
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError


def chat_template(options: FormatOptions) -> Format:
    """Return the format of rows that hold a conversation.

    Raises:
        DataError: no chat template is known.
    """
    if options.template is None:
        raise DataError(
            "The tokenizer has no chat template. Set `chat_template` to a name (`chatml`, ...), or "
            "to `jinja` with `chat_template_jinja`."
        )
    _require_named_ends(options.template, options)
    renderer = ChatRenderer(
        options.template,
        end_tokens=options.end_tokens,
        eos_token=options.eos_token,
        train_on_eos=options.train_on_eos,
        train_on_eot=options.train_on_eot,
        ends_at_next_turn=options.end_tokens_named,
    )
    reader = MessageReader(options)

    def parse(row: NumberedRow) -> Conversation | Drop:
        try:
            return _conversation(row, reader)
        except RecursionError as error:
            raise DataError(f"{row.place}: nested too deeply.") from error

    def read(row: NumberedRow) -> Outcome:
        conversation = parse(row)
        if isinstance(conversation, Drop):
            return conversation
        return renderer.render(conversation, row.place)

    return Format(read, chat=renderer, conversation=parse)


def _require_named_ends(template: ChatTemplate, options: FormatOptions) -> None:
    """Refuse `eot_tokens` of which the template writes none.

    Raises:
        DataError: so it is.
    """
    named = [token for token in options.end_tokens if token != options.eos_token]
    if options.end_tokens_named and named and not writes_any(template, named):
        raise DataError(
            f"`eot_tokens`: the chat template writes none of {', '.join(named)}. Name what ends a "
            "turn in it, or leave the key out: then special tokens that open no turn end one."
        )


def sharegpt(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `from` and `value`."""
    return _under_other_names(options, role="from", content="value")


def sharegpt_role(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `role` and `value`."""
    return _under_other_names(options, role="role", content="value")


def sharegpt_guanaco(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `role` (prompter, assistant) and `text`."""
    names = _with_names(options, user=("prompter",))
    return _under_other_names(names, role="role", content="text")


def pygmalion(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `role` (prompt, human, bot) and `value`."""
    names = _with_names(options, assistant=("bot",), system=("prompt",))
    return _under_other_names(names, role="role", content="value")


def sharegpt_glaive(options: FormatOptions) -> Format:
    """Return `chat_template` for rows of two texts: `system`, and `chat` with all turns in it."""
    inner = chat_template(replace(options, field_messages="messages", properties={}))

    def read(row: NumberedRow) -> Outcome:
        chat = text_of(row, "chat")
        if not chat:
            return Drop("`chat` is empty")
        system = text_of(row, "system", optional=True) or ""
        rest = {key: value for key, value in row.row.items() if key not in ("chat", "system")}
        made = {
            **rest,
            options.field_system: system.strip().removeprefix("SYSTEM: "),
            "messages": _glaive_turns(row, chat),
        }
        return inner.read(row._replace(row=made))

    return replace(inner, read=read)


CONVERSATIONS: Mapping[str, Callable[[FormatOptions], Format]] = {
    "chat_template": chat_template,
    "chat_template.default": chat_template,
    "chat_template.load": chat_template,
    "sharegpt": sharegpt,
    "sharegpt.load_role": sharegpt_role,
    "sharegpt.load_guanaco": sharegpt_guanaco,
    "sharegpt.load_ultrachat": chat_template,
    "sharegpt.load_glaive": sharegpt_glaive,
    "pygmalion": pygmalion,
    "pygmalion.load": pygmalion,
}
"""Formats that use the chat template."""

_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_GLAIVE_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE): ")


def _glaive_turns(row: NumberedRow, chat: str) -> list[dict[str, str]]:
    head, *rest = _GLAIVE_TURN.split(chat)
    if head.strip() or not rest:
        raise DataError(
            f"{row.place}: `chat` must start with `USER: ` or `ASSISTANT: `, got {chat[:60]!r}."
        )
    return [
        {
            "role": _GLAIVE_ROLES[role],
            "content": text.strip().removesuffix("<|endoftext|>").rstrip(),
        }
        for role, text in zip(rest[::2], rest[1::2], strict=True)
    ]


def _under_other_names(options: FormatOptions, *, role: str, content: str) -> Format:
    return chat_template(
        replace(
            options,
            field_messages=options.field_messages or "conversations",
            properties=options.properties or {"role": role, "content": content},
        )
    )


def _with_names(options: FormatOptions, **names: tuple[str, ...]) -> FormatOptions:
    roles = {**ROLES, **options.roles}
    added = {role: (*roles.get(role, ()), *aliases) for role, aliases in names.items()}
    return replace(options, roles={**roles, **added})


def _conversation(row: NumberedRow, reader: MessageReader) -> Conversation | Drop:
    options = reader.options
    column = options.field_messages or "messages"
    messages = _list(row, column)
    if not messages:
        return Drop(f"`{column}` is empty")
    read = [reader.turn(row, number, message) for number, message in enumerate(messages, 1)]
    turns = [turn for turn in read if turn is not None]
    if len(turns) < len(read):
        return Drop("a question or an answer has no content")
    if options.drop_system_message:
        turns = [turn for turn in turns if turn.message["role"] != "system"]
    else:
        turns = _with_system(row, turns, options)
    if not turns:
        return Drop(f"`{column}` holds system messages only")
    return Conversation(turns, _tools(row, options.field_tools))


def _with_system(row: NumberedRow, turns: list[Turn], options: FormatOptions) -> list[Turn]:
    """Put the row's own system text, or else the default one, before the turns."""
    own = text_of(row, options.field_system, optional=True)
    first = turns[0].message
    if first["role"] == "system":
        if own and own.strip() != first["content"].strip():
            raise DataError(
                f"{row.place}: `{options.field_system}` and the system turn differ, and one would "
                "be lost. `field_system: none` leaves the column out, `drop_system_message` both."
            )
        return turns
    system = own or options.default_system_message
    if not system:
        return turns
    train = "system" in options.roles_to_train or options.train_on_inputs
    return [Turn({"role": "system", "content": system}, train), *turns]


def _list(row: NumberedRow, column: str) -> list[Any] | None:
    """Return a column that holds a list, or JSON text of one; None when it is null."""
    if column not in row.row:
        has = ", ".join(f"`{name}`" for name in row.row) or "none"
        lists = [name for name, value in row.row.items() if isinstance(value, list)]
        hint = f" Is it `field_messages: {lists[0]}`?" if lists else ""
        raise DataError(f"{row.place}: no field `{column}`; the row has {has}.{hint}")
    value: Any = row.row[column]
    if isinstance(value, str):
        value = json_of(row.place, f"`{column}`", value) if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"{row.place}: `{column}` must be a list, got {type(value).__name__}.")
    return value


def _tools(row: NumberedRow, column: str) -> list[Any] | None:
    """Return the tools a row offers: a list of schemas, or JSON text of one or of each."""
    if row.row.get(column) is None:
        return None
    tools = []
    for tool in _list(row, column) or ():
        if isinstance(tool, str):
            tool = json_of(row.place, f"a tool in `{column}`", tool)
        tools.append(without_nulls(tool, keep=("const", "default")))
    return tools or None
