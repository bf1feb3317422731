"""The system message that the conversations of a dataset share."""

import pytest

from newtune.data.system import ROWS
from prepared import prepare, questions, write_rows

BRIEF = "Be brief."


def conversation(system: str | None) -> dict:
    begin = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    return {"messages": [*begin, *turns]}


@pytest.mark.parametrize(
    ("messages", "shared"),
    [
        ([BRIEF, BRIEF, BRIEF], BRIEF),
        ([BRIEF, BRIEF, "Be long."], None),
        ([BRIEF, None, BRIEF], None),
        ([None, None, None], None),
        ([BRIEF] * ROWS + [None], BRIEF),  # further rows are not looked at
    ],
)
def test_it_is_the_one_that_the_first_rows_begin_with(tmp_path, messages, shared):
    write_rows(tmp_path / "rows.jsonl", [conversation(system) for system in messages])
    datasets = [{"path": "rows.jsonl", "type": "chat_template"}]
    (counts,) = prepare(tmp_path, datasets=datasets).counts
    assert counts.system == shared


def test_what_is_no_conversation_has_none(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(3))
    assert prepare(tmp_path).counts[0].system is None


def test_it_is_what_the_tokens_begin_with_whatever_the_row_says(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [conversation(BRIEF)])
    entry = {"path": "rows.jsonl", "type": "chat_template", "drop_system_message": True}
    assert prepare(tmp_path, datasets=[entry]).counts[0].system is None
    write_rows(tmp_path / "rows.jsonl", [conversation(None)])
    datasets = [{"path": "rows.jsonl", "type": "chat_template"}]
    data = prepare(tmp_path, datasets=datasets, default_system_message=BRIEF)
    assert data.counts[0].system == BRIEF
