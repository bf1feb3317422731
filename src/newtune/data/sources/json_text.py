"""One JSON object of bytes → a row, by the fast parser; every doubt goes to the careful one."""

import json
from typing import Any

import orjson

from newtune.data.sources.rows import Row, RowError

_DIGITS_AS_ZEROS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
_PERHAPS_ABOVE_64_BITS = b"0" * 19


def parse_object(content: bytes) -> Row:
    """Return the object.

    Raises:
        RowError: it is malformed, no object, or has a key twice.
    """
    try:
        row = orjson.loads(content)
        if isinstance(row, dict) and _surely_kept_all(content, row):
            return row
    except (orjson.JSONDecodeError, TypeError):  # TypeError: deeper than orjson writes
        pass
    return _parse_carefully(content)


def _surely_kept_all(content: bytes, row: Any) -> bool:
    r"""Tell whether orjson lost nothing, from counts alone: it keeps the last of equal keys.

    Written again, an object has as many quotation marks as before: two around each key and each
    string, and those inside strings, which are `\"` in both. A key that occurred twice is gone
    with its two. Only one written as `\u0022` comes back as another byte. Integers that do not fit
    into 64 bits, which orjson rounds, have 19 digits or more.
    """
    if b"\\u0022" in content or _PERHAPS_ABOVE_64_BITS in content.translate(_DIGITS_AS_ZEROS):
        return False
    return content.count(b'"') == orjson.dumps(row).count(b'"')


def _parse_carefully(content: bytes) -> Row:
    try:
        row = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start + 1}.") from error
    except json.JSONDecodeError as error:
        raise RowError(f"malformed JSON: {_explain(error)}.") from error
    except RecursionError as error:
        raise RowError("nested too deeply.") from error
    if not isinstance(row, dict):
        raise RowError(f"a row must be an object, got {type(row).__name__}.")
    _refuse_lone_surrogates(content)
    return row


def _explain(error: json.JSONDecodeError) -> str:
    at = f"line {error.lineno}, " if error.lineno > 1 else ""
    if "\0" in error.doc:
        return "it holds null bytes; was the file written to its end?"
    if error.msg == "Extra data":
        return f"more follows after the row's end ({at}column {error.colno})"
    return f"{error.msg} ({at}column {error.colno})"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(
            f"the key `{twice}` occurs twice in one object; one of the two would be lost."
        )
    return found


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is not a value of JSON; write null or a number.")


def _refuse_lone_surrogates(content: bytes) -> None:
    if b"\\u" not in content and b"\\U" not in content:
        return
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error):
            raise RowError(
                f"half of a surrogate pair (`\\ud800` to `\\udfff`), which is no text (column "
                f"{error.colno})."
            ) from error
