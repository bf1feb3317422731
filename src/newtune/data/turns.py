r"""Where each turn of a rendered conversation stands: its body, and the token that ends it.

    <|im_start|>assistant\n Four.<|im_end|> \n
    └ header ─────────────┘ └ body └ end

Three things are known: which characters are each message's own (pieces), what each pass of a
loop over messages wrote (blocks), and what the template writes before an answer (headers). The
own text decides; the others tell how far what the template added belongs to it.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from newtune.data.probes import shared_length
from newtune.data.rendered import Span
from newtune.data.surroundings import KnownSurroundings, Lengths, Surroundings
from newtune.data.traced import MIXED, Piece
from newtune.data.tracing import Block, Rendering
from newtune.errors import DataError


class TurnRange(NamedTuple):
    """A body from `start` to `body_end`, its end token from there to `end`, its own pieces."""

    start: int
    body_end: int
    end: int
    own: Sequence[Piece]

    @property
    def has_end(self) -> bool:
        """The template closed this turn with a token."""
        return self.end > self.body_end


NOWHERE = TurnRange(0, 0, 0, ())


@dataclass(frozen=True)
class Landmarks:
    """What a template writes around answers."""

    headers: tuple[str, ...]
    """Texts before an answer, the generation prompt first."""
    end_pattern: re.Pattern[str]
    """Matches what may end a turn."""
    headless: bool = False
    """Before an answer stands white space at most: all that its pass writes is the answer's."""
    ends_at_next_turn: bool = False
    """What opens the next turn may end this one, too."""
    known: KnownSurroundings = field(default_factory=KnownSurroundings, compare=False, repr=False)


