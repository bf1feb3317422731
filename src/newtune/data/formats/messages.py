"""One message of a row → one turn: its names, its content, its tool calls, what is trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from newtune.data.chat import Detail, Turn
from newtune.data.formats.options import ROLES, FormatOptions
from newtune.data.probes import writes_reasoning
from newtune.data.sources import NumberedRow, TableRow
from newtune.data.traced_json import JsonMapping
from newtune.data.turns import has_text, shorten
from newtune.errors import DataError
from newtune.lookup import did_you_mean

THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""What `split_thinking` takes reasoning out of."""

SPECIAL_ROLES = ("developer", "function", "ipython", "observation", "tool_call", "tool_response")
"""Roles that some templates know by themselves; they go to the template as they are."""

TOOL_ROLES = ("tool", "function", "ipython", "observation", "tool_response")
"""Whose content is what a tool returned."""

JSON_ERRORS = (ValueError, RecursionError)
"""What text that is no JSON raises; also numbers and nesting beyond what Python reads."""


@dataclass(frozen=True)
class MessageReader:
    """Reads messages as the options say.

    Raises:
        DataError: `roles_to_train` names a role that does not exist.
    """

    options: FormatOptions
    role_of: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = {name: name for name in SPECIAL_ROLES}
        for table in (ROLES, self.options.roles):
            names |= {role: role for role in table}
            names |= {name: role for role, aliases in table.items() for name in aliases}
        object.__setattr__(self, "role_of", names)
        for role in self.options.roles_to_train:
            if role not in names.values():
                hint = did_you_mean(role, names.values())
                known = ", ".join(sorted(set(names.values())))
                raise DataError(f"`roles_to_train`: no role `{role}`; {hint} known: {known}.")

    @cached_property
    def properties(self) -> Mapping[str, str]:
        """Property that the template expects → property of the row's messages."""
        return {"role": "role", "content": "content", **self.options.properties}

    @cached_property
    def control(self) -> frozenset[str | None]:
        """Properties of the row's messages that the template does not see under their name."""
        options = self.options
        names = (options.field_training, options.field_training_detail)
        return frozenset((*names, *self.properties.values()))

    def turn(self, row: NumberedRow, number: int, message: Any) -> Turn | None:
        """Return a message as the template gets it, and what is trained of it.

        None for a question or an answer of which there is nothing: no content, no calls.

        Raises:
            DataError: it is no message, or its role is unknown; row and turn are named.
        """
        plain = self._plain(message)
        if plain is not None:
            return plain
        place = f"{row.place}, turn {number}"
        if not isinstance(message, dict):
            raise DataError(f"{place}: must be an object, got {type(message).__name__}.")
        # a table gives every message every column of any message; templates test for presence
        given = {key: value for key, value in message.items() if value is not None}
        names = self.properties
        fields = {key: value for key, value in given.items() if key not in self.control}
        fields |= {wanted: given[name] for wanted, name in names.items() if name in given}
        fields["role"] = role = self._role(place, message, fields.get("role"))
        self._rename_function_call(fields)
        has_content = "content" in fields
        fields["content"] = _content(place, role, fields.get("content", ""))
        if fields.get("tool_calls"):
            padded = isinstance(row.row, TableRow)
            fields["tool_calls"] = _tool_calls(place, fields["tool_calls"], padded=padded)
        moved = _move_thinking(fields, self.options)
        if moved and has_text(fields[self.options.thinking_key]) and not self._writes_thinking:
            self._refuse_thinking(place, fields)
        others = ("tool_calls", "function_call", self.options.thinking_key)
        if role in ("user", "assistant") and not has_content and not any(map(fields.get, others)):
            return None
        train, details = self._training(place, given, role, fields["content"])
        return Turn(fields, train, details)

    def _plain(self, message: Any) -> Turn | None:
        """Return a message of a known role and a text, and of nothing else; None for others."""
        if type(message) is not dict or len(message) != 2 or self.options.split_thinking:
            return None
        name, content = map(message.get, self._role_and_content)
        role = self.role_of.get(name) if type(name) is str else None
        if role is None or type(content) is not str:
            return None
        train = self.options.train_on_inputs or role in self.options.roles_to_train
        return Turn({"role": role, "content": content}, train)

    @cached_property
    def _role_and_content(self) -> tuple[str, str]:
        return self.properties["role"], self.properties["content"]

    def _role(self, place: str, message: Mapping[str, Any], name: Any) -> str:
        called = self.properties["role"]
        if called in message and not isinstance(name, str):
            raise DataError(f"{place}: `{called}` must be text, got {type(name).__name__}.")
        if not isinstance(name, str):
            has = ", ".join(f"`{key}`" for key in message) or "nothing"
            raise DataError(
                f"{place}: no `{called}`; the turn has {has}. What the rows call it is said by "
                "`message_property_mappings: {role: from, content: value}`."
            )
        if name not in self.role_of:
            hint = did_you_mean(name, self.role_of)
            known = ", ".join(sorted(self.role_of))
            meant = self.role_of.get(name.strip().lower(), "assistant")
            raise DataError(
                f"{place}: unknown role `{name}`; {hint + ' ' if hint else ''}known: {known}. "
                f"`roles` can name others: `roles: {{{meant}: [{name}]}}`."
            )
        return self.role_of[name]

    def _rename_function_call(self, fields: dict[str, Any]) -> None:
        """Make the older form of a tool call the one that templates know."""
        template = self.options.template
        reads_it = template is not None and "function_call" in template.source
        if isinstance(fields.get("function_call"), dict) and not reads_it:
            call = {"type": "function", "function": fields.pop("function_call")}
            fields["tool_calls"] = [*(fields.get("tool_calls") or ()), call]

    @cached_property
    def _writes_thinking(self) -> bool:
        """Whether the template may write the reasoning of a turn."""
        template = self.options.template
        return template is None or writes_reasoning(template, self.options.thinking_key)

    def _refuse_thinking(self, place: str, fields: Mapping[str, Any]) -> NoReturn:
        raise DataError(
            f"{place}: has reasoning, which the chat template never writes: "
            f"{shorten(fields[self.options.thinking_key])}. Use a template that does (`qwen3`); "
            "say what it calls it (`template_thinking_key`); or leave the reasoning out "
            "(`field_thinking: none`, `split_thinking: false`)."
        )

    def _training(
        self, place: str, given: Mapping[str, Any], role: str, content: str
    ) -> tuple[bool, tuple[Detail, ...]]:
        """Decide by the message's flag, else its character ranges, else its role."""
        options = self.options
        flag = given.get(options.field_training) if options.field_training else None
        if flag is not None:
            if flag not in (True, False):  # 1 and 0 are, too
                raise DataError(
                    f"{place}: `{options.field_training}` must be true or false, got {flag!r}."
                )
            return bool(flag), ()
        name = options.field_training_detail
        ranges = given.get(name) if name else None
        if ranges:
            return False, _details(f"{place}: `{name}`", ranges, len(content))
        return options.train_on_inputs or role in options.roles_to_train, ()


