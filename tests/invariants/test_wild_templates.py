# ruff: noqa: E501  templates are easier to read whole
"""Masks hold for templates that the shipped ones do not resemble.

Two references. Templates below are written with `{% generation %}` marks, which transformers
follows; newtune gets them with the marks taken out. Where marks cannot stand (macros, captured
blocks, JSON), answers are made of characters that occur nowhere else.
"""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import masks
from masks import conversations, marked_mask, newtune_mask, renderer, without_marks
from newtune.data.chat import ChatRenderer, Conversation, Turn
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError
from newtune.types import IGNORE_INDEX

QWEN3 = (
    "{%- set ns = namespace(multi=true, last=messages | length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = (messages | length - 1) - loop.index0 %}"
    "{%- if ns.multi and m.role == 'user' and m.content is string "
    "and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{%- set ns.multi = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- else %}{%- set thought = '' %}{%- if m.reasoning_content is string %}"
    "{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}{%- generation %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- content }}{%- endif %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_3_1 = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b') if not date_string is defined else '' %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' + system "
    "+ '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{- m['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)
NEMO = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}"
    "{%- for m in turns %}{%- if m.role == 'user' %}{%- if system is defined and m == users[-1] %}"
    "{{- '[INST]' + system + '\\n\\n' + m.content + '[/INST]' }}{%- else %}"
    "{{- '[INST]' + m.content + '[/INST]' }}{%- endif %}{%- elif m.role == 'assistant' %}"
    "{% generation %}{{- m.content + eos_token }}{% endgeneration %}{%- else %}"
    "{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
GEMMA_3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '\\n\\n' -%}"
    "{%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}"
    "{%- endif -%}{%- for m in turns -%}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
    "{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}"
    "{%- if role == 'model' -%}{%- generation -%}{{ m['content'] | trim }}{{ '<end_of_turn>' }}"
    "{%- endgeneration -%}{{ '\\n' }}{%- else -%}{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
R1 = (
    "{% set ns = namespace(system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + m['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{ '<U>' + m['content'] }}{%- elif m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<A>' }}{% generation %}{{ content + eos_token }}{% endgeneration %}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}"
)
GPT_OSS = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|start|>assistant' }}"
    "{% generation %}{%- if m.thinking and loop.last %}"
    "{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{%- endif %}"
    "{{- '<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last else '<|end|>' }}{% endgeneration %}{%- else %}"
    "{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
