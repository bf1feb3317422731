"""Print with rich: problems, notices, keys."""

import logging
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from newtune.config.explain import problem_lines
from newtune.data.inspect.visible import safe
from newtune.errors import ConfigError, NewtuneError
from newtune.logs import logger


def show_error(error: NewtuneError) -> None:
    """Print an error of the user's to stderr, without a traceback."""
    console = _stderr()
    if not isinstance(error, ConfigError):
        console.print(_marked("error", "bold red", str(error)), soft_wrap=True)
        return
    for paragraph in problem_lines(error.problems):
        head, _, rest = paragraph.partition("\n")
        console.print(Text(safe(head), style="bold"), soft_wrap=True)
        console.print(Text(safe(rest)), soft_wrap=True)
    count = len(error.problems)
    console.print(f"[bold red]{count} problem{'s' if count > 1 else ''}[/]")


def show_interrupted() -> None:
    """Say that Ctrl-C ended the command."""
    _stderr().print("[yellow]interrupted[/]")


def show_notices(notices: Iterable[str]) -> None:
    """Print what was translated or has no effect, to stderr."""
    for text in notices:
        _stderr().print(_marked("notice", "yellow", text), soft_wrap=True)


MARKS = (
    (logging.ERROR, ("error", "bold red")),
    (logging.WARNING, ("warning", "yellow")),
    (logging.NOTSET, ("·", "dim")),
)
"""Least level → how a record begins."""


class LogLines(logging.Handler):
    """Prints the package's log records to stderr: warnings stand out, the rest is plain."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        mark = next(mark for level, mark in MARKS if record.levelno >= level)
        _stderr().print(_marked(*mark, record.getMessage()), soft_wrap=True)


def show_log() -> None:
    """Print what newtune's modules say from here on, once per process."""
    if not logger.handlers:
        logger.addHandler(LogLines())
        logger.setLevel(logging.INFO)
        logger.propagate = False
        # what it cannot speed up on a CPU is not what a user asked about
        logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


def show_valid(path: str, notices: int) -> None:
    """Say that a configuration can be used."""
    said = f" ({notices} notice{'s' if notices > 1 else ''})" if notices else ""
    Console(highlight=False).print(_marked("valid", "green", path + said), soft_wrap=True)


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print labelled lines: `default  0.05`."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        Console().print(_marked(f"{label:<{width}} ", "dim", text))


def show_text(text: str) -> None:
    """Print text as it is, for files and pipes."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _marked(mark: str, style: str, text: str) -> Text:
    """Return a coloured word and what may be anybody's text after it."""
    return Text.assemble((mark, style), " ", safe(text))


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)
