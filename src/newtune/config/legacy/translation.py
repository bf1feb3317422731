"""The values of a file while they are translated, and what is said about it."""

from dataclasses import dataclass, field
from typing import Any

from newtune.errors import Problem


@dataclass
class Translation:
    """The values being translated, and what was said about it."""

    values: dict[str, Any]
    from_command_line: frozenset[str] = frozenset()
    """Top-level keys that the command line set."""
    notices: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    written_as: dict[str, str] = field(default_factory=dict)
    """Dotted key of today → dotted key that the user wrote."""

    def take(self, old: str) -> Any:
        """Remove an old key and return its value; None if it was not given or is off."""
        value = self.values.pop(old, None)
        return None if value is False or value == "" else value

    def put(self, key: str, value: Any, old: str, said: str) -> None:
        """Set today's key to what the old one said, and leave a notice.

        When both are given, the command line goes before the file; otherwise they must agree.
        """
        current = self.values.get(key)
        if current is None:
            self.values[key] = value
            self.written_as[key] = old
        elif key not in self.from_command_line and current != value:
            message = f"contradicts `{key}: {current}`, which is today's name of the same thing"
            self.problems.append(Problem(old, message, f"Keep `{key}`."))
            return
        self.notices.append(f"`{old}` is now `{said}`.")