PHI_4 = (
    "{% for m in messages %}{% if (m['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "m['content'] + '<|im_end|>'}}{% elif (m['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "m['content'] + '<|im_end|>'}}{% elif (m['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{m['content'] + '<|im_end|>'}}"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set preamble = messages[0]['content'] %}{% else %}{% set turns = messages %}"
    "{% set preamble = 'You are Command-R.' %}{% endif %}"
    "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + '## Task\\n' + preamble + '<|END_OF_TURN_TOKEN|>' }}"
    "{% for m in turns %}{% set content = m['content'] %}{% if m['role'] == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
    "{% generation %}{{ content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
MINI_CPM = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<用户>' + m.content.strip() + '<AI>' }}"
    "{% elif m.role == 'system' %}{{ m.content }}{% else %}{% generation %}{{ m.content.strip() + "
    "eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
INTERN_LM = (
    "{{ bos_token }}{% for m in messages %}{{'<|im_start|>' ~ m['role'] ~ '\\n'}}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m['content'] ~ '<|im_end|>' }}"
    "{% endgeneration %}{{ '\\n' }}{% else %}{{ m['content'] ~ '<|im_end|>' ~ '\\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
YI = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% endif %}"
    "{% if system is defined %}{{ system }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|im_start|>user\\n' + m['content'] + "
    "'<|im_end|>\\n<|im_start|>assistant\\n' }}{% elif m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% endif %}{% endfor %}"
)
PREVIOUS = (
    "{% for m in messages %}{% if loop.previtem is not defined or loop.previtem.role != m.role %}"
    "{{ '[' ~ m.role | upper ~ '] ' }}{% endif %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content.replace('\\r\\n', '\\n').replace('\\t', '    ') ~ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content | replace('\\t', ' ') | capitalize }}{% endif %}"
    "{{ '' if loop.nextitem is not defined else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n[ASSISTANT] ' }}{% endif %}"
)
POSITIONS = (
    "{% for i in range(messages | length) %}{{ '<|im_start|>' + messages[i].role + '\\n' }}"
    "{% if messages[i].role == 'assistant' %}{% generation %}"
    "{{ messages[i]['content'][:2] ~ messages[i]['content'][2:] ~ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ messages[i]['content'] ~ '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LINES = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{% for line in m.content.split('\\n') %}{{ line }}"
    "{{ '' if loop.last else '\\n' }}{% endfor %}{{ '<|end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content.split('\\n') | join('\\n') ~ '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
FORMATTED = (
    "{% for m in messages %}{{ '<|%s|>\\n' % m.role }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ '%s%s' % (m.content, '<|end|>') }}{% endgeneration %}{% else %}"
    "{{ '{}{}'.format(m.content, '<|end|>') }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if loop.first or loop.previtem.role != 'assistant' %}"
    "{{ '<|' ~ m.role ~ '|>' }}{% endif %}{{ '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% if not loop.last %}{{ '<|' ~ loop.nextitem.role ~ '|>' }}{% endif %}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""The same text as `GLM_PLAIN`: an answer ends with the token of the next role."""
GLM_PLAIN = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
WILD = {
    "qwen3": QWEN3,
    "llama 3.1": LLAMA_3_1,
    "mistral nemo": NEMO,
    "gemma 3": GEMMA_3,
    "deepseek r1": R1,
    "gpt-oss": GPT_OSS,
    "phi-4": PHI_4,
    "command r": COMMAND_R,
    "minicpm": MINI_CPM,
    "internlm": INTERN_LM,
    "yi": YI,
    "previous item": PREVIOUS,
    "positions": POSITIONS,
    "lines": LINES,
    "formatted": FORMATTED,
}


@pytest.mark.parametrize("name", WILD)
@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_the_mask_is_what_marks_would_say(name, messages):
    if name in ("deepseek r1", "qwen3"):  # an answer that is all thought is dropped: an error
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assume(all(a.split("</think>")[-1].strip() or not a.strip() for a in answers))
    ids, mask = newtune_mask(without_marks(WILD[name]), messages)
    marked_ids, marked = marked_mask(WILD[name], messages)
    assert ids == marked_ids
    assert mask == marked


@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_the_next_role_ends_a_turn_where_it_is_named_as_its_end(messages):
    messages = [*messages, {"role": "user", "content": "Bye"}]
    turns = [Turn(message, message["role"] == "assistant") for message in messages]
    chat = ChatRenderer(
        ChatTemplate(GLM_PLAIN),
        end_tokens=("<|user|>", "<|observation|>", "</s>"),
        eos_token="</s>",
        ends_at_next_turn=True,
    )
    rendered = chat.render(Conversation(turns), "row 1")
    marked = masks.tokenizer().apply_chat_template(
        messages,
        chat_template=GLM,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    batch = masks.encoder().encode([rendered])
    assert batch.input_ids.tolist() == marked["input_ids"]
    assert (batch.labels != IGNORE_INDEX).astype(int).tolist() == marked["assistant_masks"]


@given(messages=conversations(), thought=st.text(min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", ["qwen3", "gpt-oss"])
def test_reasoning_is_trained_where_it_is_written(name, messages, thought):
    key = "reasoning_content" if name == "qwen3" else "thinking"
    messages = [{**m, key: thought} if m["role"] == "assistant" else m for m in messages]
    ids, mask = newtune_mask(without_marks(WILD[name]), messages)
    marked_ids, marked = marked_mask(WILD[name], messages)
    assert ids == marked_ids
    assert mask == marked


UNMARKABLE = {
    "macros": "{% macro head(m) %}[{{ m.role }}]{% endmacro %}{% macro turn(m) %}{{ head(m) }}"
    "{{ m.content }}{{ eos_token }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "captured": "{% for m in messages %}{% set body %}{{ m.content }}{{ eos_token }}{% endset %}"
    "{{ '[' ~ m.role ~ ']' ~ body }}{% endfor %}",
    "all captured": "{% set all %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% endset %}{{ all | trim }}",
    "filtered block": "{% filter trim %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{{ eos_token }}{% endfor %}{% endfilter %}",
    "collected": "{% set ns = namespace(parts=[]) %}{% for m in messages %}{% set ns.parts = ns.parts "
    "+ ['[' ~ m.role ~ ']', m.content, eos_token] %}{% endfor %}{{ ns.parts | join }}",
    "rebuilt": "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + "
    "[dict(role=m.role, content=m.content)] %}{% endfor %}{% for m in ns.all %}[{{ m.role }}]"
    "{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "characters": "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}{{ c }}{% endfor %}"
    "{{ eos_token }}{% endfor %}",
    "json": "{% for m in messages %}[{{ m.role }}]{{ {'c': m.content} | tojson }}{{ eos_token }}"
    "{% endfor %}",
    "items": "{% for m in messages %}{% for key, value in m.items() %}{{ '[' ~ value ~ ']' if key == "
    "'role' else value }}{% endfor %}{{ eos_token }}{% endfor %}",
    "blurred": "{% for m in messages %}[{{ m.role }}]{{ m.content | wordwrap(3) }}{{ eos_token }}"
    "{% endfor %}",
    "centred": "{% for m in messages %}[{{ m.role }}]{{ m.content.center(9, '.') }}{{ eos_token }}"
    "{% endfor %}",
}
answers = st.text(st.sampled_from("ABCDEF"), min_size=1, max_size=12)
questions = st.text(st.sampled_from('uvwxyz \n"\\é'), max_size=12)


@pytest.mark.parametrize("name", UNMARKABLE)
@given(pairs=st.lists(st.tuples(questions, answers), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_answers_of_their_own_letters_are_trained_with_their_ends_and_nothing_else(name, pairs):
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    turns = [Turn(message, message["role"] == "assistant") for message in messages]
    rendered = renderer(UNMARKABLE[name]).render(Conversation(turns), "row 1")
    trained = [rendered.text[span.start : span.end] for span in rendered.spans]
    bare = [re.sub(r'[."}\n]|\{"c": ', "", part) for part in trained]
    assert bare == [f"{answer}</s>" for _, answer in pairs]


@pytest.mark.parametrize(
    "template",
    [
        "{{ [messages[0].content, messages[1].content] | join(' ') | wordwrap(4) }}",
        "{{ '%9s%.2s' % (messages[0].content, messages[1].content) }}",
        "{{ messages }}",
    ],
)
def test_texts_that_cannot_be_told_apart_any_more_are_an_error(template):
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    turns = [Turn(message, message["role"] == "assistant") for message in messages]
    with pytest.raises(DataError, match="row 1: the chat template puts the texts of several turns"):
        renderer(template).render(Conversation(turns), "row 1")
