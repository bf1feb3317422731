"""What each format makes of a row: the text, and which of it is trained."""

import sys
from types import ModuleType

import pytest

from newtune.data.formats import FORMATS, Drop, FormatOptions, PromptMapping, Tokens, make_format
from newtune.data.rendered import Rendered
from newtune.data.sources import NumberedRow
from newtune.data.template_choice import shipped_templates
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

CHATML = ChatTemplate(shipped_templates()["chatml"])


def chat(**values) -> FormatOptions:
    return FormatOptions(template=CHATML, end_tokens=("<|im_end|>",), **values)


def outcome(type_, row: dict, options: FormatOptions | None = None):
    read = make_format(type_, options or FormatOptions()).read
    return read(NumberedRow(3, row, "rows.jsonl, line 3"))


def split(rendered: Rendered) -> list[tuple[str, bool]]:
    """Return the text in pieces: (text, trained)."""
    pieces, position = [], 0
    for span in rendered.spans:
        pieces.append((rendered.text[position : span.start], False))
        pieces.append((rendered.text[span.start : span.end], True))
        position = span.end
    return [piece for piece in [*pieces, (rendered.text[position:], False)] if piece[0]]


QA = {"instruction": "Add {input}", "input": "1 and 2", "output": "3"}


def test_alpaca_with_and_without_input():
    assert split(outcome("alpaca", QA)) == [
        (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd {input}\n\n### Input:\n1 and 2\n\n### Response:\n",
            False,
        ),
        ("3", True),
    ]
    for row in ({**QA, "input": ""}, {**QA, "input": None}, {"instruction": "x", "output": "3"}):
        prompt = split(outcome("alpaca", row))[0][0]
        assert "### Input" not in prompt
        assert "paired with" not in prompt


def test_an_instruction_row_opens_with_bos_and_ends_with_a_trained_eos():
    rendered = outcome("alpaca", QA)
    assert (rendered.bos, rendered.eos) == (True, "trained")


def test_train_on_inputs_trains_everything():
    rendered = outcome("alpaca", QA, FormatOptions(train_on_inputs=True))
    assert [trained for _, trained in split(rendered)] == [True]


def test_a_mapping_fills_its_own_formats():
    mapping = PromptMapping(
        system_prompt="Be kind.",
        system_format="[{system}]\n",
        field_instruction="q",
        field_input="ctx",
        field_output="a",
        format="User: {instruction} {input}\nAssistant: ",
        no_input_format="User: {instruction}\nAssistant: ",
    )
    row = {"q": "Why?", "ctx": "Here", "a": "So."}
    assert split(outcome(mapping, row)) == [
        ("[Be kind.]\nUser: Why? Here\nAssistant: ", False),
        ("So.", True),
    ]
    own = {"q": "Why?", "a": "So.", "system": "Be short."}
    assert split(outcome(mapping, own))[0][0] == "[Be short.]\nUser: Why?\nAssistant: "


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (PromptMapping(format="{question}"), r"`format` uses `\{question\}`; it may use"),
        (PromptMapping(no_input_format="{input}"), r"`no_input_format` uses `\{input\}`"),
        (PromptMapping(system_format="{x}"), r"`system_format` uses `\{x\}`"),
    ],
)
def test_a_mapping_with_an_unknown_slot_is_refused(mapping, message):
    with pytest.raises(DataError, match=message):
        make_format(mapping, FormatOptions())


def test_raw_text_is_trained_whole_and_cut():
    assert make_format("completion", FormatOptions()).cut
    rendered = outcome("completion", {"body": "All of it."}, FormatOptions(text_field="body"))
    assert (split(rendered), rendered.bos, rendered.eos) == (
        [("All of it.", True)],
        True,
        "trained",
    )


def test_segments_are_exact_and_labelled():
    row = {"segments": [{"text": "<s>a", "label": False}, {"text": " b ", "label": True}]}
    rendered = outcome("input_output", row)
    assert (split(rendered), rendered.bos, rendered.eos) == (
        [("<s>a", False), (" b ", True)],
        False,
        "none",
    )


def test_tokens_pass_as_they_are_without_padding():
    row = {"input_ids": [5, 6, 0], "labels": [-100, 6, 0], "attention_mask": [1, 1, 0]}
    assert outcome(None, row) == Tokens([5, 6], [-100, 6])
    assert outcome(None, {"input_ids": [5, 6]}) == Tokens([5, 6], [5, 6])
    with pytest.raises(DataError, match=r"holds 6, and the tokenizer.s ids are 0 to 5"):
        outcome(None, {"input_ids": [5, 6]}, FormatOptions(vocabulary=6))


def test_sharegpt_is_a_conversation_under_other_names():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert split(outcome("sharegpt", row, chat())) == [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Ho<|im_end|>", True),
        ("\n", False),
    ]


HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_messages_may_be_json_text_and_a_system_column_comes_first():
    row = {"messages": '[{"role": "user", "content": "Hi"}]', "system": "S", "tools": None}
    text = outcome("chat_template", row, chat()).text
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi")


