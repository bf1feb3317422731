"""Processes that are to train one model must see the same: configuration, code, data, base.

Only digests travel: values of the configuration may be secrets.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import newtune
from newtune.distributed.meeting import Meeting
from newtune.errors import SetupError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy")
SHOWN = 6
"""Most keys and processes that an error lists."""


def require_agreement(meeting: Meeting, what: str, mine: Mapping[str, str], remedy: str) -> None:
    """Compare digests with the other processes; all must ask.

    Raises:
        SetupError: they differ; it names the keys, and the processes with their machines.
    """
    place = f"{meeting.rank} on {meeting.host}"
    found = meeting.settle(f"agree/{what}", [place, dict(mine)], differences)
    if not found:
        return
    lines = [
        f"  {key}: {' | '.join(_processes(alike) for alike in groups)}"
        for key, groups in list(found.items())[:SHOWN]
    ]
    more = [f"  ... ({len(found)} in all)"] if len(found) > SHOWN else []
    raise SetupError(
        "\n".join([f"the processes do not have the same {what}:", *lines, *more, remedy])
    )


def differences(everyones: list[Any]) -> dict[str, list[list[str]]]:
    """Return the keys whose digests differ, each with the processes that have the same."""
    found = {}
    for key in sorted({key for _, digests in everyones for key in digests}):
        alike: dict[str | None, list[str]] = {}
        for place, digests in everyones:
            alike.setdefault(digests.get(key), []).append(place)
        if len(alike) > 1:
            found[key] = sorted(alike.values(), key=len, reverse=True)
    return found


def digests_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each value."""
    return {key: digest_of(value) for key, value in values.items()}


def digest_of(value: Any) -> str:
    """Return a digest of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def code_digests() -> dict[str, str]:
    """Return digests of newtune's own files, and the versions of what computes."""
    folder = Path(newtune.__file__).parent
    files = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        files.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {f"newtune {newtune.__version__}": files.hexdigest(), **versions}


def _processes(alike: list[str]) -> str:
    shown = ", ".join(alike[:SHOWN])
    more = f", ... ({len(alike)} in all)" if len(alike) > SHOWN else ""
    return f"{'process' if len(alike) == 1 else 'processes'} {shown}{more}"
