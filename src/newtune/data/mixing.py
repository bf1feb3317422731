"""How often each dataset's examples stand in an epoch, and which of them when it is not all.

A dataset that is repeated r times an epoch is read round and round: epoch e takes what stands
between e·r and (e+1)·r of its rounds. So half a dataset is another half every epoch, and over
the epochs every example is used equally often, whatever r is:

    r = 2.5    epoch 0: rounds 0, 1 and half of 2    epoch 1: the rest of 2, rounds 3 and 4
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from newtune.data.counts import Mixed
from newtune.data.packing import Indices, PackingOptions, epoch_sequences

Unit = Literal["repeats", "rows", "tokens"]
Exhaust = Literal["all", "first"]


@dataclass(frozen=True)
class Mixing:
    """What the weights of the datasets mean.

    `repeats`: how often each example stands in an epoch. `rows` and `tokens`: shares of an epoch
    counted in examples or in tokens; the epoch ends when every dataset has been seen whole
    (`exhaust` all; the others go on from their start) or when the first has.
    """

    by: Unit = "repeats"
    exhaust: Exhaust = "all"
    temperature: float | None = None
    """Shares are sizes to the power 1 / temperature; in place of weights."""


def repeats_of(
    weights: Sequence[float | None], sizes: Sequence[int], mixing: Mixing
) -> list[Fraction]:
    """Return how often each dataset stands in an epoch; a weight that is not given is 1.

    `sizes` are counted in what the shares are of: examples, or tokens. A dataset without examples
    takes no part.
    """
    exact = [Fraction(1 if weight is None else str(weight)) for weight in weights]
    if mixing.by == "repeats":
        return exact
    if mixing.temperature is not None:
        exact = [Fraction(size ** (1 / mixing.temperature)) for size in sizes]
    per_share = [
        size / weight for size, weight in zip(sizes, exact, strict=True) if size and weight
    ]
    scale = max(per_share) if mixing.exhaust == "all" else min(per_share)
    return [
        weight * scale / size if size else Fraction(0)
        for weight, size in zip(exact, sizes, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Which of the training examples stand in an epoch, some of them more than once.

    With `keep_order` a dataset's examples come in their order, round after round, one dataset
    after the other; else each round is drawn by `seed`.
    """

    datasets: NDArray[np.int32]
    """Of every training example, in the order of the store."""
    lengths: NDArray[np.int32]
    """Tokens of every training example."""
    repeats: Mapping[int, Fraction]
    """Dataset → how often it stands in an epoch."""
    mixing: Mixing
    seed: int
    keep_order: bool = False

    @classmethod
    def of(
        cls,
        datasets: NDArray[np.int32],
        lengths: NDArray[np.int32],
        weights: Mapping[int, float | None],
        mixing: Mixing,
        *,
        seed: int,
        keep_order: bool = False,
    ) -> "Mixture":
        """Return the mixture that the weights of the datasets ask for."""
        sizes = [int(_measure(lengths[datasets == number], mixing).sum()) for number in weights]
        repeats = repeats_of(list(weights.values()), sizes, mixing)
        by_dataset = dict(zip(weights, repeats, strict=True))
        return cls(datasets, lengths, by_dataset, mixing, seed, keep_order)

    @cached_property
    def _places(self) -> dict[int, NDArray[np.int64]]:
        return {number: np.flatnonzero(self.datasets == number) for number in self.repeats}

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the places of the examples of an epoch; epochs count from 0."""
        parts = [part for number in self.repeats for part in self._rounds(number, epoch)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def realised(self) -> dict[int, Mixed]:
        """Return what each dataset contributes to the first epoch."""
        places = self.epoch(0)
        tokens, rows = int(self.lengths[places].sum(dtype=np.int64)), len(places)
        shares = {}
        for number in self.repeats:
            own = places[self.datasets[places] == number]
            own_tokens = int(self.lengths[own].sum(dtype=np.int64))
            shares[number] = Mixed(
                examples=len(own),
                tokens=own_tokens,
                row_share=len(own) / max(1, rows),
                token_share=own_tokens / max(1, tokens),
            )
        return shares

    def _rounds(self, number: int, epoch: int) -> list[NDArray[np.int64]]:
        """Return one dataset's examples of an epoch, round by round."""
        places = self._places[number]
        sizes = _measure(self.lengths[places], self.mixing)
        whole = int(sizes.sum())
        repeats = self.repeats[number]
        start, end = (-(-(repeats * whole * e) // 1) for e in (epoch, epoch + 1))  # rounded up
        parts = []
        for turn in range(int(start) // max(1, whole), -(-int(end) // max(1, whole))):
            drawn = self._drawn(number, turn, len(places))
            begins = turn * whole + np.cumsum(sizes[drawn]) - sizes[drawn]
            parts.append(places[drawn[(begins >= int(start)) & (begins < int(end))]])
        return parts

    def _drawn(self, number: int, turn: int, size: int) -> NDArray[np.int64]:
        if self.keep_order:
            return np.arange(size)
        return np.random.default_rng((self.seed, 2, number, turn)).permutation(size)


def training_sequences(
    lengths: NDArray[np.int32], packing: PackingOptions, mixture: Mixture | None, epoch: int
) -> list[Indices]:
    """Return the sequences of an epoch, each the places of its examples in the store.

    `lengths` are those of all training examples.
    """
    if mixture is None:
        return epoch_sequences(lengths, packing, epoch)
    places = mixture.epoch(epoch)
    sequences = epoch_sequences(lengths[places], packing, epoch)
    return [places[sequence] for sequence in sequences]


def _measure(lengths: NDArray[np.int32], mixing: Mixing) -> NDArray[np.int64]:
    """Return what each example counts."""
    if mixing.by == "tokens":
        return lengths.astype(np.int64)
    return np.ones(len(lengths), dtype=np.int64)