def test_null_fields_of_messages_are_absent():
    messages = [{**message, "tool_calls": None, "name": None} for message in HI]
    template = ChatTemplate(
        "{% for m in messages %}{{ m.tool_calls is defined }}{{ m.content }}{% endfor %}"
    )
    assert outcome(
        "chat_template", {"messages": messages}, FormatOptions(template=template)
    ).text == ("FalseHiFalseHo")


def test_flag_goes_before_ranges_and_ranges_before_roles():
    def trained(message: dict) -> list[str]:
        row = {"messages": [HI[0], {**HI[1], **message}]}
        options = chat(field_training="train", field_training_detail="detail")
        return [
            text for text, is_trained in split(outcome("chat_template", row, options)) if is_trained
        ]

    detail = [{"begin_offset": 1, "end_offset": 1, "train": True}]
    assert trained({}) == ["Ho<|im_end|>"]
    assert trained({"train": False, "detail": detail}) == []
    assert trained({"detail": detail}) == ["o<|im_end|>"]
    assert trained({"train": True, "detail": detail}) == ["Ho<|im_end|>"]


def test_roles_to_train_and_dropping_the_system_turn():
    row = {"messages": [{"role": "system", "content": "S"}, *HI]}
    both = outcome("chat_template", row, chat(roles_to_train=("user",)))
    assert [text for text, trained in split(both) if trained] == ["Hi<|im_end|>"]
    assert "S" not in outcome("chat_template", row, chat(drop_system_message=True)).text


def test_thinking_is_split_off_for_the_template():
    options = FormatOptions(
        template=ChatTemplate(
            "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
        ),
        split_thinking=True,
    )
    row = {"messages": [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nso"}]}
    assert outcome("chat_template", row, options).text == "hm|so"


def test_a_function_of_the_users_own(monkeypatch):
    module = ModuleType("my.rows")
    module.to_chat = lambda row: {"messages": HI} if row["keep"] else None
    monkeypatch.setitem(sys.modules, "my", ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.rows", module)
    assert "Ho" in outcome("my.rows:to_chat", {"keep": True}, chat()).text
    assert isinstance(outcome("my.rows:to_chat", {"keep": False}, chat()), Drop)
    with pytest.raises(DataError, match="no function `other`"):
        make_format("my.rows:other", chat())
    with pytest.raises(DataError, match="no module"):
        make_format("no_such.module:f", chat())


EMPTY = [
    ("alpaca", {**QA, "output": None}),
    ("completion", {"text": ""}),
    ("completion", {"text": None}),
    ("chat_template", {"messages": []}),
    ("chat_template", {"messages": None}),
    ("input_output", {"segments": []}),
    (None, {"input_ids": [], "labels": []}),
]


@pytest.mark.parametrize(("type_", "row"), EMPTY)
def test_a_row_without_content_is_dropped_with_the_reason(type_, row):
    result = outcome(type_, row, chat())
    assert isinstance(result, Drop)
    assert "empty" in result.reason


WRONG = [
    ("alpaca", {"instruction": "x"}, r"line 3: no field `output`; the row has `instruction`"),
    ("alpaca", {**QA, "output": ["3"]}, r"`output` must be text, got list"),
    ("completion", {"texts": "x"}, r"no field `text`; the row has `texts`"),
    ("input_output", {"segments": "x"}, r"`segments` must be a list"),
    ("input_output", {"segments": [{"text": "x"}]}, r"label` must be true or false"),
    (None, {"input_ids": "x"}, r"`input_ids` must be a list of integers"),
    (None, {"input_ids": [1], "labels": [1, 2]}, r"must be as many"),
    (None, {"input_ids": [1, -5]}, r"`input_ids` holds -5, and the tokenizer's ids are 0 to"),
    (None, {"input_ids": [2**40]}, r"`input_ids` holds 1099511627776"),
    (None, {"text": "Hi"}, r"no field `input_ids`; the row has `text`. Rows of tokens are what is"),
    (None, {"input_ids": [1, 2], "labels": [2, -100]}, r"label 2 at position 0"),
    ("chat_template", {"text": "x"}, r"no field `messages`"),
    ("chat_template", {"messages": "x"}, r"is text, but not JSON"),
    ("chat_template", {"messages": {"role": "user"}}, r"must be a list, got dict"),
    ("chat_template", {"messages": ["x"]}, r"turn 1: must be an object"),
    (
        "chat_template",
        {"messages": [{"content": "x"}]},
        r"turn 1: no `role`; the turn has `content`",
    ),
    ("chat_template", {"messages": [{**HI[0], "content": {}}]}, r"content must be text, got dict"),
]


@pytest.mark.parametrize(("type_", "row", "message"), WRONG)
def test_a_wrong_row_is_an_error_with_row_and_field(type_, row, message):
    with pytest.raises(DataError, match=message):
        outcome(type_, row, chat())


def test_an_unknown_format_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="did you mean `alpaca`"):
        make_format("alpca", FormatOptions())
    assert "alpaca_chat.load_qa" in FORMATS


def test_a_conversation_needs_a_template():
    with pytest.raises(DataError, match=r"no chat template. Set `chat_template`"):
        make_format("chat_template", FormatOptions())
