"""docs/support.json, what the runs saw, and docs/support.md, the same for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "support.json", DOCS / "support.md"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
COLUMNS = ("full", "LoRA", "QLoRA", "GPTQ", "packing", "checkpointing", "merge", "resume")

GONE: Mapping[str, str] = {
    "baichuan, chatglm, internlm, internlm2, qwen (the first), xverse, yi": (
        "never were, or no longer are, part of transformers: their code comes with the checkpoint "
        "(`trust_remote_code`). They are measured like all others when loaded; none was run here"
    ),
    "btlm (Cerebras), cerebras's other models": (
        "Cerebras-GPT is a `gpt2`; BTLM's code comes with the checkpoint"
    ),
}
"""What a user may look for and transformers does not carry → what to know."""

HEAD = """\
# Which families were seen to work

This page is written by `make support`: every cell is a run of a tiny random model of the family,
on a CPU, through newtune's own entry points. **✓** was run and holds; **–** is refused, with the
reason in the footnote; **not run** says what is missing. A family that is not listed is measured
like all others when its model is loaded: its loss must be that of its own logits, and packed
examples must not see each other; a run where that does not hold stops with the numbers.

| column | what was seen |
|---|---|
| full | all weights trained for 8 steps, the loss falls, what is saved has every weight |
| LoRA | `lora_target_linear`; every adapter matrix is trained, the loss falls |
| QLoRA | the same over layers stored in 4 bit (nf4) |
| GPTQ | the same over a GPTQ checkpoint |
| packing | packs give the loss and the gradients of their examples alone, within 1e-5 and 1e-4 |
| checkpointing | `gradient_checkpointing`: layers are computed anew, the gradients are the same |
| merge | `newtune merge` of the LoRA and the QLoRA run passes its own proof |
| resume | going on from a checkpoint in mid-run ends with the same weights, bit for bit |

"""
MARKS = {"works": "✓", "refused": "–", "not run": "not run", "fails": "**fails**"}


@dataclass
class Record:
    """What was seen, with which versions."""

    versions: dict[str, str] = field(default_factory=dict)
    families: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Return what a file holds; nothing yet is nothing."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def add(self, family: str, cells: Mapping[str, dict[str, str]]) -> None:
        """Put in a family's cells, in place of what they were."""
        self.versions = installed()
        self.families[family] = {**self.families.get(family, {}), **cells}

    def write(self, path: Path) -> None:
        """Write everything, families in order."""
        self.families = dict(sorted(self.families.items()))
        path.write_text(json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n")

    def fails(self) -> bool:
        """Tell whether a cell neither works nor is refused."""
        return any(c["verdict"] == "fails" for row in self.families.values() for c in row.values())


def installed() -> dict[str, str]:
    """Return the versions that the table depends on."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def write_page(record: Record) -> None:
    """Write the page for people."""
    PAGE.write_text(page(record))


def page(record: Record) -> str:
    """Return the page as Markdown."""
    notes: dict[str, int] = {}
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    run = {name: row for name, row in record.families.items() if row.keys() - {"GPTQ"}}
    left = ", ".join(f"`{name}`" for name in record.families if name not in run) or "none"
    for family, cells in run.items():
        shown = [_shown(cells.get(column), family, notes) for column in COLUMNS]
        lines.append(f"| `{family}` | {' | '.join(shown)} |")
    gone = [f"* {names}: {why}." for names, why in GONE.items()]
    numbered = [f"{number}. {text}" for text, number in notes.items()]
    parts = [
        HEAD + f"With {versions}.",
        "\n".join(lines),
        f"Not run in this table yet, left to the next `make support`: {left}.",
        "## Footnotes",
        "\n".join(numbered),
        "## Not carried by transformers",
        "\n".join(gone),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(cell: Mapping[str, Any] | None, family: str, notes: dict[str, int]) -> str:
    if cell is None:
        cell = {"verdict": "not run", "why": "left to the next `make support`"}
    text = cell["why"].replace(f"`{family}`", "this family").rstrip(".")
    note = f" <sup>{notes.setdefault(text, len(notes) + 1)}</sup>" if text else ""
    return MARKS[cell["verdict"]] + note
