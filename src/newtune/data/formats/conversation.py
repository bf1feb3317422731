"""Conversations: `chat_template`, `sharegpt` and their relatives."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from newtune.data.chat import ChatRenderer, Conversation, Detail, Turn
from newtune.data.formats.options import Format, FormatOptions
from newtune.data.rendered import Drop, Outcome
from newtune.data.sources import NumberedRow
from newtune.errors import DataError

THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""What `split_thinking` takes reasoning out of."""


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
    renderer = ChatRenderer(
        options.template,
        end_tokens=options.end_tokens,
        eos_token=options.eos_token,
        train_on_eos=options.train_on_eos,
        train_on_eot=options.train_on_eot,
    )
    role_of = {name: role for role, names in options.roles.items() for name in names}

    def read(row: NumberedRow) -> Outcome:
        conversation = _conversation(row, options, role_of)
        if isinstance(conversation, Drop):
            return conversation
        return renderer.render(conversation, row.place)

    return Format(read, chat=renderer)


def sharegpt(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `from` and `value`."""
    properties = options.properties or {"role": "from", "content": "value"}
    column = options.field_messages or "conversations"
    return chat_template(replace(options, field_messages=column, properties=properties))


def pygmalion(options: FormatOptions) -> Format:
    """Return `chat_template` for `conversations` of `role` and `value`."""
    roles = {**options.roles, "assistant": ("bot", "model", "assistant")}
    return chat_template(
        replace(
            options,
            field_messages=options.field_messages or "conversations",
            properties=options.properties or {"role": "role", "content": "value"},
            roles=roles,
        )
    )


def _conversation(
    row: NumberedRow, options: FormatOptions, role_of: Mapping[str, str]
) -> Conversation | Drop:
    column = options.field_messages or "messages"
    messages = _list(row, column)
    if not messages:
        return Drop(f"`{column}` is empty")
    turns = [
        _turn(row, place, message, options, role_of) for place, message in enumerate(messages, 1)
    ]
    if options.drop_system_message:
        turns = [turn for turn in turns if turn.message["role"] != "system"]
    elif turns and turns[0].message["role"] != "system":
        system = row.row.get(options.field_system) or options.default_system_message
        if isinstance(system, str) and system:
            train = "system" in options.roles_to_train or options.train_on_inputs
            turns.insert(0, Turn({"role": "system", "content": system}, train))
    if not turns:
        return Drop(f"`{column}` holds system messages only")
    return Conversation(turns, _tools(row, options.field_tools))


def _list(row: NumberedRow, column: str) -> list[Any] | None:
    """Return a column that holds a list, or JSON text of one; None when it is null."""
    if column not in row.row:
        has = ", ".join(f"`{name}`" for name in row.row) or "none"
        raise DataError(f"{row.place}: no field `{column}`; the row has {has}.")
    value: Any = row.row[column]
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{row.place}: `{column}` is text, but not JSON: {error.msg}."
            ) from error
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"{row.place}: `{column}` must be a list, got {type(value).__name__}.")
    return value


def _turn(
    row: NumberedRow,
    place: int,
    message: Any,
    options: FormatOptions,
    role_of: Mapping[str, str],
) -> Turn:
    if not isinstance(message, dict):
        raise DataError(
            f"{row.place}, turn {place}: must be an object, got {type(message).__name__}."
        )
    # a table gives every message every column of any message; templates test for presence
    given = {key: value for key, value in message.items() if value is not None}
    names = {"role": "role", "content": "content", **options.properties}
    role = given.get(names["role"])
    if not isinstance(role, str):
        has = ", ".join(f"`{name}`" for name in message)
        raise DataError(f"{row.place}, turn {place}: no `{names['role']}`; the turn has {has}.")
    role = role_of.get(role, role)
    control = {options.field_training, options.field_training_detail, *names.values()}
    fields = {key: value for key, value in given.items() if key not in control}
    fields |= {wanted: given[name] for wanted, name in names.items() if name in given}
    fields["role"] = role
    _check_content(row, place, fields)
    _move_thinking(fields, options)
    return Turn(fields, *_training(row, place, given, role, options))


def _check_content(row: NumberedRow, place: int, fields: dict[str, Any]) -> None:
    content = fields.setdefault("content", "")
    if isinstance(content, int | float) and not isinstance(content, bool):
        fields["content"] = str(content)
    elif not isinstance(content, str | list):
        raise DataError(
            f"{row.place}, turn {place}: the content must be text, got {type(content).__name__}."
        )
    for call in fields.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(function, dict) and isinstance(arguments, str):
            try:
                function["arguments"] = json.loads(arguments)
            except json.JSONDecodeError:
                continue  # templates may write text that is no JSON as it is


def _move_thinking(fields: dict[str, Any], options: FormatOptions) -> None:
    """Hand reasoning to the template under the name it expects."""
    if options.field_thinking in fields:
        fields[options.thinking_key] = fields.pop(options.field_thinking)
    content = fields["content"]
    is_answer = options.split_thinking and fields["role"] == "assistant"
    if not is_answer or not isinstance(content, str) or options.thinking_key in fields:
        return
    for opening, closing in THINK_TAGS:
        head, found, tail = content.partition(closing)
        if found and head.lstrip().startswith(opening):
            fields[options.thinking_key] = head.lstrip().removeprefix(opening).strip()
            fields["content"] = tail.lstrip()
            return


def _training(
    row: NumberedRow, place: int, given: Mapping[str, Any], role: str, options: FormatOptions
) -> tuple[bool, tuple[Detail, ...]]:
    """Decide by the message's flag, else its character ranges, else its role."""
    flag = given.get(options.field_training) if options.field_training else None
    if flag is not None:
        if not isinstance(flag, bool):
            raise DataError(
                f"{row.place}, turn {place}: `{options.field_training}` must be true "
                f"or false, got {flag!r}."
            )
        return flag, ()
    ranges = given.get(options.field_training_detail) if options.field_training_detail else None
    if ranges:
        return False, _details(row, place, ranges)
    return options.train_on_inputs or role in options.roles_to_train, ()


def _details(row: NumberedRow, place: int, ranges: Any) -> tuple[Detail, ...]:
    details = []
    for entry in ranges if isinstance(ranges, list) else [ranges]:
        try:
            begin, end, train = entry["begin_offset"], entry["end_offset"], entry["train"]
            details.append(Detail(int(begin), int(end) + 1, bool(train)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{row.place}, turn {place}: a range of characters needs `begin_offset`, "
                f"`end_offset` (inclusive) and `train`, got {entry!r}."
            ) from error
    return tuple(details)


def _tools(row: NumberedRow, column: str) -> list[Any] | None:
    if row.row.get(column) is None:
        return None
    tools = _list(row, column)
    return [json.loads(tool) if isinstance(tool, str) else tool for tool in tools or ()] or None
