"""Turns and their trained characters in templates of every shape, checked by hand."""

import pytest

from newtune.data.chat import ChatRenderer, Conversation, Detail, Turn
from newtune.data.template_choice import choose_template, shipped_templates
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

CHATML = shipped_templates()["chatml"]
END = ("<|im_end|>", "</s>")


def say(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


def trained_parts(
    template: str,
    messages: list[dict],
    *,
    tools=None,
    end_tokens=END,
    train=("assistant",),
    **options,
) -> list[str]:
    """Return the trained pieces of text."""
    renderer = ChatRenderer(
        ChatTemplate(template, tokens={"bos_token": "<s>", "eos_token": "</s>"}),
        end_tokens=end_tokens,
        eos_token="</s>",
        **options,
    )
    turns = [Turn(message, message["role"] in train) for message in messages]
    rendered = renderer.render(Conversation(turns, tools), "rows.jsonl, line 7")
    return [rendered.text[span.start : span.end] for span in rendered.spans]


TALK = say(("user", "yes"), ("assistant", "yes"), ("user", "no"), ("assistant", " no "))


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        (
            "no generation prompt",
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}",
            ["yes<|im_end|>", " no <|im_end|>"],
        ),
        (
            "positions instead of messages",
            "{% for i in range(messages | length) %}<|im_start|>{{ messages[i].role }}\n"
            "{{ messages[i]['content'] }}<|im_end|>\n{% endfor %}",
            ["yes<|im_end|>", " no <|im_end|>"],
        ),
        (
            "a macro writes the turn",
            "{% macro turn(m) %}[{{ m.role }}] {{ m.content | trim }}</s>{% endmacro %}"
            "{% for m in messages %}{{ turn(m) }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}",
            ["yes</s>", "no</s>"],
        ),
        (
            "caught in a block, joined, replaced, cut",
            "{% for m in messages %}{% set text %}"
            "{{ ['<', m.content[:9], '>'] | join }}{% endset %}"
            "{{ m.role ~ ':' ~ text.replace('<', '(').replace('>', ')') ~ '</s>' }}{% endfor %}",
            ["yes)</s>", " no )</s>"],
        ),
        (
            "messages made anew",
            "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + "
            "[{'role': m.role, 'content': m.content | trim}] %}{% endfor %}"
            "{% for m in ns.all %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            ["yes</s>", "no</s>"],
        ),
        (
            "the end is text, not a token",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}#END#\n\n{% endfor %}",
            ["yes#END#", " no #END#"],
        ),
        (
            "one end after the last turn only",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}",
            ["yes", " no \n</s>"],
        ),
        (
            "a generation mark that leaves the end out",
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}"
            "{% endgeneration %}<|im_end|>\n{% endfor %}",
            ["yes<|im_end|>", " no <|im_end|>"],
        ),
    ],
)
def test_a_turn_is_found_however_the_template_is_written(name, template, expected):
    assert trained_parts(template, TALK) == expected


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("turn", ["yes<|im_end|>", " no <|im_end|>"]),
        ("all", ["<|im_end|>", "yes<|im_end|>", "<|im_end|>", " no <|im_end|>"]),
        ("last", ["yes", " no <|im_end|>"]),
        ("none", ["yes", " no "]),
    ],
)
def test_which_ends_are_trained(wish, expected):
    assert trained_parts(CHATML, TALK, train_on_eot=wish) == expected


def test_eos_and_other_ends_are_chosen_apart():
    zephyr = shipped_templates()["zephyr"]
    assert trained_parts(zephyr, TALK, train_on_eot="none")[0] == "yes</s>"
    assert trained_parts(zephyr, TALK, train_on_eos="none")[0] == "yes"


def test_tool_calls_are_trained_whole_and_tool_answers_not():
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        *say(("user", "1+1?")),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        *say(("tool", "2"), ("assistant", "Two.")),
    ]
    assert trained_parts(shipped_templates()["qwen_25"], messages, tools=[{"name": "add"}]) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "Two.<|im_end|>",
    ]


def test_reasoning_is_trained_where_the_template_writes_it():
    thought = {"reasoning_content": "Hm."}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **thought},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", **thought},
    ]
    assert trained_parts(shipped_templates()["qwen3"], messages) == [
        "b<|im_end|>",
        "<think>\nHm.\n</think>\n\nd<|im_end|>",
    ]


def test_what_another_turn_writes_inside_is_not_trained():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }} "
        "{% if not loop.last %}<tool>{{ messages[loop.index].content }}</tool>{% endif %}</s>"
        "{% endif %}{% endfor %}"
    )
    messages = say(("assistant", "look"), ("tool", "42"))
    assert trained_parts(template, messages) == ["look <tool>", "</tool></s>"]


