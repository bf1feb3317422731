"""Put examples into packs: best-fit decreasing, whole groups of equal lengths at a time.

Examples of one length are interchangeable, so the work is per (length, room left in a pack) and
not per example: the tightest packs that still have room take as many as fit, all at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int32]
Indices = NDArray[np.int64]


def pack_examples(
    lengths: Lengths,
    *,
    max_tokens: int,
    max_examples: int = 200,
    group_size: int = 100_000,
    seed: int = 0,
    epoch: int = 0,
    keep_order: bool = False,
    fill_in_order: bool = False,
) -> list[Indices]:
    """Return packs: each the indices of examples whose lengths together fit into `max_tokens`.

    Every example stands in exactly one pack; a pack holds at most `max_examples`. Examples are
    drawn in an order given by (seed, epoch) and packed `group_size` at a time; the packs of all
    groups come in an order of that draw too. With `fill_in_order` each pack is filled in turn and
    they come in the order of their examples; with `keep_order` moreover nothing is drawn: the
    examples come as they stand, every epoch.

    Raises:
        ValueError: an example is longer than `max_tokens`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and int(sizes.max()) > max_tokens:
        longest = int(sizes.argmax())
        raise ValueError(f"example {longest} has {sizes[longest]} tokens, a pack {max_tokens}")
    if keep_order:
        return _fill_in_order(sizes, max_tokens, max_examples)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(sizes.size)
    if fill_in_order:
        in_turn = _fill_in_order(sizes[order], max_tokens, max_examples)
        return [order[pack] for pack in in_turn]
    packs: list[Indices] = []
    for start in range(0, order.size, group_size):
        group = order[start : start + group_size]
        packs += _best_fit(group, sizes[group], max_tokens, max_examples)
    return [packs[place] for place in random.permutation(len(packs))]


def packing_efficiency(lengths: Lengths, packs: int, max_tokens: int) -> float:
    """Return the share of the packs' positions that hold a token."""
    return float(np.asarray(lengths, dtype=np.int64).sum()) / (packs * max_tokens) if packs else 0.0


def _best_fit(
    indices: Indices, lengths: Indices, max_tokens: int, max_examples: int
) -> list[Indices]:
    """Pack one group, longest first, each into the fullest pack that still has room for it."""
    by_length = np.argsort(-lengths, kind="stable")
    indices, lengths = indices[by_length], lengths[by_length]
    starts = np.flatnonzero(np.diff(lengths, prepend=-1)).tolist()
    pack_of = np.empty(lengths.size, dtype=np.int64)
    open_packs = _OpenPacks(max_tokens, max_examples)
    for start, end in zip(starts, [*starts[1:], lengths.size], strict=True):
        open_packs.take(int(lengths[start]), pack_of[start:end])
    by_pack = np.argsort(pack_of, kind="stable")
    cuts = np.flatnonzero(np.diff(pack_of[by_pack])) + 1
    return np.split(indices[by_pack], cuts) if lengths.size else []


class _OpenPacks:
    """Packs that still have room, by how much; `levels` has a bit for every room that occurs."""

    def __init__(self, max_tokens: int, max_examples: int) -> None:
        self.max_tokens = max_tokens
        self.max_examples = max_examples
        self.packs_with_room: dict[int, list[tuple[Indices, int]]] = {}
        self.levels = 0
        self.count = 0

    def take(self, length: int, pack_of: Indices) -> None:
        """Place examples of one length; write the pack of each into `pack_of`."""
        placed = 0
        unit = max(length, 1)
        while placed < pack_of.size:
            room, packs, held = self._tightest(unit, needed=pack_of.size - placed)
            each = min(room // unit, self.max_examples - held)
            full, rest = divmod(min(packs.size * each, pack_of.size - placed), each)
            end = placed + full * each
            pack_of[placed:end] = np.repeat(packs[:full], each)
            self._put(packs[:full], room - each * length, held + each)
            pack_of[end : end + rest] = packs[full : full + 1] if rest else packs[:0]
            if rest:
                self._put(packs[full : full + 1], room - rest * length, held + rest)
            self._put(packs[full + bool(rest) :], room, held)
            placed = end + rest

    def _tightest(self, length: int, needed: int) -> tuple[int, Indices, int]:
        """Take out packs with the least room that is enough; new ones when there are none."""
        above = self.levels >> length
        if above:
            room = length + (above & -above).bit_length() - 1
            packs, held = self.packs_with_room[room].pop()
            if not self.packs_with_room[room]:
                self.levels ^= 1 << room
            return room, packs, held
        each = min(self.max_tokens // length, self.max_examples)
        new = np.arange(self.count, self.count + -(-needed // each))
        self.count += new.size
        return self.max_tokens, new, 0

    def _put(self, packs: Indices, room: int, held: int) -> None:
        if packs.size and room > 0 and held < self.max_examples:
            self.packs_with_room.setdefault(room, []).append((packs, held))
            self.levels |= 1 << room


def _fill_in_order(lengths: Indices, max_tokens: int, max_examples: int) -> list[Indices]:
    packs: list[Indices] = []
    ends = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + max_tokens, side="right"))
        end = min(end, start + max_examples)
        packs.append(np.arange(start, end))
        start = end
    return packs


@dataclass(frozen=True)
class PackingOptions:
    """How examples share sequences and how those follow each other."""

    sequence_len: int
    packed: bool = False
    eval_packed: bool = False
    max_examples: int = 200
    group_size: int = 100_000
    seed: int = 42
    pad_to_sequence_len: bool = False
    pad_to_multiple_of: int | None = None
    flatten: bool = False
    """The sequences of a micro-batch are laid end to end in one (never padded to each other)."""
    group_by_length: bool = False
    keep_order: bool = False
    """The examples come as they stand in the data, every epoch."""
    fill_in_order: bool = False
    """Packs are filled in turn, not by what fits best."""
    eval_sequence_len: int | None = None


def epoch_sequences(lengths: Lengths, options: PackingOptions, epoch: int) -> list[Indices]:
    """Return the sequences of one training epoch in their order: packs, or single examples."""
    if options.packed:
        return pack_examples(
            lengths,
            max_tokens=options.sequence_len,
            max_examples=options.max_examples,
            group_size=options.group_size,
            seed=options.seed,
            epoch=epoch,
            keep_order=options.keep_order,
            fill_in_order=options.fill_in_order,
        )
    if options.keep_order:
        order = np.arange(len(lengths))
    else:
        order = np.random.default_rng((options.seed, epoch)).permutation(len(lengths))
    if options.group_by_length:
        order = _by_length(order, np.asarray(lengths), options.group_size)
    return list(order.reshape(-1, 1))


def _by_length(order: Indices, lengths: Lengths, group_size: int) -> Indices:
    """Sort by length, longest first, inside windows of the drawn order."""
    window = max(1, min(group_size, len(order) // 8))
    groups = [order[start : start + window] for start in range(0, len(order), window)]
    parts = [group[np.argsort(-lengths[group], kind="stable")] for group in groups]
    return np.concatenate(parts) if parts else order


def eval_sequences(lengths: Lengths, options: PackingOptions) -> list[Indices]:
    """Return the sequences of the held-out data, the same for every evaluation."""
    if not options.eval_packed:
        return list(np.arange(len(lengths)).reshape(-1, 1))
    return pack_examples(
        lengths,
        max_tokens=options.eval_sequence_len or options.sequence_len,
        max_examples=options.max_examples,
        group_size=options.group_size,
        seed=options.seed,
    )
