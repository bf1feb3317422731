"""Old spellings of datasets and their entries → today's."""

from collections.abc import Callable, Iterator
from typing import Any

from newtune.config.legacy.translation import Translation


def pretraining_shorthand(said: Translation) -> None:
    """`pretraining_dataset` may be a path or one mapping; it is a list."""
    value = said.values.get("pretraining_dataset")
    if isinstance(value, str) and value:
        value = {"path": value}
    if isinstance(value, dict):
        said.values["pretraining_dataset"] = [value]
        said.notices.append("`pretraining_dataset` is now a list of datasets.")


def dataset_entries(said: Translation) -> None:
    """Old keys of dataset entries."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        entries = said.values.get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                path = f"{key}.{index}"
                for translate in DATASET_TRANSLATIONS:
                    said.notices += [f"`{path}`: {text}" for text in translate(entry)]
                if "split" in entry:
                    said.written_as.setdefault(f"{path}.split", f"{path}.train_on_split")


def _train_on_split(entry: dict[str, Any]) -> Iterator[str]:
    """`train_on_split` is `split`."""
    split = entry.pop("train_on_split", None)
    if split not in (None, ""):
        entry.setdefault("split", split)
        yield "`train_on_split` is now `split`."


def _sharegpt(entry: dict[str, Any]) -> Iterator[str]:
    """`sharegpt` is `chat_template` over `conversations` of `from` and `value`."""
    kind = entry.get("type")
    if not isinstance(kind, str) or kind.replace(":", ".").split(".")[0] != "sharegpt":
        return
    if kind in ("sharegpt.load_glaive", "sharegpt.load_guanaco", "sharegpt.load_ultrachat"):
        return  # formats of their own
    entry["type"] = "chat_template"
    entry.setdefault("field_messages", "conversations")
    role = "role" if kind.endswith("load_role") else "from"
    entry.setdefault("message_property_mappings", {"role": role, "content": "value"})
    yield f"`type: {kind}` is now `chat_template` over `conversations` of `{role}` and `value`."


CONVERSATION_NAMES = {
    "chatml": "chatml",
    "gemma": "gemma",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama3": "llama3",
    "mistral": "mistral",
    "vicuna_v1.1": "vicuna",
    "zephyr": "zephyr",
}
"""Names of sharegpt's `conversation` → names of templates."""


def _conversation(entry: dict[str, Any]) -> Iterator[str]:
    """`conversation` named the template of a sharegpt dataset."""
    name = entry.pop("conversation", None)
    if name not in (None, ""):
        entry.setdefault("chat_template", CONVERSATION_NAMES.get(str(name), name))
        yield "`conversation` is now `chat_template`."


def _message_fields(entry: dict[str, Any]) -> Iterator[str]:
    """`message_field_role` and `message_field_content` are one mapping."""
    for name in ("role", "content"):
        value = entry.pop(f"message_field_{name}", None)
        if value in (None, ""):
            continue
        mapping = entry.get("message_property_mappings")
        if not isinstance(mapping, dict):
            mapping = entry["message_property_mappings"] = {"role": "role", "content": "content"}
        mapping[name] = value
        yield f"`message_field_{name}` is now `message_property_mappings: {{{name}: {value}}}`."


def _role_names(entry: dict[str, Any]) -> Iterator[str]:
    """`field_human` and `field_model` are names of roles; `input` and `output` are old roles."""
    roles = entry.get("roles") or {}
    if isinstance(roles, dict):
        for old, role in (("input", "user"), ("output", "assistant")):
            if old in roles:
                roles.setdefault(role, roles.pop(old))
                yield f"`roles: {{{old}: ...}}` is now `roles: {{{role}: ...}}`."
    for old, role in (("field_human", "user"), ("field_model", "assistant")):
        name = entry.pop(old, None)
        if name not in (None, "") and isinstance(roles, dict):
            entry["roles"] = roles
            roles.setdefault(role, [name])
            yield f"`{old}` is now `roles: {{{role}: [{name}]}}`."


def _strict_rows(entry: dict[str, Any]) -> Iterator[str]:
    """`strict` of a sharegpt dataset."""
    if entry.pop("strict", None) is not None:
        yield "`strict` was left out: malformed rows are always counted and shown."


DATASET_TRANSLATIONS: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (
    _train_on_split,
    _sharegpt,
    _conversation,
    _message_fields,
    _role_names,
    _strict_rows,
)
