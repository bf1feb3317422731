"""Masks found without marks equal those of transformers on templates that carry marks.

Each family has, besides the template newtune ships, an equivalent one written here with
`{% generation %}` around what the assistant writes. transformers renders that one, tokenises it
and says which tokens stand inside the marks; newtune sees the unmarked one only.
"""

import pytest
from hypothesis import given, settings

from masks import conversations, marked_mask, newtune_mask, renderer, tokenizer
from newtune.data.chat import Conversation, Turn
from newtune.data.template_choice import shipped_templates

BEGIN, END = "{% generation %}", "{% endgeneration %}"


def by_role(user: str, assistant: str, *, before: str = "", system: str = "") -> str:
    """Return a template that writes each turn by its role; marks stand in `assistant`."""
    return (
        f"{before}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}"
        f"{{% elif m.role == 'system' %}}{system or user}{{% else %}}{user}{{% endif %}}"
        "{% endfor %}"
    )


def chatml_like(header: str, end: str, *, after: str = "", before: str = "", content: str) -> str:
    """Return a template of the shape header, content, end; the content and the end are marked."""
    other = f"{{{{ {header} + {content} + {end} + '{after}' }}}}"
    assistant = f"{{{{ {header} }}}}{BEGIN}{{{{ {content} + {end} }}}}{END}{{{{ '{after}' }}}}"
    return by_role(other, assistant, before=before)


def with_system_merged(user: str, assistant: str, opening: str, *, before: str = "") -> str:
    """Return a template that writes the system text into the first user turn."""
    return (
        before + "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
        "{% set turns = messages[1:] if system is not none else messages %}"
        "{% for m in turns %}{% set opening = " + opening + " if loop.first and system is not none "
        "else '' %}{% if m.role == 'assistant' %}" + assistant + "{% else %}" + user + "{% endif %}"
        "{% endfor %}"
    )


