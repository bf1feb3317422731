"""Patterns of dotted keys: `lora_*`, `datasets.*.type`, `*datasets.*.skip`."""

from functools import cache


def matches(key: str, pattern: str) -> bool:
    """Say whether a dotted key fits a pattern.

    `*` stands for any text within one part; as the last part it stands for any depth.
    """
    if "*" not in pattern:
        return key == pattern
    parts, wanted = key.split("."), _parts(pattern)
    if len(parts) != len(wanted) and not (len(parts) > len(wanted) and wanted[-1] == ("", "")):
        return False
    return all(
        part.startswith(start) and part.endswith(end) if end is not None else part == start
        for part, (start, end) in zip(parts, wanted, strict=False)
    )


@cache
def _parts(pattern: str) -> tuple[tuple[str, str | None], ...]:
    """Return (start, end) of each part, end None for a part without `*`."""
    halves = [part.partition("*") for part in pattern.split(".")]
    return tuple((start, end if star else None) for start, star, end in halves)
