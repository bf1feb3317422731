"""Bad rows among good ones, from the file to the counts: one error with its place, or a drop.

Each stands in the middle of a file; asked to (`on_error: drop`), the preparation leaves just it
out, counts it and says where it is and what is wrong.
"""

import json

import pytest

from newtune.config.load import load_config
from newtune.errors import DataError
from newtune.prepare import prepare
from tiny import save_tiny_checkpoint

Q, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
GOOD = {
    "alpaca": {"instruction": "Hi", "output": "Hello"},
    "completion": {"text": "Hello"},
    "input_output": {"segments": [{"text": "Hello", "label": True}]},
    "chat_template": {"messages": [Q, A]},
    "": {"input_ids": [5, 6], "labels": [-100, 6]},
}
DROPS_THIRD = "{% for m in messages[:2] %}{{ m.role + m.content }}<|im_end|>{% endfor %}"
RAISES = (
    "{% for m in messages %}{% if m.content == 'Stop' %}{{ raise_exception('no Stop') }}{% endif %}"
    "{{ m.role + m.content }}<|im_end|>{% endfor %}"
)
DIVIDES = (
    "{% for m in messages %}{{ 1 // (m.content | length) }}{{ m.content }}<|im_end|>{% endfor %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if messages | length > 2 %}{% for i in range(999999999) %}.{% endfor %}{% endif %}"
)

# name → (type, the bad row or its bytes, what is said, the chat template)
BAD = {
    "wrong type: text is a list": ("alpaca", {"instruction": "Hi", "output": ["x"]},
        "`output` must be text, got list", None),
    "wrong type: text is a bool": ("completion", {"text": True}, "`text` must be text, got bool",
        None),
    "wrong type: a message is text": ("chat_template", {"messages": ["Hi"]},
        "turn 1: must be an object, got str", None),
    "wrong type: a content is a number of things": ("chat_template",
        {"messages": [Q, {**A, "content": {"a": 1}}]}, "turn 2: the content must be text", None),
    "wrong type: a label is text": ("input_output", {"segments": [{"text": "a", "label": "no"}]},
        r"`segments\[1\].label` must be true or false", None),
    "wrong type: an id is text": ("", {"input_ids": ["a"], "labels": [1]}, "`input_ids`", None),
    "wrong type: a system text is a list": ("chat_template", {"messages": [Q, A], "system": ["S"]},
        "`system` must be text, got list", None),
    "null: a turn": ("chat_template", {"messages": [Q, None, A]}, "turn 2: must be an object",
        None),
    "null: a role": ("chat_template", {"messages": [{**Q, "role": None}, A]},
        "turn 1: `role` must be text, got NoneType", None),
    "mixed schemas": ("chat_template", {"conversations": [Q, A]}, "no field `messages`", None),
    "mixed schemas of turns": ("chat_template", {"messages": [{"from": "human", "value": "Hi"}]},
        "turn 1: no `role`; the turn has `from`, `value`", None),
    "two system texts": ("chat_template",
        {"messages": [{"role": "system", "content": "T"}, Q, A], "system": "S"},
        "`system` and the system turn differ", None),
    "truncated": ("completion", b'{"text": "Hel', "malformed JSON", None),
    "invalid UTF-8": ("completion", b'{"text": "\xff"}', "not UTF-8 at byte 11", None),
    "a BOM within": ("completion", b'\xef\xbb\xbf{"text": "a"}', "Unexpected UTF-8 BOM", None),
    "null bytes": ("completion", b"\0" * 64, "null bytes", None),
    "a key twice": ("completion", b'{"text": "a", "text": "b"}', "`text` occurs twice", None),
    "deep nesting": ("completion", b'{"text": ' + b"[" * 99_999 + b"]" * 99_999 + b"}",
        "nested too deeply", None),
    "deep nesting in text": ("chat_template", {"messages": "[" * 99_999 + "]" * 99_999},
        "nested too deeply", None),
    "ten megabytes, cut off": ("completion", b'{"text": "' + b"x" * 10_000_000,
        "Unterminated string", None),
    "a template that raises": ("chat_template", {"messages": [Q, {**A, "content": "Stop"}]},
        "the chat template failed: no Stop", RAISES),
    "a template that fails": ("chat_template", {"messages": [{**Q, "content": ""}, A]},
        "the chat template failed: .*zero", DIVIDES),
    "a template that drops a turn": ("chat_template", {"messages": [Q, A, {**Q, "content": "x"}]},
        r"turn 3 \(user\): not in the text that the chat template wrote: its text 'x'",
        DROPS_THIRD),
    "a template without end": ("chat_template", {"messages": [Q, A, Q]},
        "the chat template failed: ", ENDLESS),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    save_tiny_checkpoint(folder / "model")
    return folder / "model"


def data_of(folder, model, type_, row, template, **entry):
    good = json.dumps(GOOD[type_]).encode()
    bad = row if isinstance(row, bytes) else json.dumps(row).encode()
    (folder / "rows.jsonl").write_bytes(b"\n".join([good, good, bad, good, b""]))
    values = {
        "base_model": str(model),
        "datasets": [{"path": str(folder / "rows.jsonl"), "type": type_, **entry}],
        **({"chat_template": "jinja", "chat_template_jinja": template} if template else {}),
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 512,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": str(folder / "out"),
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    return prepare(load_config(folder / "run.yaml", [])).data


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_the_preparation_or_is_dropped_and_counted(tmp_path, model, name):
    type_, row, message, template = BAD[name]
    place = r"rows\.jsonl, line 3"
    with pytest.raises(DataError, match=rf"{place}.*{message}") as raised:
        data_of(tmp_path, model, type_, row, template)
    assert len(str(raised.value)) < 1_000
    (counts,) = data_of(tmp_path, model, type_, row, template, on_error="drop").counts
    assert (counts.rows_read, counts.examples) == (4, 3)
    (dropped,) = counts.dropped
    assert (dropped.reason, dropped.rows, dropped.first_row) == ("malformed", 1, 3)
    assert str(raised.value) in dropped.examples[0]


EMPTY = {
    "null answer": ("alpaca", {"instruction": "Hi", "output": None}, "`output` is empty"),
    "null text": ("completion", {"text": None}, "`text` is empty"),
    "null answer of a conversation": ("chat_template", {"messages": [Q, {**A, "content": None}]},
        "a question or an answer has no content"),
    "no turns": ("chat_template", {"messages": []}, "`messages` is empty"),
    "null turns": ("chat_template", {"messages": None}, "`messages` is empty"),
    "nothing trained": ("chat_template", {"messages": [Q]}, "no trained token"),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_a_row_of_which_there_is_nothing_to_learn_is_dropped_and_counted(tmp_path, model, name):
    type_, row, reason = EMPTY[name]
    (counts,) = data_of(tmp_path, model, type_, row, None).counts
    assert [(entry.reason, entry.rows, entry.first_row) for entry in counts.dropped] == [
        (reason, 1, 3)
    ]
    assert counts.dropped[0].examples[0].endswith("rows.jsonl, line 3")
    assert counts.examples == 3
