# ruff: noqa: E501  templates are easier to read whole
"""Templates whose calls, ends, tools or reasoning stand where plain answers tell nothing of them."""

import re

import pytest

from newtune.data.probes import ends_with_next_turn, shared_length, writes_reasoning
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError
from talks import HI, MORE, TOOL, A, E, U, called, read, shown

NEEDS_TOOLS = (
    "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% for call in m.tool_calls or [] %}"
    "{{ '<call>{\"name\": \"' + call.function.name + '\"}</call>' }}{% endfor %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_needs_tools_tells_where_its_answers_begin():
    row = {**called({}), "tools": [TOOL]}
    assert f'{A}⟦<call>{{"name": "add"}}</call>{E}⟧' in shown(row, template=NEEDS_TOOLS)
    with pytest.raises(DataError, match=r"'NoneType' .* \(the row offers no tools, which this"):
        read({"messages": HI}, template=NEEDS_TOOLS)


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<bot>' }}{% if m.tool_calls %}"
    "{{ '<act>[{\"name\": \"' + m.tool_calls[0].function.name + '\"}]' }}{% else %}"
    "{{ '<say>' + m.content }}{% endif %}{% else %}{{ '<' + m.role + '>' + m.content }}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<bot><think>{% endif %}"
)


def test_a_call_begins_where_it_parts_from_the_header_of_answers():
    assert shown(called({}), template=CHANNELS) == (
        f'<user>Hi{E}<bot>⟦<act>[{{"name": "add"}}]{E}⟧<tool>2{E}<bot><say>⟦Hello{E}⟧'
    )


@pytest.mark.parametrize(
    ("header", "text", "shared"),
    [
        ("<|bot|><|text|>", "<|bot|><|tool|>f", "<|bot|>"),
        ("<bot>\n<think>\n", "<bot>\nHi", "<bot>\n"),
        ("assistant: ", "assist: ", ""),
        ("[A][B]", "[A]B", "[A]"),
        ("<bot>", "<bot>", "<bot>"),
        ("<bot>", "[bot]", ""),
    ],
)
def test_a_shared_header_cuts_no_marker_and_no_word(header, text, shared):
    assert header[: shared_length(header, text)] == shared


WITHIN = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.tool_calls %}{{ '<call>' + m.tool_calls[0].function.name + '</call>' }}"
    "{% for k in range(loop.index0 + 1, messages | length) %}{% if messages[k].role == 'tool' %}"
    "{% set follow = messages[k] %}{{ '<result>' + follow.content + '</result>' }}"
    "{% endif %}{% endfor %}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_what_stands_around_a_tools_result_inside_an_answer_is_not_trained():
    row = called({})
    assert shown(row, template=WITHIN) == (
        f"{U}Hi{E}\n{A}⟦<call>add</call>⟧<result>2</result>⟦{E}⟧\n{A}⟦Hello{E}⟧\n"
    )
    in_a_loop = WITHIN.replace("range(loop.index0 + 1, messages | length)", "[2]")
    assert shown(row, template=in_a_loop) == shown(row, template=WITHIN)


LATE = (
    "{% set ns = namespace(open=false) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_end|>' if ns.open else '' }}{{ '<user>' + m.content }}{% set ns.open = false %}"
    "{% else %}{{ '<bot>' + m.content }}{% set ns.open = true %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def test_an_end_that_is_written_when_the_next_question_comes_is_trained():
    row = {"messages": MORE}
    assert shown(row, template=LATE) == f"<user>Hi<bot>⟦Hello{E}⟧<user>Bye<bot>⟦Ciao⟧"
    assert shown(row, template=LATE, train_on_eot="none") == (
        f"<user>Hi<bot>⟦Hello⟧{E}<user>Bye<bot>⟦Ciao⟧"
    )


def test_a_token_that_opens_every_question_is_no_late_end():
    opens = "{{ '<s>' }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    first_only = opens.replace("{{ '<s>' }}", "").replace(
        "{{ '<|'", "{{ '<s>' if loop.first else '' }}{{ '<|'"
    )
    tokens = re.compile(r"<\|user\|>|<s>")
    for template in (opens, first_only):
        assert not ends_with_next_turn(ChatTemplate(template), tokens)
    assert ends_with_next_turn(ChatTemplate(LATE), re.compile(re.escape(E)))


FINAL_ONLY = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if loop.last and m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}{% endfor %}"
)
OF_CALLS = FINAL_ONLY.replace("loop.last and", "m.tool_calls and")
TOOLS_AS_JSON = "{{ tools | tojson if tools else '' }}" + FINAL_ONLY.replace("loop.last", "false")


@pytest.mark.parametrize(
    ("template", "writes"),
    [
        (FINAL_ONLY, True),
        (OF_CALLS, True),
        (TOOLS_AS_JSON, False),
        (FINAL_ONLY.replace("m.reasoning_content", "m.thinking"), True),
        ("{% for m in messages %}{{ m | tojson }}{% endfor %}", True),
        ("{# no reasoning_content #}{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{{ raise_exception('never') }} reasoning_content", True),
    ],
)
def test_whether_reasoning_is_written_is_seen_not_guessed(template, writes):
    assert writes_reasoning(ChatTemplate(template), "reasoning_content") is writes


def test_text_marked_safe_escapes_what_is_added_to_it_as_in_transformers():
    text = "{{ 'It is '|safe + tool | tojson }}"
    template = ChatTemplate(text, arguments={"tool": {"a": "b"}})
    assert template.render([]).text == "It is {&#34;a&#34;: &#34;b&#34;}"
