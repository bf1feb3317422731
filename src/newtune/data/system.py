"""The system message that a dataset's conversations share; who talks to the result wants it too."""

from itertools import islice

from newtune.data.formats import Format
from newtune.data.rendered import Drop
from newtune.data.sources import NumberedRow, Rows
from newtune.errors import DataError

ROWS = 64
"""How many rows are looked at."""


def shared_system_message(rows: Rows | None, format: Format) -> str | None:
    """Return the system message with which every one of the first conversations begins.

    None: they are no conversations, they differ, or they have none.
    """
    if rows is None or format.conversation is None:
        return None
    first = islice((row for chunk in rows.chunks(ROWS) for row in chunk), ROWS)
    found = [_system_message(row, format) for row in first]
    messages = {message for message in found if message is not None}
    return messages.pop() if len(messages) == 1 and "" not in messages else None


def _system_message(row: NumberedRow, format: Format) -> str | None:
    """Return a row's system message; "" where it has none, None where it is not trained on."""
    assert format.conversation is not None
    try:
        conversation = format.conversation(row)
    except DataError:
        return None  # preparation dropped it, or it would have stopped there
    if isinstance(conversation, Drop):
        return None
    message = conversation.turns[0].message
    return str(message["content"]) if message["role"] == "system" else ""
