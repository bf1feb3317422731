"""Which turn of a conversation wrote each character, and with that each token."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from newtune.data.chat import ChatRenderer, Conversation
from newtune.data.tracing import Rendering


class Turn(NamedTuple):
    """One turn: its number in the rendered conversation, from 1, and whose it is."""

    number: int
    role: str


def turn_of_characters(rendering: Rendering) -> list[int | None]:
    """Return for each character the index of the turn that wrote it; None: the template alone.

    What the template writes around a message in its loop is that message's; text that a template
    puts into another turn's (a system text into the first user turn) stays its own turn's.
    """
    turns: list[int | None] = [None] * len(rendering.text)
    widest_first = sorted(rendering.blocks, key=lambda block: block.start - block.end)
    written = [(block.start, block.end, block.turn) for block in widest_first]
    written += [(piece.start, piece.end, piece.turn) for piece in rendering.pieces]
    for start, end, turn in written:
        turns[start:end] = [turn] * (end - start)
    return turns


def turns_of_tokens(
    renderer: ChatRenderer, conversation: Conversation, offsets: Sequence[tuple[int, int]]
) -> list[Turn | None]:
    """Return whose each token is: the turn of its first character that is not white space.

    `offsets` are each token's characters in the rendered text.
    """
    messages = [turn.message for turn in conversation.turns]
    rendering = renderer.template.render(messages, tools=conversation.tools)
    owners = turn_of_characters(rendering)
    roles = [str(message.get("role", "")) for message in messages]
    found: list[Turn | None] = []
    for start, end in offsets:
        solid = (at for at in range(start, end) if not rendering.text[at].isspace())
        at = next(solid, start)
        owner = owners[at] if at < len(owners) else None
        found.append(None if owner is None else Turn(owner + 1, roles[owner]))
    return found


def runs(turns: Sequence[Turn | None]) -> list[tuple[Turn | None, int, int]]:
    """Return (turn, start, end) for each run of tokens of one turn."""
    grouped = []
    start = 0
    for turn, members in groupby(turns):
        end = start + sum(1 for _ in members)
        grouped.append((turn, start, end))
        start = end
    return grouped
