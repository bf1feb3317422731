# ruff: noqa: E501  templates are easier to read whole
"""Masks of the templates for tools, and of those with texts of their own, against marked ones.

As in `test_masks`: each shipped template has an equivalent here, written with `{% generation %}`
around what the assistant writes (its calls too), which transformers renders and masks.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masks import content, conversations, encoder, renderer, tokenizer, without_marks
from newtune.data.chat import Conversation, Turn
from newtune.data.formats import FormatOptions
from newtune.data.formats.messages import MessageReader
from newtune.data.sources import NumberedRow
from newtune.data.template_choice import shipped_templates
from newtune.types import IGNORE_INDEX

CALLS = (
    "{%- for call in m.tool_calls %}{%- if m.content or not loop.first %}{{ '\\n' }}{%- endif %}"
    '{{- \'<tool_call>\\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
)
TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
    "{{- messages[0].content ~ '\\n\\n' }}{%- endif %}{{- '# Tools\\n\\nYou may call one or more "
    "functions to assist with the user query.\\n\\nYou are provided with function signatures within "
    "<tools></tools> XML tags:\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}"
    "{%- endfor %}{{- '\\n</tools>\\n\\nFor each function call, return a json object with function "
    'name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": '
    '<function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n\' }}{%- endif %}'
)
RETURNED = (
    "{%- elif m.role == 'tool' %}{%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}{{- '\\n<tool_response>\\n' ~ m.content ~ "
    "'\\n</tool_response>' }}{%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
)
QWEN = (
    TOOLS + "{%- for m in messages %}{%- if m.role == 'system' and tools and loop.first %}" + RETURNED
    + "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{%- generation %}{{- m.content }}"
    + "{%- if m.tool_calls %}" + CALLS + "{%- endif %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    + "{%- else %}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{%- endif %}"
    + "{%- endfor %}"
)  # fmt: skip
QWEN3 = (
    TOOLS + "{%- set last = namespace(at=-1) %}{%- for m in messages %}{%- if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{%- set last.at = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'system' and tools and loop.first %}" + RETURNED
    + "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{%- generation %}"
    "{%- set thought = m.reasoning_content or '' %}"
    "{%- if loop.index0 > last.at and (loop.last or thought) %}"
    "{{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}{%- endif %}{{- m.content }}"
    "{%- if m.tool_calls %}" + CALLS + "{%- endif %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
)  # fmt: skip
LLAMA = (
    "{{- bos_token ~ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{%- if tools %}{{- 'Environment: ipython\\n' }}{%- endif %}"
    "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' }}"
    "{%- set rest = messages %}{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}"
    "{%- set rest = messages[1:] %}{%- endif %}{{- '<|eot_id|>' }}{%- set seen = namespace(user=false) %}"
    "{%- for m in rest %}{%- if m.role == 'assistant' %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- generation %}{%- if m.tool_calls %}"
    "{{- '{\"name\": \"' ~ m.tool_calls[0].function.name ~ '\", \"parameters\": ' }}"
    "{{- m.tool_calls[0].function.arguments | tojson }}{{- '}' }}{%- else %}{{- m.content | trim }}"
    "{%- endif %}{{- '<|eot_id|>' }}{%- endgeneration %}"
    "{%- elif m.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}"
    "{{- m.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' }}"
    "{%- if tools and m.role == 'user' and not seen.user %}{%- set seen.user = true %}"
    "{{- 'Given the following functions, please respond with a JSON for a function call with its "
    "proper arguments that best answers the given prompt.\\n\\nRespond in the format {\"name\": "
    "function name, \"parameters\": dictionary of argument name and its value}.Do not use "
    "variables.\\n\\n' }}{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}"
    "{%- endfor %}{%- endif %}{{- m.content | trim ~ '<|eot_id|>' }}{%- endif %}{%- endfor %}"
)  # fmt: skip
SMOLLM2 = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful AI assistant "
    "named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}"
    "{{- '<|im_start|>' ~ m.role ~ '\\n' }}{%- if m.role == 'assistant' %}{%- generation %}"
    "{{- m.content ~ '<|im_end|>' }}{%- endgeneration %}{%- else %}{{- m.content ~ '<|im_end|>' }}"
    "{%- endif %}{{- '\\n' }}{%- endfor %}"
)  # fmt: skip
MISTRAL = (
    "{{- bos_token }}{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{%- set ns = namespace(users=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.users = ns.users + 1 %}{%- if tools and ns.users == users | length %}"
    "{{- '[AVAILABLE_TOOLS] [' }}{%- for tool in tools %}{{- tool | tojson }}"
    "{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' ~ '[/AVAILABLE_TOOLS]' }}"
    "{%- endif %}{{- '[INST] ' ~ m.content ~ '[/INST]' }}{%- elif m.role == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}{%- elif m.role == 'tool' %}"
    '{{- \'[TOOL_RESULTS] {"content": \' ~ m.content | tojson ~ \', "call_id": "\' ~ m.tool_call_id '
    "~ '\"}[/TOOL_RESULTS]' }}{%- elif m.tool_calls %}{%- generation %}{{- '[TOOL_CALLS] [' }}"
    "{%- for call in m.tool_calls %}{%- set out = call.function | tojson %}{{- out[:-1] }}"
    "{{- ', \"id\": \"' ~ call.id ~ '\"}' }}{%- if not loop.last %}{{- ', ' }}{%- else %}"
    "{{- ']' ~ eos_token }}{%- endif %}{%- endfor %}{%- endgeneration %}{%- else %}{{- ' ' }}{%- generation %}"
    "{{- m.content | trim ~ eos_token }}{%- endgeneration %}{%- endif %}{%- endfor %}"
)
MARKED = {
    "qwen_25": QWEN,
    "qwen3": QWEN3,
    "llama3_1": LLAMA,
    "smollm2": SMOLLM2,
    "mistral's own": MISTRAL,
}
WITH_TOOLS = [family for family in MARKED if family != "smollm2"]


def unmarked(family: str) -> str:
    """Return the shipped template; one of a tokenizer's own without its marks."""
    return shipped_templates().get(family) or without_marks(MARKED[family])


SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Says <|im_end|> or </s> or [/INST].",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }
    for name in ("look", "add")
]
values = st.one_of(content, st.integers(-9, 9), st.none(), st.lists(content, max_size=2))
arguments = st.dictionaries(st.sampled_from(["a", "b", 'é "q"']), values, max_size=2)


@st.composite
def talks_with_tools(draw: st.DrawFn, *, calls: int) -> list[dict]:
    """A system turn or none; questions, answered at once or after calls and what they returned."""
    messages = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(content)})
        for _ in range(draw(st.integers(0, 2))):
            made = [
                {
                    "type": "function",
                    "id": f"call{place:05}",
                    "function": {
                        "name": draw(st.sampled_from(["look", "add"])),
                        "arguments": given,
                    },
                }
                for place, given in enumerate(draw(st.lists(arguments, min_size=1, max_size=calls)))
            ]
            messages.append({"role": "assistant", "content": "", "tool_calls": made})
            messages += [
                {"role": "tool", "content": draw(content), "tool_call_id": call["id"]}
                for call in made
            ]
        messages.append({"role": "assistant", "content": draw(content)})
    return messages


def masks(template: str, marked: str, messages: list[dict], tools: list | None):
    """Return (ids, mask) of newtune, on rows as they are read, and of transformers."""
    reader = MessageReader(FormatOptions())
    row = NumberedRow(1, {}, "row 1")
    turns = [reader.turn(row, number, message) for number, message in enumerate(messages, 1)]
    assert all(isinstance(turn, Turn) for turn in turns)
    batch = encoder().encode([renderer(template).render(Conversation(turns, tools), "row 1")])
    mask = (batch.labels != IGNORE_INDEX).astype(int).tolist()
    expected = tokenizer().apply_chat_template(
        messages,
        chat_template=marked,
        tools=tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ours = (batch.input_ids.tolist(), mask)
    return ours, (expected["input_ids"], expected["assistant_masks"])


@pytest.mark.parametrize("family", MARKED)
@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_the_mask_is_what_marks_would_say(family, messages):
    if family == "qwen3":  # what an answer's own text holds as thought is another test's
        messages = [{**m, "content": m["content"].replace("</think>", "")} for m in messages]
    ours, theirs = masks(unmarked(family), MARKED[family], messages, None)
    assert ours == theirs


@pytest.mark.parametrize("family", WITH_TOOLS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_calls_are_trained_and_what_they_returned_is_not(family, data):
    messages = data.draw(talks_with_tools(calls=1 if family == "llama3_1" else 3))
    if family == "qwen3":
        messages = json.loads(json.dumps(messages).replace("</think>", ""))
    ours, theirs = masks(unmarked(family), MARKED[family], messages, SCHEMAS)
    assert ours == theirs


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_reasoning_before_calls_is_trained_where_it_is_written(data):
    messages = json.loads(json.dumps(data.draw(talks_with_tools(calls=2))).replace("</think>", ""))
    for message in messages:
        if message["role"] == "assistant" and data.draw(st.booleans()):
            message["reasoning_content"] = data.draw(st.text("ab \n", min_size=1, max_size=5)) + "c"
    ours, theirs = masks(shipped_templates()["qwen3"], QWEN3, messages, SCHEMAS)
    assert ours == theirs
