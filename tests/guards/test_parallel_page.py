"""docs/parallel.md is what the rules say today."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from newtune.plan.pairs import ENGINES, TRAININGS, page, refusal

DOCS = Path(__file__).parents[2] / "docs"
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="its rules speak only where it is installed"
)


@needs_deepspeed
def test_the_page_is_in_step_with_the_rules() -> None:
    assert (DOCS / "parallel.md").read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize(
    ("engine", "training", "said"),
    [
        ("FSDP2", "LoRA, 8 bit", "cannot shard a base in 8 bit"),
        ("TP", "QLoRA", "cannot split a quantised base"),
        ("TP", "DoRA", "whose norms DoRA needs whole"),
        ("HSDP", "muon", "not known to work on sharded parameters"),
    ],
)
def test_a_refusal_has_its_reason(engine: str, training: str, said: str) -> None:
    assert said in (refusal(ENGINES[engine], TRAININGS[training]) or "")


@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "HSDP", "TP", "TP × FSDP2"])
@pytest.mark.parametrize("training", ["full", "LoRA", "packing"])
def test_what_is_measured_is_let_run(engine: str, training: str) -> None:
    assert refusal(ENGINES[engine], TRAININGS[training]) is None
