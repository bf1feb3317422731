"""Conversations as public data has them: what is missing, of another form, or never written."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from newtune.data.formats import Drop
from newtune.data.sources import Source, TableRow, open_source
from newtune.data.template_choice import shipped_templates
from newtune.errors import DataError
from talks import HI, QWEN, TOOL, A, E, U, called, read, shown

QUESTION, ANSWER = HI
NOTHING = Drop("a question or an answer has no content")


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": "[]"},
        {"role": "assistant", "content": None, "tool_calls": " "},
        {"role": "assistant", "refusal": "No."},
    ],
)
def test_an_answer_of_which_there_is_nothing_drops_the_row(answer):
    assert read({"messages": [QUESTION, answer]}) == NOTHING
    assert read({"messages": [QUESTION, ANSWER, QUESTION, answer]}) == NOTHING


def test_a_question_that_is_null_drops_the_row():
    assert read({"messages": [{"role": "user", "content": None}, ANSWER]}) == NOTHING


def test_an_empty_answer_is_one_and_is_trained():
    text = shown({"messages": [QUESTION, {**ANSWER, "content": ""}]})
    assert text == f"{U}Hi{E}\n{A}⟦{E}⟧\n"


def test_other_turns_may_hold_nothing():
    tool = {"role": "tool", "content": None}
    call = called({})["messages"][1]
    text = shown({"messages": [QUESTION, call, tool, ANSWER]}, template=QWEN)
    assert "<tool_response>\n\n</tool_response>" in text


@pytest.mark.parametrize("arguments", ["", "  ", None, "{}", {}])
def test_a_call_without_arguments_is_written_with_none(arguments):
    assert '{"name": "add", "arguments": {}}' in shown(called(arguments), template=QWEN)


def test_the_older_form_of_a_call_is_written_as_one():
    function = {"name": "add", "arguments": '{"a": 1}'}
    old = {"role": "assistant", "content": None, "function_call": function}
    turns = [QUESTION, old, {"role": "function", "name": "add", "content": "2"}, ANSWER]
    assert '⟦<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in shown(
        {"messages": turns}, template=QWEN
    )
    with pytest.raises(DataError, match=r"turn 2 \(assistant\): not in the text .*tool calls"):
        read({"messages": turns})
    reads_it = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}"
        "{{ (m.function_call.name if m.function_call else m.content) + '<|im_end|>' }}{% endfor %}"
    )
    assert "[assistant]⟦add<|im_end|>⟧[function]2" in shown({"messages": turns}, template=reads_it)


def test_what_a_tool_returned_may_be_an_object():
    row = called({"a": 1})
    row["messages"][2]["content"] = {"sum": 2, "of": ["é"]}
    assert '<tool_response>\n{"sum": 2, "of": ["é"]}\n</tool_response>' in shown(row, template=QWEN)
    with pytest.raises(DataError, match="turn 1: the content must be text, got dict"):
        read({"messages": [{"role": "user", "content": {"a": 1}}, ANSWER]})


def test_tools_for_a_template_that_never_writes_them_are_refused():
    with pytest.raises(DataError, match=r"line 3: offers tools, which .*`field_tools: none`"):
        read({"messages": HI, "tools": [TOOL]})
    for nothing in (None, [], "[]", "", " "):
        assert shown({"messages": HI, "tools": nothing}) == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    row = {"messages": HI, "tools": [TOOL]}
    assert shown(row, field_tools="none") == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"


def test_reasoning_for_a_template_that_never_writes_it_is_refused():
    row = {"messages": [QUESTION, {**ANSWER, "reasoning_content": "Greet."}]}
    with pytest.raises(DataError, match=r"turn 2: has reasoning, .*: 'Greet\.'"):
        read(row)
    assert shown(row, field_thinking="none") == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    within = {"messages": [QUESTION, {**ANSWER, "content": "<think>Greet.</think>Hello"}]}
    with pytest.raises(DataError, match=r"turn 2: has reasoning, .*`split_thinking: false`"):
        read(within, split_thinking=True)
    assert "⟦<think>Greet.</think>Hello" in shown(within)
    qwen3 = shipped_templates()["qwen3"]
    assert "⟦<think>\nGreet.\n</think>\n\nHello" in shown(row, template=qwen3)
    whole = "{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}"
    assert "Greet." in shown(row, template=whole)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [QUESTION, None]}, "turn 2: must be an object, got NoneType"),
        ({"messages": ["Hi"]}, "turn 1: must be an object, got str"),
        ({"messages": {"role": "user"}}, "`messages` must be a list, got dict"),
        ({"messages": 5}, "`messages` must be a list, got int"),
        ({"messages": "hello"}, "`messages` is text, but not JSON: Expecting value"),
        ({"messages": '[{"role": "user"'}, "`messages` is text, but not JSON"),
        ({"messages": DEEP}, "`messages` cannot be read as JSON: nested too deeply"),
        ({"messages": "[" + "9" * 5_000 + "]"}, "`messages` cannot be read as JSON: Exceeds"),
        ({"messages": HI, "tools": DEEP}, "a?.*`tools` cannot be read as JSON: nested too deeply"),
        ({"messages": HI, "tools": {"a": 1}}, "`tools` must be a list, got dict"),
        ({"messages": [QUESTION, {"role": None, "content": "x"}]}, "`role` must be text, got None"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, "turn 1: no `role`; .*`from`, `value`.*"
         "`message_property_mappings: {role: from, content: value}`"),
        ({"messages": [{}]}, "turn 1: no `role`; the turn has nothing"),
        ({"conversations": HI}, "no field `messages`; .*Is it `field_messages: conversations`"),
        ({"text": "Hi"}, "no field `messages`; the row has `text`.$"),
        ({"messages": [QUESTION, {**ANSWER, "role": "Assistent"}]}, "did you mean `assistant`"),
        ({"messages": [QUESTION, {**ANSWER, "content": True}]}, "must be text, got bool"),
        ({"messages": [QUESTION, {**ANSWER, "tool_calls": {"a": 1}}]}, "must be a list of objects"),
        ({"messages": [QUESTION, {**ANSWER, "tool_calls": DEEP}]}, "nested too deeply"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "a part of the content is `image`; newtune reads text only. Leave"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_one_error_with_its_row(row, message):
    with pytest.raises(DataError, match=f"^rows.jsonl, line 3.*{message}"):
        read(row, template=QWEN)


def test_a_row_nested_as_deep_as_json_may_be_is_an_error():
    schema = {}
    for _ in range(900):
        schema = {"properties": schema}
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: .*(nested too deeply|recursion)"):
        read({"messages": HI, "tools": [schema]}, template=QWEN)
    nested = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(DataError, match=r"rows.jsonl, line 3"):
        read({"messages": [QUESTION, {**ANSWER, "x": nested}]}, template="{{ messages | tojson }}")


GLM = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def test_a_turn_that_ends_with_the_next_role_is_trained_with_it_where_that_is_asked_for():
    ends = ("<|user|>", "<|observation|>", "<|endoftext|>")
    row = {"messages": [*HI, {"role": "user", "content": "Bye"}, {**ANSWER, "content": "Ciao"}]}
    asked = {"template": GLM, "end_tokens": ends, "end_tokens_named": True}
    opening = "[gMASK]<sop><|user|>\nHi<|assistant|>\n"
    assert shown(row, **asked) == (f"{opening}⟦Hello<|user|>⟧\nBye<|assistant|>\n⟦Ciao⟧")
    rendered = read(row, **asked)
    assert (rendered.turns, rendered.ended) == (2, 1)
    assert shown(row, **{**asked, "end_tokens_named": False}) == (
        f"{opening}⟦Hello⟧<|user|>\nBye<|assistant|>\n⟦Ciao⟧"
    )
    assert shown(row, **asked, train_on_eot="none") == (
        f"{opening}⟦Hello⟧<|user|>\nBye<|assistant|>\n⟦Ciao⟧"
    )


def test_nulls_that_a_table_put_into_arguments_are_left_out():
    row = called({"a": 1, "b": None, "c": {"d": None, "e": [None, {"f": None}]}})
    whole = '"arguments": {"a": 1, "b": null, "c": {"d": null, "e": [null, {"f": null}]}}'
    assert whole in shown(row, template=QWEN)
    assert '"arguments": {"a": 1, "c": {"e": [null, {}]}}' in shown(TableRow(row), template=QWEN)
    text = TableRow(called('{"a": null}'))
    assert '"arguments": {"a": null}' in shown(text, template=QWEN)


def test_parquet_gives_calls_no_arguments_of_other_calls(tmp_path):
    rows = [called({"a": 1}), called({"b": "x"})]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = Source(str(tmp_path / "rows.parquet"), cache_folder=tmp_path)
    first, second = (
        shown(entry.row, template=QWEN) for chunk in open_source(source).chunks() for entry in chunk
    )
    assert '"arguments": {"a": 1}}' in first
    assert '"arguments": {"b": "x"}}' in second


def test_weights_of_messages_may_be_numbers():
    turns = [QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1}]
    text = shown({"messages": turns}, field_training="weight")
    assert text == f"{U}Hi{E}\n{A}Hello{E}\n{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    with pytest.raises(DataError, match="`weight` must be true or false, got 2"):
        read({"messages": [QUESTION, {**ANSWER, "weight": 2}]}, field_training="weight")


def test_a_system_column_beside_a_system_turn():
    system = {"role": "system", "content": "Be kind."}
    opening = "<|im_start|>system\nBe kind.<|im_end|>\n"
    row = {"messages": [system, *HI], "system": "Be kind. "}
    assert shown(row).startswith(opening)
    other = {**row, "system": "Be brief."}
    with pytest.raises(DataError, match="`system` and the system turn differ"):
        read(other)
    assert shown(other, field_system="none").startswith(opening)
    assert shown(other, drop_system_message=True).startswith(U)
    with pytest.raises(DataError, match="`system` must be text, got list"):
        read({"messages": HI, "system": ["Be kind."]})


def test_a_role_of_another_case_is_named_with_what_it_may_mean():
    with pytest.raises(DataError, match=r"unknown role `User`.*`roles: \{user: \[User\]\}`"):
        read({"messages": [{**QUESTION, "role": "User"}]})
