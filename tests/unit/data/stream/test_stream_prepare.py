"""A source is looked into before the run; what a stream holds in memory is one buffer."""

import tracemalloc

import pytest

from newtune.data.build import Limits, RowReader
from newtune.data.formats import FormatOptions
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.prepare import look_into
from newtune.data.stream.state import StreamState
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError
from streams import ListedRows, block_reader, encoder, text_source, texts, write_texts

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ END }}{% endfor %}"


def conversations(end):
    options = FormatOptions(
        template=ChatTemplate(TURNS.replace("{{ END }}", end), tokens={}, arguments=None),
        end_tokens=("</s>",),
        eos_token="</s>",
    )
    said = [{"role": "user", "content": "week"}, {"role": "assistant", "content": "story"}]
    rows = ListedRows([{"messages": said}] * 5)
    return EncodedSource(rows, RowReader("chat_template", options, encoder()), Limits(64))


def test_the_first_rows_must_hold_a_trained_token():
    source = text_source(ListedRows([{"text": ""}] * 9 + [{"text": "a river"}]))
    with pytest.raises(DataError, match=r"no trained token in the first 4 rows. 4 rows: `text` is"):
        look_into(source, 4)
    assert len(look_into(source, 10)) == 1


def test_the_end_of_a_turn_must_be_trained():
    assert look_into(conversations("</s>"), 10)
    with pytest.raises(DataError, match="never ends a trained turn with an end-of-turn token"):
        look_into(conversations(" "), 10)


def test_a_source_is_read_no_further_than_needed():
    rows = ListedRows([{"text": "a river"}] * 5_000)
    look_into(text_source(rows), 1_000)
    assert rows.reads == 256


def test_blocks_that_are_done_leave_nothing_behind(tmp_path):
    source = text_source(write_texts(tmp_path / "a.jsonl", texts(20_000)))
    reader = block_reader([source], examples=500, packed=True)
    place = reader.read(StreamState.beginning(1)).end
    tracemalloc.start()
    for _ in range(8):
        place = reader.read(place).end
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert place.counts[0].rows_read == 4_500
    assert held < 1 << 20
    assert peak < 4 << 20