def _content(place: str, role: str, content: Any) -> str:
    """Return a content as text; parts of text are joined, what a tool returned is JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, int | float) and not isinstance(content, bool):
        return str(content)
    if isinstance(content, dict) and role in TOOL_ROLES:
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        raise DataError(f"{place}: the content must be text, got {type(content).__name__}.")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(
                f"{place}: a part of the content is `{kind}`; newtune reads text only. "
                "Leave such rows out, or give the text alone."
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(place: str, calls: Any, *, padded: bool) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as mappings; they may have come as JSON text.

    `padded`: nulls in the arguments are a table's, for what other calls have.
    """
    if isinstance(calls, str):
        calls = json_of(place, "`tool_calls`", calls) if calls.strip() else []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"{place}: `tool_calls` must be a list of objects, got {calls!r:.80}.")
    read = []
    for call in calls:
        made = {key: value for key, value in call.items() if value is not None}
        if isinstance(made.get("function"), dict):
            made["function"] = _with_arguments(made["function"], padded=padded)
        elif "arguments" in made:
            made = _with_arguments(made, padded=padded)
        read.append(made)
    return read


def without_nulls(value: Any, *, keep: tuple[str, ...] = ()) -> Any:
    """Leave out what a table filled up: null properties, but for those named in `keep`."""
    if isinstance(value, list):
        return [without_nulls(item, keep=keep) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_nulls(item, keep=keep)
        for key, item in value.items()
        if item is not None or key in keep
    }


