"""Every key of conversations: what it changes in the text, and which text is then trained."""

import pytest

from newtune.data.formats import Drop
from newtune.data.template_choice import shipped_templates
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.types import IGNORE_INDEX
from talks import CHATML, HI, MORE, QWEN, SYSTEM, TOOL, A, E, S, U, called, read, shown
from tiny import tiny_tokenizer


def test_many_turns_in_exact_tokens():
    tokenizer = tiny_tokenizer()
    batch = TextEncoder.from_tokenizer(tokenizer).encode([read({"messages": MORE})])
    assert tokenizer.decode(batch.input_ids) == (f"{U}Hi{E}\n{A}Hello{E}\n{U}Bye{E}\n{A}Ciao{E}\n")
    ids = [token for word in ("Hello", "Ciao") for token in tokenizer(word + E).input_ids]
    assert batch.labels[batch.labels != IGNORE_INDEX].tolist() == ids


def test_field_messages_and_json_text():
    expected = f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    assert shown({"talk": HI}, field_messages="talk") == expected
    text = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
    assert shown({"messages": text}) == expected
    with pytest.raises(DataError, match="line 3: no field `talk`; the row has `messages`"):
        read({"messages": HI}, field_messages="talk")


def test_message_property_mappings():
    row = {"messages": [{"who": "user", "says": "Hi"}, {"who": "gpt", "says": "Hello"}]}
    mapped = {"role": "who", "content": "says"}
    assert shown(row, properties=mapped) == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    with pytest.raises(DataError, match="turn 1: no `role`; the turn has `who`, `says`"):
        read(row)


def test_roles():
    row = {"messages": [{"role": "q", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]}
    named = {"user": ("q",), "assistant": ("gpt",)}
    assert shown(row, roles=named) == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    with pytest.raises(DataError, match=r"line 3, turn 1: unknown role `q`;.*known: assistant,"):
        read(row)
    with pytest.raises(DataError, match="unknown role `asistant`; did you mean `assistant`"):
        read({"messages": [{"role": "asistant", "content": "x"}]})


def test_roles_to_train():
    row = {"messages": [SYSTEM, *HI]}
    assert shown(row, roles_to_train=("user",)) == (f"{S}Be kind.{E}\n{U}⟦Hi{E}⟧\n{A}Hello{E}\n")
    assert shown(row, roles_to_train=()) == f"{S}Be kind.{E}\n{U}Hi{E}\n{A}Hello{E}\n"
    with pytest.raises(DataError, match="`roles_to_train`: no role `asistant`; did you mean"):
        read(row, roles_to_train=("asistant",))


def test_train_on_inputs_goes_before_roles_to_train():
    row = {"messages": [SYSTEM, *HI]}
    assert shown(row, train_on_inputs=True) == (f"{S}⟦Be kind.{E}⟧\n{U}⟦Hi{E}⟧\n{A}⟦Hello{E}⟧\n")


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("turn", f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n{U}Bye{E}\n{A}⟦Ciao{E}⟧\n"),
        ("all", f"{U}Hi⟦{E}⟧\n{A}⟦Hello{E}⟧\n{U}Bye⟦{E}⟧\n{A}⟦Ciao{E}⟧\n"),
        ("last", f"{U}Hi{E}\n{A}⟦Hello⟧{E}\n{U}Bye{E}\n{A}⟦Ciao{E}⟧\n"),
        ("none", f"{U}Hi{E}\n{A}⟦Hello⟧{E}\n{U}Bye{E}\n{A}⟦Ciao⟧{E}\n"),
    ],
)
def test_train_on_eot_and_train_on_eos(wish, expected):
    assert shown({"messages": MORE}, train_on_eot=wish) == expected
    as_eos = CHATML.replace("'<|im_end|>\\n'", "eos_token + '\\n'")
    with_eos = shown({"messages": MORE}, template=as_eos, train_on_eos=wish)
    assert with_eos == expected.replace(E, "</s>")


def test_eot_tokens():
    template = CHATML.replace("<|im_end|>", "<stop><|im_end|>")
    row = {"messages": HI}
    both = shown(row, template=template)
    assert both == f"{U}Hi<stop>{E}\n{A}⟦Hello<stop>{E}⟧\n"
    only = shown(row, template=template, end_tokens=("<stop>",), train_on_eot="all")
    assert only == f"{U}Hi⟦<stop>⟧{E}\n{A}⟦Hello<stop>⟧{E}\n"


def test_eot_tokens_that_the_template_never_writes_are_refused():
    named = {"end_tokens": ("<|nope|>", "</s>"), "end_tokens_named": True}
    with pytest.raises(DataError, match=r"`eot_tokens`: the chat template writes none of <\|nope"):
        shown({"messages": HI}, **named)
    assert shown({"messages": HI}, **{**named, "end_tokens": ("<|nope|>", E)}) == (
        f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    )
    made_up = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    shown({"messages": HI}, template=made_up, end_tokens=("<|user|>",), end_tokens_named=True)