def test_characters_can_be_chosen():
    message = {"role": "assistant", "content": "  right wrong"}
    turns = [
        Turn({"role": "user", "content": "?"}, False),
        Turn(message, False, (Detail(2, 7, True), Detail(7, 13, False))),
    ]
    template = CHATML.replace("message['content']", "message['content'] | trim")
    renderer = ChatRenderer(ChatTemplate(template), end_tokens=END)
    rendered = renderer.render(Conversation(turns), "row 1")
    parts = [rendered.text[span.start : span.end] for span in rendered.spans]
    assert parts == ["right", "<|im_end|>"]


def test_a_turn_that_is_not_written_is_an_error_with_row_turn_and_text():
    template = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"line 7, turn 1 \(system\).*'Be kind'.*drop_system"):
        trained_parts(template, say(("system", "Be kind"), ("user", "x"), ("assistant", "y")))


def test_a_content_that_went_through_json_is_found_again():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}</s>{% endfor %}"
    assert trained_parts(template, say(("user", "a"), ("assistant", 'say "b"'))) == [
        'say \\"b\\""</s>'
    ]


def test_a_template_that_refuses_or_fails_is_an_error_with_the_row():
    for template in ("{{ raise_exception('no') }}", "{{ messages[9].content.x }}", "{{ 1 + 'a' }}"):
        with pytest.raises(DataError, match="line 7: the chat template failed"):
            trained_parts(template, TALK)
    with pytest.raises(DataError, match="not valid jinja: line 2"):
        ChatTemplate("\n{% if %}")


def test_templates_run_in_a_sandbox():
    with pytest.raises(DataError, match="the chat template failed"):
        trained_parts("{{ messages.__class__.__mro__[1].__subclasses__() }}", TALK)
    with pytest.raises(DataError, match="the chat template failed"):
        trained_parts("{{ messages.append(1) }}", TALK)


def test_a_template_is_chosen_by_name_text_or_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ 1 }}")
    assert choose_template("chatml", jinja=None, own="own") == CHATML
    assert choose_template(None, jinja=None, own="own") == "own"
    assert choose_template("tokenizer_default_fallback_chatml", jinja=None, own=None) == CHATML
    assert choose_template("jinja", jinja="mine.jinja", own=None, base_folder=tmp_path) == "{{ 1 }}"
    assert choose_template("jinja", jinja="{{ 2 }}", own=None) == "{{ 2 }}"
    with pytest.raises(DataError, match="did you mean `chatml`"):
        choose_template("chat_ml", jinja=None, own=None)
    with pytest.raises(DataError, match="has no chat template"):
        choose_template("tokenizer_default", jinja=None, own=None)


@pytest.mark.parametrize(
    "attempt",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' * (10 ** 9) }}",
        "{{ 2 ** (10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i, j in range(9999) | map('list') %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content[0][9].x.y }}",
    ],
)
def test_templates_run_in_a_sandbox_and_within_bounds(attempt):
    with pytest.raises(DataError, match=r"line 7: the chat template failed: .+"):
        trained_parts(attempt, TALK)


def test_a_template_that_drops_a_turn_is_not_fooled_by_the_same_text_elsewhere():
    template = (
        "{% for m in messages if not loop.first %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    )
    template = template.replace(" if not loop.first", "[1:]")
    with pytest.raises(DataError, match=r"turn 1 \(user\): not in the text .* its text 'yes'"):
        trained_parts(template, TALK[:2])


def test_a_text_that_is_also_in_a_heading_is_trained_where_the_answer_stands():
    template = "{{ messages[-1].content | upper }}\n" + CHATML
    assert trained_parts(template, TALK) == ["yes<|im_end|>", " no <|im_end|>"]


def test_an_answer_that_stands_twice_is_an_error():
    template = "{{ messages[1].content }} {{ messages[0].content }} {{ messages[1].content }}"
    with pytest.raises(DataError, match=r"turn 2 \(assistant\): .* writes its text 2 times"):
        trained_parts(template, say(("user", "a"), ("assistant", "b")))


def test_other_turns_inside_an_inner_loop_are_not_trained():
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'tool' %}"
        "{% for n in messages if n.role == 'assistant' %}({{ n.content }}){% endfor %}{% endif %}"
        "</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = say(("user", "a"), ("assistant", "b"), ("tool", "c"))
    assert trained_parts(template, messages) == ["b</s>"]


def test_tokens_that_open_a_turn_end_none():
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    end = ("<|im_start|>", "<|im_end|>")
    with_prompt = template + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    assert trained_parts(with_prompt, TALK, end_tokens=end) == ["yes", " no "]
