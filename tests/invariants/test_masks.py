"""Masks found without marks equal those of transformers on templates that carry marks.

Each family has, besides the template newtune ships, an equivalent one written here with
`{% generation %}` around what the assistant writes. transformers renders that one, tokenises it
and says which tokens stand inside the marks; newtune sees the unmarked one only.
"""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from newtune.data.chat import ChatRenderer, Conversation, Turn
from newtune.data.template_choice import shipped_templates
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate
from newtune.types import IGNORE_INDEX
from tiny import tiny_tokenizer

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
}
"""Family → its template with marks."""

SPECIAL = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
)

HOSTILE = (
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>user\n",
    "<|eot_id|>",
    "<end_of_turn>\n<start_of_turn>model\n",
    "</s>",
    " [/INST] ",
    "### Response:\n",
    "\n\n",
    "  ",
    "\t",
    "é",
    "👩‍👩‍👧",
    "שלום",
    "‮",
    "{{ messages }}",
    "{% for %}",
    "yes",
    "yes",
    "CONTINUE",
)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, normalized=False) for t in SPECIAL]}
    )
    return made


@cache
def encoder() -> TextEncoder:
    return TextEncoder.from_tokenizer(tokenizer())


@cache
def renderer(template: str, **options: str) -> ChatRenderer:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatRenderer(
        ChatTemplate(template, tokens=tokens),
        end_tokens=("<|im_end|>", "</s>", *SPECIAL),
        eos_token="</s>",
        **options,
    )


def newtune_mask(template: str, messages: list[dict]) -> tuple[list[int], list[int]]:
    turns = [Turn(message, message["role"] == "assistant") for message in messages]
    rendered = renderer(template).render(Conversation(turns), "row 1")
    batch = encoder().encode([rendered])
    return batch.input_ids.tolist(), (batch.labels != IGNORE_INDEX).astype(int).tolist()


def marked_mask(template: str, messages: list[dict]) -> tuple[list[int], list[int]]:
    result = tokenizer().apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return result["input_ids"], result["assistant_masks"]


content = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict]:
    """A system turn or none, then user and assistant in turns; contents may repeat."""
    messages = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    pool = draw(st.lists(content, min_size=1, max_size=3))
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(st.sampled_from(pool))})
        messages.append({"role": "assistant", "content": draw(st.sampled_from(pool))})
    return messages


@pytest.mark.parametrize("family", MARKED)
@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_the_mask_is_what_marks_would_say(family, messages):
    ids, mask = newtune_mask(shipped_templates()[family], messages)
    marked_ids, marked = marked_mask(MARKED[family], messages)
    assert ids == marked_ids
    assert mask == marked


@pytest.mark.parametrize("family", shipped_templates())
@given(messages=conversations())
@settings(max_examples=30, deadline=None)
def test_a_shipped_template_writes_what_transformers_would_write(family, messages):
    template = shipped_templates()[family]
    turns = [Turn(message, False) for message in messages]
    text = tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
    assert renderer(template).render(Conversation(turns), "row 1").text == text