def test_message_field_training():
    talk = [HI[0], {**HI[1], "train": False}, {**MORE[2], "train": True}, MORE[3]]
    assert shown({"messages": talk}, field_training="train") == (
        f"{U}Hi{E}\n{A}Hello{E}\n{U}⟦Bye{E}⟧\n{A}⟦Ciao{E}⟧\n"
    )
    with pytest.raises(DataError, match="turn 1: `train` must be true or false, got 'no'"):
        read({"messages": [{**HI[0], "train": "no"}]}, field_training="train")


def detail(*ranges: tuple[int, int, bool]) -> dict:
    listed = [{"begin_offset": b, "end_offset": e, "train": t} for b, e, t in ranges]
    return {"messages": [HI[0], {**HI[1], "detail": listed}]}


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0, 0, True)], f"⟦H⟧ello⟦{E}⟧"),
        ([(1, 3, True), (4, 4, False)], f"H⟦ell⟧o⟦{E}⟧"),
        ([(0, 2, True), (1, 4, True)], f"⟦Hello{E}⟧"),
        ([(0, 4, False)], f"Hello{E}"),
    ],
)
def test_message_field_training_detail(ranges, expected):
    text = shown(detail(*ranges), field_training_detail="detail")
    assert text == f"{U}Hi{E}\n{A}{expected}\n"


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 5, True)], r"characters 0 to 5 \(inclusive\) are not in the content, which has 5"),
        ([(-1, 2, True)], "characters -1 to 2"),
        ([(3, 2, True)], "characters 3 to 2"),
        ([(0, 2, True), (2, 3, False)], "overlap, and one is trained and one is not"),
        ([(0, 1.5, True)], r"`end_offset` \(whole numbers"),
        ([(0, 1, "yes")], r"`train` \(true or false\)"),
    ],
)
def test_wrong_ranges_are_errors_with_row_and_turn(ranges, message):
    with pytest.raises(DataError, match=f"line 3, turn 2: `detail`: .*{message}"):
        read(detail(*ranges), field_training_detail="detail")


def test_a_template_that_moves_characters_cannot_train_ranges():
    template = CHATML.replace("message['content']", "message['content'] | wordwrap(3)")
    with pytest.raises(DataError, match="turn 2: has ranges of characters, but the chat template"):
        read(detail((0, 1, True)), template=template, field_training_detail="detail")


def test_field_system_drop_system_message_and_default_system_message():
    row = {"messages": HI, "rules": "Be kind."}
    without = f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    assert shown(row, field_system="rules") == f"{S}Be kind.{E}\n{without}"
    assert shown(row) == without
    assert shown(row, default_system_message="D") == f"{S}D{E}\n{without}"
    both = shown(row, field_system="rules", default_system_message="D")
    assert both == f"{S}Be kind.{E}\n{without}"
    assert shown({"messages": [SYSTEM, *HI]}, drop_system_message=True) == without
    assert shown(row, field_system="rules", drop_system_message=True) == without
    assert isinstance(read({"messages": [SYSTEM]}, drop_system_message=True), Drop)


def test_chat_template_kwargs():
    row = {"messages": HI}
    template = "{{ mood }}" + CHATML
    assert shown(row, template=template, variables={"mood": "calm"}).startswith("calm<|im_start|>")
    qwen3 = shipped_templates()["qwen3"]
    assert f"{A}⟦<think>\n\n</think>\n\nHello" in shown(row, template=qwen3)
    silent = shown(row, template=qwen3, variables={"enable_thinking": False})
    assert f"{A}<think>\n\n</think>\n\n⟦Hello" in silent


THINKER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.thought %}"
    "{{ '<think>' + m.thought + '</think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_field_thinking_and_template_thinking_key():
    row = {"messages": [HI[0], {**HI[1], "why": "Greet."}]}
    asked = {"template": THINKER, "field_thinking": "why", "thinking_key": "thought"}
    assert shown(row, **asked) == f"{U}Hi{E}\n{A}⟦<think>Greet.</think>Hello{E}⟧\n"
    with pytest.raises(DataError, match="turn 2: has reasoning, which the chat template never wr"):
        shown(row, template=THINKER, field_thinking="why")
    assert shown(row, template=THINKER, thinking_key="thought") == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"


@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning"])
def test_split_thinking(tag):
    content = f"<{tag}>\nGreet.\n</{tag}>\n\nHello"
    row = {"messages": [HI[0], {**HI[1], "content": content}]}
    apart = shown(row, template=THINKER, thinking_key="thought", split_thinking=True)
    assert apart == f"{U}Hi{E}\n{A}⟦<think>Greet.</think>Hello{E}⟧\n"
    assert shown(row, template=THINKER) == f"{U}Hi{E}\n{A}⟦{content}{E}⟧\n"


