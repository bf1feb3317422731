"""Which chat template is used: one that newtune ships, the tokenizer's own, or the user's."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from newtune.config.formats import FALLBACK, REFUSED_TEMPLATES
from newtune.errors import DataError
from newtune.lookup import choose

ALIASES: Mapping[str, str] = {
    "aya": "cohere",
    "command_r": "cohere",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3n": "gemma",
    "granitemoe": "granite",
    "llama3_2": "llama3_1",
    "llama3_3": "llama3_1",
    "phi_35": "phi_3",
    "tulu": "olmo",
    "yi": "chatml",
}
"""Name → the template file that has its text."""


@cache
def shipped_templates() -> Mapping[str, str]:
    """Return name → jinja source of the templates in `data/templates/`, aliases left out."""
    folder = files("newtune.data") / "templates"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".jinja"): entry.read_text(encoding="utf-8")
        for entry in entries
        if entry.name.endswith(".jinja")
    }


def choose_template(
    name: str | None, *, jinja: str | None, own: str | None, base_folder: Path = Path()
) -> str | None:
    """Return the jinja source; None when nothing is named and the tokenizer has none.

    `jinja` is the text or a file that holds it, `own` the tokenizer's template.

    Raises:
        DataError: an unknown name, or a name that needs what is not there.
    """
    if name is None or name == "":
        return _read(jinja, base_folder) if jinja else own
    if name == "jinja":
        if not jinja:
            raise DataError("`chat_template: jinja` needs `chat_template_jinja`: text or a file.")
        return _read(jinja, base_folder)
    if name == "tokenizer_default":
        if own is None:
            raise DataError(
                "`chat_template: tokenizer_default`: the tokenizer has no chat template. Name one "
                f"of {', '.join(shipped_templates())}."
            )
        return own
    if name.startswith(FALLBACK):
        return own if own is not None else _shipped(name.removeprefix(FALLBACK))
    return _shipped(name)


def _shipped(name: str) -> str:
    if name in REFUSED_TEMPLATES:
        raise DataError(
            f"`chat_template: {name}`: {REFUSED_TEMPLATES[name]}. Set `chat_template: "
            "tokenizer_default`, or `jinja` with `chat_template_jinja`."
        )
    templates = shipped_templates()
    known = {**templates, **{alias: templates[file] for alias, file in ALIASES.items()}}
    try:
        return choose(known, name)
    except KeyError as error:
        raise DataError(f"`chat_template: {name}`: {error.args[0]}") from error


def _read(jinja: str, base_folder: Path) -> str:
    """Return the text of a file, or the text itself when it holds jinja."""
    if "{{" in jinja or "{%" in jinja or "\n" in jinja:
        return jinja
    for path in (base_folder / jinja, Path(jinja)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise DataError(f"`chat_template_jinja: {jinja}`: neither jinja nor a file.")