class TurnFinder:
    """Finds the turns of one rendering; `place` (source and row) is for errors."""

    def __init__(self, rendering: Rendering, landmarks: Landmarks, place: str) -> None:
        self.rendering = rendering
        self.text = rendering.text
        self.pieces = rendering.pieces
        self.starts = [piece.start for piece in rendering.pieces]
        self.block_starts = [block.start for block in rendering.blocks]
        self.landmarks = landmarks
        self.place = place
        self.own: dict[int, list[Piece]] = {}
        for piece in rendering.pieces:
            self.own.setdefault(piece.turn, []).append(piece)
        self.blocks: dict[int, list[Block]] = {}
        for block in rendering.blocks:
            self.blocks.setdefault(block.turn, []).append(block)
        self.last_block = max((block.start for block in rendering.blocks), default=-1)
        if MIXED in self.own:
            raise DataError(
                f"{place}: the chat template puts the texts of several turns through an operation "
                "(such as `wordwrap` or `%5s`) after which nobody can tell which is whose: "
                f"{shorten(self.text[slice(*self.own[MIXED][0][:2])])}. Use a template that "
                "writes each turn's text by itself."
            )

    def find(self, index: int, message: Mapping[str, Any], *, trained: bool) -> TurnRange:
        """Return where turn `index` stands.

        Raises:
            DataError: it is not in the text, or stands there more than once and is trained.
        """
        own = self._own_pieces(index, message)
        return self._find_alone(index, message, own) or self._find(
            index, message, own, trained=trained
        )

    def check(self, index: int, message: Mapping[str, Any]) -> TurnRange:
        """Make sure that the text has turn `index`, without saying where.

        Raises:
            DataError: it has not.
        """
        self._own_pieces(index, message)
        return NOWHERE

    def _find_alone(
        self, index: int, message: Mapping[str, Any], own: list[Piece]
    ) -> TurnRange | None:
        """Find a turn whose one pass wrote its one piece and no other; None: it is not like that.

        Where it begins and ends depends on nothing but what the pass wrote around the piece
        then, so that is worked out once for all conversations.
        """
        blocks = self.blocks.get(index, ())
        if len(own) != 1 or len(blocks) != 1:
            return None
        piece, block = own[0], blocks[0]
        inside = self._inside(block.start, block.end)
        if len(inside) != 1 or inside[0] is not piece or piece.end > block.end:
            return None
        around = Surroundings(
            self.text[block.start : piece.start],
            self.text[piece.end : block.end],
            message.get("role") == "assistant",
        )
        lengths = self.landmarks.known.recall(around)
        if lengths is None:
            found = self._find(index, message, own, trained=True)
            if found.end > block.end or not found.has_end:
                return found  # what follows the pass has a say
            lengths = Lengths(
                found.start - block.start, found.body_end - piece.end, found.end - piece.end
            )
            self.landmarks.known.remember(around, lengths)
        return TurnRange(
            block.start + lengths.to_start,
            piece.end + lengths.to_end,
            piece.end + lengths.to_after,
            own,
        )

    def _find(
        self, index: int, message: Mapping[str, Any], own: list[Piece], *, trained: bool
    ) -> TurnRange:
        block, own = self._home(index, message, own, trained=trained)
        start = self._start(message, block, own)
        if start is None:
            return NOWHERE
        body_end = max([start, *(piece.end for piece in own)])
        return TurnRange(start, *self._end(index, body_end, block), own)

    def without_others(self, span: Span, index: int) -> Iterator[Span]:
        """Cut from a turn's span what was written for others inside it (a tool's answer, say)."""
        start = span.start
        for other in self._others(span, index):
            if other.end > start:
                yield Span(start, max(start, other.start))
                start = other.end
        if span.end > start:
            yield Span(start, span.end)

    def _others(self, span: Span, index: int) -> list[Span]:
        """Return what other turns wrote inside a span, and what whole passes over them did."""
        low, high = (bisect_left(self.block_starts, place) for place in span)
        passes = (block for block in self.rendering.blocks[low:high] if block.end <= span.end)
        written: list[Piece | Block] = [*self._inside(span.start, span.end), *passes]
        return sorted(Span(one.start, one.end) for one in written if one.turn != index)

    def _inside(self, start: int, end: int) -> Sequence[Piece]:
        return self.pieces[bisect_left(self.starts, start) : bisect_left(self.starts, end)]

    def _own_pieces(self, index: int, message: Mapping[str, Any]) -> list[Piece]:
        """Return the pieces of a turn; search for its text when it came in as something else."""
        own = self.own.get(index, [])
        written = {piece.field for piece in own if piece.end > piece.start}
        if message.get("tool_calls") and "tool_calls" not in written:
            raise self._missing(index, message, "its tool calls", message["tool_calls"])
        content = message.get("content")
        if "content" in written or not has_text(content):
            return own
        found = self._search(index, content) if isinstance(content, str) else None
        if found is None:
            raise self._missing(index, message, "its text", content)
        return sorted([*own, found])

    def _missing(self, index: int, message: Mapping[str, Any], what: str, value: Any) -> DataError:
        remedy = "leave the row out"
        if message.get("role") == "system":
            remedy = "set `drop_system_message`"
        return DataError(
            f"{self.place}, turn {index + 1} ({message.get('role')}): not in the text that the "
            f"chat template wrote: {what} {shorten(value)}. Use a template that writes it, "
            f"or {remedy}."
        )

    def _search(self, index: int, content: str) -> Piece | None:
        """Find a content that no piece remembers; never in what another turn wrote."""
        areas = self.blocks.get(index) or [Block(0, len(self.text), index)]
        for candidate in (content, content.strip()):
            places = {
                start
                for area in areas
                for start in _occurrences(self.text, candidate, area)
                if not any(
                    piece.end > start for piece in self._inside(start, start + len(candidate))
                )
            }
            if len(places) == 1:
                start = places.pop()
                return Piece(start, start + len(candidate), index, "content", 0)
        return None

    def _home(
        self, index: int, message: Mapping[str, Any], own: list[Piece], *, trained: bool
    ) -> tuple[Block | None, list[Piece]]:
        """Return the pass that wrote the turn, if one did, and the pieces that are the turn.

        A template may write a text twice: where its turn stands, and in a heading, say.
        """
        blocks = self.blocks.get(index, [])
        if own and len(blocks) == 1:
            (block,) = blocks
            if block.start <= own[0].start and own[-1].end <= block.end:
                return block, own
        blocks = _outermost(blocks)
        if not own:
            return max(blocks, key=lambda block: block.end - block.start, default=None), own
        homes = [
            (
                block,
                [piece for piece in own if block.start <= piece.start and piece.end <= block.end],
            )
            for block in blocks
        ]
        places: list[tuple[Block | None, list[Piece]]] = [home for home in homes if home[1]]
        if not places:
            places = [(None, run) for run in self._runs(index)] or [(None, own)]
        places = [place for place in places if _has_length(place[1])] or places[-1:]
        if len(places) > 1:
            headed = [place for place in places if self._header_end(*place) is not None]
            places = headed if headed and message.get("role") == "assistant" else places
        if len(places) > 1 and trained:
            raise DataError(
                f"{self.place}, turn {index + 1} ({message.get('role')}): the chat template writes "
                f"its text {len(places)} times, and nothing tells which is the answer: "
                f"{shorten(message.get('content'))}. Use another template, or leave the turn "
                "untrained."
            )
        return places[-1]

    def _runs(self, index: int) -> list[list[Piece]]:
        """Return the turn's pieces in runs that no other turn's text interrupts."""
        runs: list[list[Piece]] = []
        follows = False
        for piece in self.pieces:
            if piece.turn == index:
                runs = runs if follows else [*runs, []]
                runs[-1].append(piece)
                follows = True
            elif piece.end > piece.start:
                follows = False
        return runs

    def _start(
        self, message: Mapping[str, Any], block: Block | None, own: Sequence[Piece]
    ) -> int | None:
        """Return where the body begins; None for a turn without text or header."""
        header_end = None
        if message.get("role") == "assistant":
            header_end = self._header_end(block, own)
            if block and self.landmarks.headless:
                header_end = self._first_solid(block)
        starts = [piece.start for piece in own[:1]]
        return min(starts if header_end is None else [header_end, *starts], default=None)

    def _first_solid(self, block: Block) -> int | None:
        """Return where a pass writes something that is not white space."""
        written = self.text[block.start : block.end]
        return block.start + len(written) - len(written.lstrip()) if written.strip() else None

    def _header_end(self, block: Block | None, own: Sequence[Piece]) -> int | None:
        """Return where what the template writes before an answer ends; None if it is not there.

        Only text that no message wrote is looked at: from the pass's start, or from the piece
        before, to the turn's first piece.
        """
        if block:
            inside = self._inside(block.start, block.end)
            low, high = block.start, inside[0].start if inside else block.end
        elif own:
            before = bisect_left(self.starts, own[0].start) - 1
            low, high = self.pieces[before].end if before >= 0 else 0, own[0].start
        else:
            return None
        for header in filter(None, self.landmarks.headers):
            place = (
                self.text.find(header, low, high) if block else self.text.rfind(header, low, high)
            )
            if place >= 0:
                return place + len(header)
        if block and own and own[0].field == "tool_calls":
            return self._shared_header_end(low, high)
        return None

    def _shared_header_end(self, low: int, high: int) -> int | None:
        """Return where what is written before a call parts from what answers are headed with."""
        written = self.text[low:high]
        shared = (shared_length(header, written) for header in self.landmarks.headers)
        longest = max(shared, default=0)
        return low + longest if written[:longest].strip() else None

    def _end(self, index: int, body_end: int, block: Block | None) -> tuple[int, int]:
        """Return the characters of the token that ends a turn; an empty range if there is none.

        Inside the turn's own block it is the last end token after the body (a tool call may close
        with others before it), or, when the template's marker is no token of the tokenizer,
        whatever the template wrote there. Without a block it is the first end token before the
        next turn.
        """
        if block:
            found = self._end_in_block(index, body_end, block.end)
            if not found and self.landmarks.ends_at_next_turn:
                match = self.landmarks.end_pattern.match(self.text, block.end)
                found = match.span() if match and body_end == block.end else None
            if found or self.last_block >= block.end:
                return found or (body_end, body_end)
        limit = self._next_piece(index, body_end)
        match = self.landmarks.end_pattern.search(self.text, body_end, limit)
        follows = match and not (block and self.text[block.end : match.start()].strip())
        return match.span() if match and follows else (body_end, body_end)

    def _end_in_block(self, index: int, body_end: int, block_end: int) -> tuple[int, int] | None:
        others = self._others(Span(body_end, block_end), index)
        matches = [
            match
            for match in self.landmarks.end_pattern.finditer(self.text, body_end, block_end)
            if not any(p.start < match.end() and match.start() < p.end for p in others)
        ]
        if matches:
            return matches[-1].span()
        limit = min((other.start for other in others if other.end > other.start), default=block_end)
        closing = self.text[body_end:limit].rstrip()
        return (body_end, body_end + len(closing)) if closing else None

    def _next_piece(self, index: int, position: int) -> int:
        """Return where the next piece of another turn starts."""
        following = self.pieces[bisect_left(self.starts, position) :]
        others = (piece.start for piece in following if piece.turn != index)
        return next(others, len(self.text))


def _outermost(blocks: Sequence[Block]) -> list[Block]:
    """Leave out blocks that lie inside another one of the same turn."""
    if len(blocks) < 2:
        return list(blocks)
    return [
        block
        for block in blocks
        if not any(o != block and o.start <= block.start and block.end <= o.end for o in blocks)
    ]


def _has_length(pieces: Sequence[Piece]) -> bool:
    return any(piece.end > piece.start for piece in pieces)


def has_text(content: Any) -> bool:
    """Say whether a message's content holds anything besides white space."""
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, list):
        return any(has_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return False


def _occurrences(text: str, wanted: str, area: Block) -> Iterator[int]:
    start = text.find(wanted, area.start, area.end)
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1, area.end)


def shorten(content: Any) -> str:
    """Return a text as it is shown in an error."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return repr(text if len(text) <= 120 else text[:117] + "...")
