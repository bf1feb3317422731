"""One row, whatever happened to it; and whose turn each token is, for every shipped template."""

import json
from pathlib import Path

import pytest

from newtune.data.build import Limits
from newtune.data.formats import FormatOptions
from newtune.data.inspect.rows import RowReading
from newtune.data.inspect.token_text import TokenTexts
from newtune.data.reading import DatasetPlan
from newtune.data.sources import Source, open_source
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError
from tiny import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATES = Path(__file__).parents[4] / "src/newtune/data/templates"


def reading(folder: Path, rows: list, type_: str, *, excess="drop", template=CHATML, **source):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    options = FormatOptions(
        template=ChatTemplate(template, tokens=special), end_tokens=("<|im_end|>",)
    )
    plan = DatasetPlan(
        open_source(Source("rows.jsonl", base_folder=folder, **source)),
        "rows.jsonl", type_, options, False,
    )  # fmt: skip
    limits = Limits(30, excess)
    encoder = TextEncoder.from_tokenizer(TOKENIZER)
    return RowReading([plan], encoder, (limits, limits), TokenTexts(TOKENIZER))


ALPACA = [
    {"instruction": "Say 1", "output": "One."},
    {"instruction": "x", "output": None},
    {"instruction": "x" * 99, "output": "y"},
    {"instruction": "x"},
]


def test_a_row_that_is_dropped_says_why(tmp_path):
    rows = reading(tmp_path, ALPACA, "alpaca")
    empty, long = rows.row(0, 2), rows.row(0, 3)
    assert empty.dropped == "`output` is empty"
    assert (empty.tokens, empty.row) == ((), ALPACA[1])
    assert long.dropped == "longer than 30 tokens"
    assert len(long.tokens) > 30


def test_a_row_that_stops_the_preparation_says_so(tmp_path):
    missing = reading(tmp_path, ALPACA, "alpaca").row(0, 4)
    assert "line 4: no field `output`" in str(missing.error)
    too_long = reading(tmp_path, ALPACA, "alpaca", excess="raise").row(0, 3)
    assert "`sequence_len` is 30" in str(too_long.error)
    assert too_long.tokens


def test_a_row_that_the_split_leaves_out_can_be_seen(tmp_path):
    rows = reading(tmp_path, ALPACA, "alpaca", split="train[:1]")
    assert rows.row(0, 1).chosen
    assert not rows.row(0, 2).chosen
    for number in (0, 5):
        with pytest.raises(DataError, match=rf"no row {number}: .* the last is .*line 4"):
            rows.row(0, number)


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]


def test_chatml_tokens_are_of_the_turn_that_wrote_them(tmp_path):
    view = reading(tmp_path, [{"messages": TALK}], "chat_template").row(0, 1)
    texts = [""] * len(TALK)
    for token in view.tokens:
        texts[token.turn.number - 1] += token.text.text
    assert texts == [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in TALK]
    assert next(token.turn.role for token in view.tokens if token.trained) == "assistant"


@pytest.mark.parametrize("file", sorted(TEMPLATES.iterdir()), ids=lambda file: file.stem)
def test_each_contents_tokens_are_of_its_turn(file, tmp_path):
    rows = [{"messages": TALK[1:]}]
    view = reading(tmp_path, rows, "chat_template", template=file.read_text()).row(0, 1)
    assert view.error is None
    for number, message in enumerate(TALK[1:], 1):
        own = "".join(
            token.text.text for token in view.tokens if token.turn and token.turn.number == number
        )
        assert message["content"] in own
        others = [other["content"] for other in TALK[1:] if other is not message]
        assert not [content for content in others if content in own]


def test_turns_of_an_example_that_was_cut_short(tmp_path):
    rows = reading(tmp_path, [{"messages": TALK}], "chat_template")
    ids = [token.id for token in rows.row(0, 1).tokens]
    assert [turn.number for turn in rows.turns(0, 1, ids[:8])] == [1] * 8
    assert rows.turns(0, 1, [9, 9, 9]) == [None] * 3
