"""How full packs are, and how long packing takes, on lengths drawn from a seed.

    python benchmarks/packing.py [--examples 100000] [--many 1000000] [--repeats 5] [--out FILE]

Best-fit decreasing as training uses it, beside the modes that keep an order and for that fill
packs in turn. First-fit decreasing, one example at a time, is the usual thing. Packs have 2,048
tokens. `uniform 700-1400` cannot do better than 95.45 %: half of its lengths fit into no pair
without leaving room that nothing fills.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newtune.data.packing import pack_examples, packing_efficiency

SEED = 0
PACK_TOKENS = 2048
SHORTEST = 8
SPREAD = 0.6
"""Sigma of the log-normal lengths."""

Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]


def log_normal(median: float) -> Draw:
    """Draw lengths as instructions and conversations have them."""

    def draw(random: np.random.Generator, count: int) -> NDArray[np.int64]:
        lengths = random.lognormal(np.log(median), SPREAD, count).astype(np.int64)
        return np.clip(lengths, SHORTEST, PACK_TOKENS)

    return draw


def uniform(low: int, high: int) -> Draw:
    """Draw every length equally often."""
    return lambda random, count: random.integers(low, high + 1, count)


LENGTHS: Mapping[str, tuple[Draw, float]] = {
    "instructions: log-normal, median 120": (log_normal(120), 0.998),
    "chat: log-normal, mean 600": (log_normal(600 / np.exp(SPREAD**2 / 2)), 0.995),
    "uniform 200-2048": (uniform(200, 2048), 0.985),
    "uniform 700-1400": (uniform(700, 1400), 0.95),
}
"""What lengths are like, and how full packs must be at least."""


def first_fit(lengths: NDArray[np.int64]) -> int:
    """Return the packs of first-fit decreasing over all lengths; a tree finds what fits first."""
    size = 1 << max(1, (len(lengths) - 1).bit_length())
    room = np.full(2 * size, PACK_TOKENS, dtype=np.int64).tolist()
    for length in np.sort(lengths)[::-1].tolist():
        place = 1
        while place < size:
            place *= 2
            place += room[place] < length
        room[place] -= length
        while place > 1:
            place //= 2
            room[place] = max(room[2 * place], room[2 * place + 1])
    return sum(left < PACK_TOKENS for left in room[size:])


def main() -> None:
    """Pack, print, and write where `--out` says; exit status 1 when a pack is too empty."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "seed": SEED,
        "examples": given.examples,
    }
    print(f"{'':38}{'best fit':>10}{'at least':>10}{'first fit':>11}{'in turn':>9}")
    enough = True
    for name, (draw, at_least) in LENGTHS.items():
        lengths = draw(np.random.default_rng(SEED), given.examples)
        modes = efficiencies(lengths)
        enough &= modes["best fit"] >= at_least
        results[name] = {**modes, "at least": at_least}
        shares = "".join(f"{100 * modes[mode]:{width}.2f}%" for mode, width in COLUMNS)
        print(f"{name:38}{shares[:10]}{100 * at_least:9.2f}%{shares[10:]}")
    print(f"\n{given.many:,} lengths, CPU seconds, median of {given.repeats}")
    for name, (draw, _) in LENGTHS.items():
        lengths = draw(np.random.default_rng(SEED), given.many)
        seconds = seconds_to_pack(lengths, given.repeats)
        results[name] |= {"many": given.many, "cpu_seconds": seconds}
        print(f"{name:38}{seconds:9.2f} s")
    results["load"] = os.getloadavg()[0]
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not enough)


COLUMNS = (("best fit", 9), ("first fit", 10), ("in turn", 8))


def efficiencies(lengths: NDArray[np.int64]) -> dict[str, float]:
    """Return the share of the packs' positions that hold a token, by mode."""
    best = pack_examples(lengths, max_tokens=PACK_TOKENS, seed=SEED)
    in_turn = pack_examples(lengths, max_tokens=PACK_TOKENS, keep_order=True)
    counts = {"best fit": len(best), "first fit": first_fit(lengths), "in turn": len(in_turn)}
    return {mode: packing_efficiency(lengths, packs, PACK_TOKENS) for mode, packs in counts.items()}


def seconds_to_pack(lengths: NDArray[np.int64], repeats: int) -> float:
    """Return the median of the CPU seconds of packing, which uses one core."""
    took = []
    for epoch in range(repeats):
        started = time.process_time()
        pack_examples(lengths, max_tokens=PACK_TOKENS, seed=SEED, epoch=epoch)
        took.append(time.process_time() - started)
    return statistics.median(took)


if __name__ == "__main__":
    main()