def test_content_may_be_parts_of_text():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert shown({"messages": [HI[0], {**HI[1], "content": parts}]}) == (
        f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
    )
    picture = [{"type": "image", "url": "x"}]
    with pytest.raises(DataError, match="turn 1: a part of the content is `image`; newtune reads"):
        read({"messages": [{"role": "user", "content": picture}]})


@pytest.mark.parametrize("arguments", [{"a": 1, "b": "x\ny"}, '{"a": 1, "b": "x\\ny"}'])
def test_tool_calls_with_arguments_as_mapping_or_json(arguments):
    text = shown(called(arguments, id=None), template=QWEN)
    assert text == (
        f"{U}Hi{E}\n{A}⟦<tool_call>\n"
        '{"name": "add", "arguments": {"a": 1, "b": "x\\ny"}}\n'
        f"</tool_call>{E}⟧\n{U}<tool_response>\n2\n</tool_response>{E}\n{A}⟦Hello{E}⟧\n"
    )


def test_templates_that_write_arguments_as_text_get_text():
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '@' + c.function.name + c.function.arguments }}"
        "{{ c.function.arguments }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    assert f'⟦@add{{"a": 1}}{{"a": 1}}{E}⟧' in shown(called({"a": 1}), template=template)
    assert f'⟦@add{{"a":1}}{{"a":1}}{E}⟧' in shown(called('{"a":1}'), template=template)
    assert f"⟦@addnonenone{E}⟧" in shown(called("none"), template=template)


def test_reading_a_row_leaves_it_as_it_was():
    row = called('{"a": 1}')
    read(row, template=QWEN)
    assert row == called('{"a": 1}')


def test_tool_calls_that_the_template_leaves_out_are_an_error():
    with pytest.raises(DataError, match=r"turn 2 \(assistant\): not in the text .*its tool calls"):
        read(called({"a": 1}))


def test_field_tools():
    text = shown({"messages": HI, "functions": [TOOL]}, template=QWEN, field_tools="functions")
    assert '<tools>\n{"type": "function", "function": {"name": "add"' in text
    assert "<tools>" not in shown({"messages": HI, "functions": [TOOL]}, template=QWEN)
    for given in ('[{"name": "add"}]', ['{"name": "add"}'], [{"name": "add", "strict": None}]):
        row = {"messages": HI, "tools": given}
        assert '<tools>\n{"name": "add"}\n</tools>' in shown(row, template=QWEN)
    with pytest.raises(DataError, match="line 3: a tool in `tools` is text, but not JSON"):
        read({"messages": HI, "tools": ["add"]}, template=QWEN)


def talk(role: str, content: str, user: str, assistant: str) -> dict:
    turns = [{role: user, content: "Hi"}, {role: assistant, content: "Hello"}]
    return {"conversations": turns}


SHAREGPT = [
    ("sharegpt", talk("from", "value", "human", "gpt")),
    ("sharegpt.load_role", talk("role", "value", "human", "gpt")),
    ("sharegpt.load_guanaco", talk("role", "text", "prompter", "assistant")),
    ("sharegpt.load_ultrachat", {"messages": HI}),
    (
        "sharegpt.load_glaive",
        {"system": "", "chat": "USER: Hi\n\n\nASSISTANT: Hello <|endoftext|>\n"},
    ),
    ("pygmalion", talk("role", "value", "human", "bot")),
    ("pygmalion.load", talk("role", "value", "human", "bot")),
    ("chat_template.default", {"messages": HI}),
    ("chat_template.load", {"messages": HI}),
]


@pytest.mark.parametrize(("type_", "row"), SHAREGPT)
def test_relatives_of_chat_template(type_, row):
    assert shown(row, type_=type_) == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"


def test_glaive_with_a_function():
    row = {
        "system": "SYSTEM: Help.",
        "chat": "USER: 1+1?\n\n\nASSISTANT: <functioncall> add <|endoftext|>\n\n\n"
        "FUNCTION RESPONSE: 2\n\n\nASSISTANT: Two. <|endoftext|>\n",
    }
    assert shown(row, type_="sharegpt.load_glaive") == (
        f"{S}Help.{E}\n{U}1+1?{E}\n{A}⟦<functioncall> add{E}⟧\n"
        f"<|im_start|>tool\n2{E}\n{A}⟦Two.{E}⟧\n"
    )
    with pytest.raises(DataError, match="line 3: `chat` must start with `USER: `"):
        read({"system": "", "chat": "Hi"}, type_="sharegpt.load_glaive")
