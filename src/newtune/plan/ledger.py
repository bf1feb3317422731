"""Collect the reason of each decision while a plan is made."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

Value = TypeVar("Value")


class Ledger:
    """Reasons and notices, in the order in which things were decided."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._notices: list[str] = []

    def decide(self, name: str, value: Value, reason: str) -> Value:
        """Write down why `name` (dotted, as in Plan) has this value, and return the value."""
        self._reasons[name] = reason
        return value

    def notice(self, text: str) -> None:
        """Keep something the user should know about."""
        self._notices.append(text)

    @property
    def reasons(self) -> Mapping[str, str]:
        """Return a read-only view: dotted name → reason."""
        return MappingProxyType(self._reasons)

    @property
    def notices(self) -> tuple[str, ...]:
        """Return the notices so far."""
        return tuple(self._notices)
