"""Values that a key may hold in several forms, or not at all, in one form."""

from collections.abc import Mapping
from typing import Any


def as_tuple(value: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return one string, several or none as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def given(**values: Any) -> Mapping[str, Any]:
    """Return the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def as_layers(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return one number or several as a tuple; None stays."""
    if value is None:
        return None
    return (value,) if isinstance(value, int) else tuple(value)
