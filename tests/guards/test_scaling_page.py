"""The tables of docs/scaling.md are what their formulas give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
RANK = 16


@dataclass(frozen=True)
class Model:
    """A Llama 3 by its shapes."""

    name: str
    layers: int
    hidden: int
    key_value: int
    inner: int
    vocabulary: int = 128_256

    @property
    def layer(self) -> int:
        """Parameters of a decoder layer."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.key_value
        return attention + 3 * self.hidden * self.inner + 2 * self.hidden

    @property
    def rest(self) -> int:
        """Embeddings, last norm, head: gathered for the whole of a step."""
        return 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def all(self) -> int:
        return self.layers * self.layer + self.rest

    @property
    def lora(self) -> int:
        """Trained parameters of LoRA on every linear layer of the decoder."""
        square, narrow = 2 * self.hidden, self.hidden + self.key_value
        return self.layers * RANK * (2 * square + 2 * narrow + 3 * (self.hidden + self.inner))


SMALL = Model("8B", 32, 4096, 1024, 14336)
LARGE = Model("70B", 80, 8192, 1024, 28672)
Bytes = Callable[[Model, int], float]
"""Model and number of GPUs → bytes."""


def part(gpus: int) -> float:
    """A ring sends this share of what it gathers or scatters."""
    return (gpus - 1) / gpus


# name, memory (states and what is gathered), traffic (sent per GPU and step)
FULL: list[tuple[str, Bytes, Bytes]] = [
    ("DDP", lambda m, n: 16 * m.all, lambda m, n: 2 * 4 * m.all * part(n)),
    (
        "FSDP2",
        lambda m, n: 16 * m.all / n + 4 * (m.layer + m.rest),
        lambda m, n: 3 * 4 * m.all * part(n),
    ),
    (
        "HSDP, 8 share a copy",
        lambda m, n: 16 * m.all / 8 + 4 * (m.layer + m.rest),
        lambda m, n: 3 * 4 * m.all * part(8) + 2 * 4 * m.all / 8 * part(n // 8),
    ),
    ("ZeRO-1", lambda m, n: 4 * m.all + 12 * m.all / n, lambda m, n: 4 * m.all * part(n)),
    ("ZeRO-2", lambda m, n: 2 * m.all + 14 * m.all / n, lambda m, n: 4 * m.all * part(n)),
    (
        "ZeRO-3",
        lambda m, n: 16 * m.all / n + 2 * m.layer,
        lambda m, n: 6 * m.all * part(n),
    ),
]
LORA: list[tuple[str, Bytes, Bytes]] = [
    ("DDP", lambda m, n: 2 * m.all + 16 * m.lora, lambda m, n: 2 * 4 * m.lora * part(n)),
    (
        "FSDP2",
        lambda m, n: (2 * m.all + 16 * m.lora) / n + 2 * (m.layer + m.rest),
        lambda m, n: (2 * 2 * m.all + 3 * 4 * m.lora) * part(n),
    ),
]
SIZES = (8, 64, 1024)


def table(rows: list[tuple[str, Bytes, Bytes]]) -> Iterator[str]:
    yield (
        "| GB per GPU: memory / sent per step | "
        + " | ".join(f"{m.name}, {n} GPUs" for m in (SMALL, LARGE) for n in SIZES)
        + " |"
    )
    yield "|---|" + "---|" * 6
    for name, memory, traffic in rows:
        cells = [
            f"{memory(m, n) / 1e9:,.1f} / {traffic(m, n) / 1e9:,.1f}"
            for m in (SMALL, LARGE)
            for n in SIZES
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def test_the_models_are_those_that_are_meant() -> None:
    assert (SMALL.all, LARGE.all) == (8_030_261_248, 70_553_706_496)
    assert (SMALL.lora, LARGE.lora) == (41_943_040, 207_093_760)


def test_the_tables_are_what_the_formulas_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for rows in (FULL, LORA):
        assert "\n".join(table(rows)) in page
