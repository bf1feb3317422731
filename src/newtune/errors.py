"""The errors newtune raises on purpose; the command line prints them without a traceback.

    NewtuneError
    ├── ConfigError     the configuration is wrong: every problem at once
    ├── DataError       a dataset: source, row, field
    ├── ModelError      a checkpoint, tokenizer or adapter
    ├── SetupError      a missing package or an unfit environment: the command that mends it
    ├── TrainingError   the run itself: step, rank
    │   ├── Interrupted a signal stopped it; a checkpoint is saved
    │   └── FailedElsewhere  another process failed, and says why
    └── ExportError     merging, verifying, writing results

Anything else that escapes is a bug of newtune and keeps its traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: what, where, and what to do about it.

    `path` is the dotted key (`datasets.0.path`), empty for the file as a whole; `line` counts
    from 1 and is None for a value that came from the command line.
    """

    path: str
    message: str
    hint: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        """Return `file:line: key: message. Hint`, the parts that are known."""
        place = f"{self.file}:{self.line}" if self.line is not None else self.file
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{text.rstrip('.')}. {self.hint}" if self.hint else text


class NewtuneError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(NewtuneError):
    """The configuration cannot be used; carries every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(NewtuneError):
    """A dataset cannot be used; the message names source, row and field."""


class ModelError(NewtuneError):
    """A checkpoint, tokenizer or adapter cannot be used."""


class SetupError(NewtuneError):
    """A package is missing or the environment is unfit; the message holds the remedy."""


class TrainingError(NewtuneError):
    """A run had to stop; the message names the step and what is kept."""


class Interrupted(TrainingError):  # noqa: N818 (it is not an error to obey)
    """The run was asked to stop; a checkpoint is saved and the message says how to go on."""


class FailedElsewhere(TrainingError):  # noqa: N818 (the error is the other process's)
    """Another process of the run failed; it prints its error itself."""


class ExportError(NewtuneError):
    """Merging, verifying or writing a result failed; nothing half-written is left behind."""