def _with_arguments(function: Mapping[str, Any], *, padded: bool) -> dict[str, Any]:
    made = {key: value for key, value in function.items() if value is not None}
    given = made.get("arguments")
    arguments, source = given, None
    if given is None or (isinstance(given, str) and not given.strip()):
        arguments = {}  # a function without parameters, called
    elif isinstance(given, str):
        try:
            arguments, source = json.loads(given), given
        except JSON_ERRORS:
            return made  # templates may write text that is no JSON as it is
    elif padded:
        arguments = without_nulls(arguments)
    if isinstance(arguments, dict):
        mapping = JsonMapping(arguments)
        mapping.source = source
        made["arguments"] = mapping
    return made


def json_of(place: str, name: str, text: str) -> Any:
    """Return what a text says that must be JSON.

    Raises:
        DataError: it is not.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: {name} is text, but not JSON: {error.msg}.") from error
    except JSON_ERRORS as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{place}: {name} cannot be read as JSON: {reason}.") from error


def _move_thinking(fields: dict[str, Any], options: FormatOptions) -> bool:
    """Hand reasoning to the template under the name it expects; say whether there is any."""
    if options.field_thinking in fields:
        fields[options.thinking_key] = fields.pop(options.field_thinking)
        return True
    content = fields["content"]
    is_answer = options.split_thinking and fields["role"] == "assistant"
    if not is_answer or options.thinking_key in fields:
        return False
    for opening, closing in THINK_TAGS:
        head, found, tail = content.partition(closing)
        if found and head.lstrip().startswith(opening):
            fields[options.thinking_key] = head.lstrip().removeprefix(opening).strip()
            fields["content"] = tail.lstrip()
            return True
    return False


def _details(place: str, ranges: Any, length: int) -> tuple[Detail, ...]:
    """Return character ranges, ends exclusive; wrong or contradicting ones are errors."""
    details: list[Detail] = []
    for entry in ranges if isinstance(ranges, list) else [ranges]:
        detail = _detail(place, entry, length)
        for other in details:
            overlaps = max(detail.begin, other.begin) < min(detail.end, other.end)
            if overlaps and detail.train != other.train:
                raise DataError(
                    f"{place}: characters {detail.begin} to {detail.end - 1} and {other.begin} to "
                    f"{other.end - 1} overlap, and one is trained and one is not."
                )
        details.append(detail)
    return tuple(details)


def _detail(place: str, entry: Any, length: int) -> Detail:
    if not isinstance(entry, dict):
        _wrong_detail(place, entry)
    begin, end, train = (entry.get(key) for key in ("begin_offset", "end_offset", "train"))
    if type(begin) is not int or type(end) is not int or type(train) is not bool:
        _wrong_detail(place, entry)
    if not 0 <= begin <= end < length:
        raise DataError(
            f"{place}: characters {begin} to {end} (inclusive) are not in the content, which has "
            f"{length}: 0 to {length - 1}."
        )
    return Detail(begin, end + 1, train)


def _wrong_detail(place: str, entry: Any) -> NoReturn:
    raise DataError(
        f"{place}: a range of characters needs `begin_offset` and `end_offset` (whole numbers, the "
        f"end inclusive) and `train` (true or false), got {entry!r}."
    )