MARKED = {
    "chatml": chatml_like(
        "'<|im_start|>' + m.role + '\\n'", "'<|im_end|>'", after="\\n", content="m.content"
    ),
    "llama3": chatml_like(
        "'<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'",
        "'<|eot_id|>'",
        before="{{ bos_token }}",
        content="m.content | trim",
    ),
    "phi_3": chatml_like("'<|' + m.role + '|>\\n'", "'<|end|>'", after="\\n", content="m.content"),
    "zephyr": chatml_like("'<|' + m.role + '|>\\n'", "eos_token", after="\\n", content="m.content"),
    "cohere": chatml_like(
        "'<|START_OF_TURN_TOKEN|><|' + "
        "{'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[m.role] + '_TOKEN|>'",
        "'<|END_OF_TURN_TOKEN|>'",
        before="{{ bos_token }}",
        content="m.content | trim",
    ),
    "llama2": with_system_merged(
        "{{ bos_token + '[INST] ' + opening + m.content | trim + ' [/INST]' }}",
        "{{ ' ' }}" + BEGIN + "{{ m.content | trim + ' ' + eos_token }}" + END,
        "'<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n'",
    ),
    "mistral": with_system_merged(
        "{{ '[INST] ' + opening + m.content + ' [/INST]' }}",
        "{{ ' ' }}" + BEGIN + "{{ m.content | trim + eos_token }}" + END,
        "system + '\\n\\n'",
        before="{{ bos_token }}",
    ),
    "gemma": with_system_merged(
        "{{ '<start_of_turn>user\\n' + opening + m.content | trim + '<end_of_turn>\\n' }}",
        "{{ '<start_of_turn>model\\n' + opening }}"
        + BEGIN
        + "{{ m.content | trim + '<end_of_turn>' }}"
        + END
        + "{{ '\\n' }}",
        "(system | trim) + '\\n\\n'",
        before="{{ bos_token }}",
    ),
    "alpaca": by_role(
        "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}",
        "{{ '### Response:\\n' }}" + BEGIN + "{{ m.content + eos_token }}" + END + "{{ '\\n\\n' }}",
        before="{{ bos_token }}",
        system="{{ m.content + '\\n\\n' }}",
    ),
    "vicuna": by_role(
        "{{ 'USER: ' + m.content + '\\n' }}",
        "{{ 'ASSISTANT:' }}" + BEGIN + "{{ ' ' + m.content + eos_token }}" + END + "{{ '\\n' }}",
        before="{{ bos_token }}",
        system="{{ m.content + '\\n\\n' }}",
    ),
    "deepseek_v3": by_role(
        "{{ '<｜User｜>' + m.content }}",  # noqa: RUF001  its own role tokens
        "{{ '<｜Assistant｜>' }}" + BEGIN + "{{ m.content + eos_token }}" + END,  # noqa: RUF001
        before="{{ bos_token }}",
        system="{{ m.content }}",
    ),
    "deepseek_v2": by_role(
        "{{ 'User: ' + m.content + '\\n\\n' }}",
        "{{ 'Assistant:' }}" + BEGIN + "{{ ' ' + m.content + eos_token }}" + END,
        before="{{ bos_token }}",
        system="{{ m.content + '\\n\\n' }}",
    ),
    "mistral_v1": with_system_merged(
        "{{ ' [INST] ' + opening + m.content + ' [/INST]' }}",
        "{{ ' ' }}" + BEGIN + "{{ m.content | trim + eos_token }}" + END,
        "system + '\\n\\n'",
        before="{{ bos_token }}",
    ),
    "mistral_v2v3": with_system_merged(
        "{{ '[INST] ' + opening + m.content + '[/INST]' }}",
        "{{ ' ' }}" + BEGIN + "{{ m.content | trim + eos_token }}" + END,
        "system + '\\n\\n'",
        before="{{ bos_token }}",
    ),
    "mistral_v3_tekken": with_system_merged(
        "{{ '[INST]' + opening + m.content + '[/INST]' }}",
        BEGIN + "{{ m.content | trim + eos_token }}" + END,
        "system + '\\n\\n'",
        before="{{ bos_token }}",
    ),
    "mistral_v7_tekken": by_role(
        "{{ '[INST]' + m.content + '[/INST]' }}",
        BEGIN + "{{ m.content + eos_token }}" + END,
        before="{{ bos_token }}",
        system="{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}",
    ),
    "phi_4": chatml_like(
        "'<|im_start|>' + m.role + '<|im_sep|>'", "'<|im_end|>'", content="m.content"
    ),
    "llama4": chatml_like(
        "'<|header_start|>' + m.role + '<|header_end|>\\n\\n'",
        "'<|eot|>'",
        before="{{ bos_token }}",
        content="m.content | trim",
    ),
    "internlm2": chatml_like(
        "'<|im_start|>' + m.role + '\\n'",
        "'<|im_end|>'",
        after="\\n",
        before="{{ bos_token }}",
        content="m.content",
    ),
    "granite": chatml_like(
        "'<|start_of_role|>' + m.role + '<|end_of_role|>'",
        "'<|end_of_text|>'",
        after="\\n",
        content="m.content",
    ),
    "jamba": by_role(
        "{{ '<|bom|><|' + m.role + '|> ' + m.content + '<|eom|>' }}",
        "{{ '<|bom|><|assistant|>' }}" + BEGIN + "{{ ' ' + m.content + '<|eom|>' }}" + END,
        before="{{ bos_token }}",
    ),
    "exaone": by_role(
        "{{ '[|user|]' + m.content + '\\n' }}",
        "{{ '[|assistant|]' }}" + BEGIN + "{{ m.content + '[|endofturn|]' }}" + END + "{{ '\\n' }}",
        before="{{ '' if messages[0].role == 'system' else '[|system|][|endofturn|]\\n' }}",
        system="{{ '[|system|]' + m.content + '[|endofturn|]\\n' }}",
    ),
    "metharme": by_role(
        "{{ '<|user|>' + m.content | trim }}",
        "{{ '<|model|>' }}" + BEGIN + "{{ m.content | trim + eos_token }}" + END,
        before="{{ bos_token }}",
        system="{{ '<|system|>' + m.content | trim }}",
    ),
    "olmo": by_role(
        "{{ '<|user|>\\n' + m.content + '\\n' }}",
        "{{ '<|assistant|>\\n' }}"
        + BEGIN
        + "{{ m.content + eos_token }}"
        + END
        + "{{ '' if loop.last else '\\n' }}",
        before="{{ bos_token }}",
        system="{{ '<|system|>\\n' + m.content + '\\n' }}",
    ),
    "qwen_25": chatml_like(
        "'<|im_start|>' + m.role + '\\n'", "'<|im_end|>'", after="\\n", content="m.content"
    ),
}
"""Family → its template with marks."""


@pytest.mark.parametrize("family", MARKED)
@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_the_mask_is_what_marks_would_say(family, messages):
    ids, mask = newtune_mask(shipped_templates()[family], messages)
    marked_ids, marked = marked_mask(MARKED[family], messages)
    assert ids == marked_ids
    assert mask == marked


@pytest.mark.parametrize("family", shipped_templates())
@given(messages=conversations())
@settings(max_examples=15, deadline=None)
def test_a_shipped_template_writes_what_transformers_would_write(family, messages):
    template = shipped_templates()[family]
    turns = [Turn(message, False) for message in messages]
    text = tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
    assert renderer(template).render(Conversation(turns), "row 1").text == text
