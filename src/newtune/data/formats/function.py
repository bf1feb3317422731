"""`type: package.module:function`: the user's own function makes something of a row.

What it may return:

    None                                          the row is left out
    "text"                                        raw text, all of it trained
    {"text": "..."}                               the same
    [{"role": ..., "content": ...}, ...]          a conversation
    {"messages": [...], "tools": [...]}           the same, with more columns
    [("text", False), ("text", True), ...]        exact text, trained or not
    {"segments": [{"text": ..., "label": ...}]}   the same
    {"prompt": "...", "completion": "..."}        untrained, then trained, ended
    {"input_ids": [...], "labels": [...]}         tokens

The module is looked for beside the configuration file, in the working directory, and among
installed packages.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from newtune.data.formats.conversation import chat_template
from newtune.data.formats.options import Format, FormatOptions
from newtune.data.formats.text import completion, input_output, tokenized
from newtune.data.rendered import Drop, Outcome, Rendered, trained_text
from newtune.data.sources import NumberedRow
from newtune.errors import DataError

Function = Callable[[dict[str, Any]], Any]

_RETURNS = (
    "None, text, a list of messages, a list of (text, trained) pairs, or a mapping with one of "
    "`messages`, `segments`, `input_ids`, `text`, or `prompt` and `completion`"
)


def is_function(type_: str) -> bool:
    """Say whether a `type` names a function of the user's own."""
    module, colon, name = type_.partition(":")
    return bool(colon) and name.isidentifier() and all(map(str.isidentifier, module.split(".")))


def function_format(dotted: str, options: FormatOptions) -> Format:
    """Return the format of the user's own function.

    Raises:
        DataError: the module or the function is not there, or the module fails.
    """
    function = load_function(dotted, options.folder)
    readers = _Readers(options)

    def read(row: NumberedRow) -> Outcome:
        try:
            result = function(dict(row.row))
        except Exception as error:  # the user's code: whatever it is, the row must be named
            raise DataError(
                f"{row.place}: `{dotted}` failed: {type(error).__name__}: {error}"
            ) from error
        outcome = readers.read(row, result)
        if outcome is None:
            return Drop(f"`{dotted}` left it out")
        if outcome is NotImplemented:
            raise DataError(f"{row.place}: `{dotted}` must return {_RETURNS}; got {result!r:.200}")
        return outcome  # type: ignore[no-any-return]

    return Format(read)


class _Readers:
    """The formats that what a function returns may be of, each made when it is first needed."""

    def __init__(self, options: FormatOptions) -> None:
        self.options = options
        self.made: dict[str, Format] = {}

    def read(self, row: NumberedRow, result: Any) -> Any:
        """Return the outcome, None for a row left out, NotImplemented for what is not known."""
        if result is None:
            return None
        if isinstance(result, str):
            result = {"text": result}
        if isinstance(result, list | tuple):
            result = _as_mapping(result)
        if not isinstance(result, Mapping):
            return NotImplemented
        if "prompt" in result and "completion" in result:
            return _prompted(row, result, self.options)
        makers: Mapping[str, Callable[[FormatOptions], Format]] = {
            "messages": chat_template,
            "segments": input_output,
            "input_ids": tokenized,
            "text": completion,
        }
        shape = next((name for name in makers if name in result), None)
        if shape is None:
            return NotImplemented
        if shape not in self.made:
            self.made[shape] = makers[shape](self.options)
        return self.made[shape].read(row._replace(row=dict(result)))


def _as_mapping(result: list[Any] | tuple[Any, ...]) -> dict[str, Any] | None:
    if not result:
        return {"segments": []}
    if all(isinstance(item, Mapping) and "text" in item for item in result):
        return {"segments": list(result)}
    if all(isinstance(item, Mapping) for item in result):
        return {"messages": list(result)}
    if all(isinstance(item, list | tuple) and len(item) == 2 for item in result):
        return {"segments": [{"text": text, "label": trained} for text, trained in result]}
    return None


def _prompted(row: NumberedRow, result: Mapping[str, Any], options: FormatOptions) -> Outcome:
    prompt, completion_ = result["prompt"], result["completion"]
    if not isinstance(prompt, str) or not isinstance(completion_, str):
        raise DataError(f"{row.place}: `prompt` and `completion` must be text.")
    segments = ((prompt, options.train_on_inputs), (completion_, True))
    return Rendered(*trained_text(*segments), bos=True, eos="trained")


def load_function(dotted: str, folder: str) -> Function:
    """Import `package.module:function`, also from `folder` and the working directory.

    Raises:
        DataError: there is no such module or function, or the module fails.
    """
    module_name, _, name = dotted.partition(":")
    places = list(dict.fromkeys([str(Path(folder).resolve()), str(Path.cwd())]))
    try:
        with _importing_from(places):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        looked = " and ".join(places)
        raise DataError(
            f"`type: {dotted}`: no module `{error.name}` to import; looked in {looked}, and among "
            "installed packages."
        ) from error
    except Exception as error:  # the user's code
        raise DataError(
            f"`type: {dotted}`: importing `{module_name}` failed: {type(error).__name__}: {error}"
        ) from error
    function = vars(module).get(name)
    if not callable(function):
        raise DataError(f"`type: {dotted}`: `{module_name}` has no function `{name}`.")
    return function  # type: ignore[no-any-return]


def source_digest(dotted: str, folder: str) -> str:
    """Return a digest of the function's module, part of the key of what is prepared with it."""
    module = inspect.getmodule(load_function(dotted, folder))
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


@contextmanager
def _importing_from(places: list[str]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = places
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
