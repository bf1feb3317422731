"""docs/support.md is what the runs saw, with today's libraries; some cells are run again here."""

import pytest

from support.bench import Bench
from support.cells import COLUMNS, look_at_family
from support.page import COLUMNS as SHOWN
from support.page import DATA, PAGE, Record, installed, page
from tiny import FAMILIES, LEAKING

ASKED_FOR = frozenset(
    {
        "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox",
        "gpt_oss", "gptj", "granite", "jamba", "llama", "mamba", "mistral", "mixtral", "mpt",
        "olmo2", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "rwkv", "smollm3",
        "stablelm", "starcoder2",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def record():
    return Record.read(DATA)


def test_the_page_is_what_was_recorded(record):
    assert PAGE.read_text() == page(record), "run `make support`"


def test_it_was_recorded_with_the_libraries_of_today(record):
    assert record.versions == installed(), "run `make support`"


def test_every_family_asked_for_has_a_row_and_none_is_unknown(record):
    assert ASKED_FOR <= record.families.keys() <= FAMILIES.keys()
    assert tuple(COLUMNS) == SHOWN
    assert all(cells.keys() <= set(SHOWN) for cells in record.families.values())


def test_no_cell_fails(record):
    assert not record.fails()


def test_packing_is_refused_where_the_plan_refuses_it(record):
    """`tests/unit/plan/test_isolation.py` asks the plan about every family of `LEAKING`."""
    seen = {name: row["packing"] for name, row in record.families.items() if "packing" in row}
    refused = {name for name, cell in seen.items() if cell["verdict"] == "refused"}
    assert refused == LEAKING & seen.keys()


def again(record, folder, family, columns):
    recorded = record.families[family]
    seen = look_at_family(Bench.new(folder, family), columns)
    looked = {name for name, cell in seen.items() if cell["verdict"] != "not run"}
    assert seen == {**seen, **{name: recorded[name] for name in looked & recorded.keys()}}


@pytest.mark.parametrize(("family", "columns"), [
    ("llama", ["LoRA", "packing"]),
    ("mamba", ["LoRA", "packing"]),
    ("gpt2", ["QLoRA", "merge"]),
])  # fmt: skip
def test_some_cells_are_seen_again(record, tmp_path, family, columns):
    again(record, tmp_path, family, columns)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_seen_again(record, tmp_path, family):
    if family not in record.families:
        pytest.skip("not in the table")
    again(record, tmp_path, family, list(COLUMNS))
