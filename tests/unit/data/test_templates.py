"""The text of every shipped template, written by hand from the public description of its format.

The conversation is a system turn and two exchanges. `⟦` and `⟧` stand around what is trained.
"""

import re

import pytest

from newtune.config.formats import FALLBACK, REFUSED_TEMPLATES, TEMPLATES
from newtune.data.chat import ChatRenderer, Conversation, Turn
from newtune.data.template_choice import ALIASES, choose_template, shipped_templates
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
CHATML = (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n⟦4<|im_end|>⟧\n"
)
GEMMA = (
    "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n"
    "<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n⟦4<end_of_turn>⟧\n"
)
PHI_3 = (
    "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello!<|end|>⟧\n"
    "<|user|>\n2+2?<|end|>\n<|assistant|>\n⟦4<|end|>⟧\n"
)
COMMAND_R = (
    "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦Hello!<|END_OF_TURN_TOKEN|>⟧"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>2+2?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦4<|END_OF_TURN_TOKEN|>⟧"
)
GRANITE = (
    "<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>⟦Hello!<|end_of_text|>⟧\n"
    "<|start_of_role|>user<|end_of_role|>2+2?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>⟦4<|end_of_text|>⟧\n"
)
LLAMA_3_1 = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello!<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧"
)
OLMO = (
    "<s><|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\n⟦Hello!</s>⟧\n<|user|>\n2+2?\n"
    "<|assistant|>\n⟦4</s>⟧"
)

EXPECTED = {
    "alpaca": "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\n⟦Hello!</s>⟧\n\n"
    "### Instruction:\n2+2?\n\n### Response:\n⟦4</s>⟧\n\n",
    "aya": COMMAND_R,
    "chatml": CHATML,
    "cohere": COMMAND_R,
    "command_r": COMMAND_R,
    "deepseek_v2": "<s>Be kind.\n\nUser: Hi\n\nAssistant:⟦ Hello!</s>⟧User: 2+2?\n\n"
    "Assistant:⟦ 4</s>⟧",
    "deepseek_v3": "<s>Be kind.<｜User｜>Hi<｜Assistant｜>⟦Hello!</s>⟧<｜User｜>2+2?"  # noqa: RUF001
    "<｜Assistant｜>⟦4</s>⟧",  # noqa: RUF001
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]⟦Hello![|endofturn|]⟧\n"
    "[|user|]2+2?\n[|assistant|]⟦4[|endofturn|]⟧\n",
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gemma3n": GEMMA,
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "internlm2": "<s>" + CHATML,
    "jamba": "<s><|bom|><|system|> Be kind.<|eom|><|bom|><|user|> Hi<|eom|>"
    "<|bom|><|assistant|>⟦ Hello!<|eom|>⟧<|bom|><|user|> 2+2?<|eom|>"
    "<|bom|><|assistant|>⟦ 4<|eom|>⟧",
    "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] ⟦Hello! </s>⟧"
    "<s>[INST] 2+2? [/INST] ⟦4 </s>⟧",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello!<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧",
    "llama3_1": LLAMA_3_1,
    "llama3_2": LLAMA_3_1,
    "llama3_3": LLAMA_3_1,
    "llama4": "<s><|header_start|>system<|header_end|>\n\nBe kind.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nHi<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n⟦Hello!<|eot|>⟧"
    "<|header_start|>user<|header_end|>\n\n2+2?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n⟦4<|eot|>⟧",
    "metharme": "<s><|system|>Be kind.<|user|>Hi<|model|>⟦Hello!</s>⟧<|user|>2+2?<|model|>⟦4</s>⟧",
    "mistral": "<s>[INST] Be kind.\n\nHi [/INST] ⟦Hello!</s>⟧[INST] 2+2? [/INST] ⟦4</s>⟧",
    "mistral_v1": "<s> [INST] Be kind.\n\nHi [/INST] ⟦Hello!</s>⟧ [INST] 2+2? [/INST] ⟦4</s>⟧",
    "mistral_v2v3": "<s>[INST] Be kind.\n\nHi[/INST] ⟦Hello!</s>⟧[INST] 2+2?[/INST] ⟦4</s>⟧",
    "mistral_v3_tekken": "<s>[INST]Be kind.\n\nHi[/INST]⟦Hello!</s>⟧[INST]2+2?[/INST]⟦4</s>⟧",
    "mistral_v7_tekken": "<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hi[/INST]⟦Hello!</s>⟧"
    "[INST]2+2?[/INST]⟦4</s>⟧",
    "olmo": OLMO,
    "phi_3": PHI_3,
    "phi_35": PHI_3,
    "phi_4": "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>⟦Hello!<|im_end|>⟧<|im_start|>user<|im_sep|>2+2?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>⟦4<|im_end|>⟧",
    "qwen_25": CHATML,
    "qwen3": CHATML.replace("⟦4", "⟦<think>\n\n</think>\n\n4"),
    "smollm2": CHATML,
    "tulu": OLMO,
    "vicuna": "<s>Be kind.\n\nUSER: Hi\nASSISTANT:⟦ Hello!</s>⟧\nUSER: 2+2?\nASSISTANT:⟦ 4</s>⟧\n",
    "yi": CHATML,
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n⟦Hello!</s>⟧\n"
    "<|user|>\n2+2?</s>\n<|assistant|>\n⟦4</s>⟧\n",
}
"""Name → text; <s> and </s> are the tokenizer's opening and closing tokens."""

END_TOKENS = (
    "</s>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<end_of_turn>",
    "<|end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "[|endofturn|]",
)


def marked(name: str, messages: list[dict], tools=None, **variables) -> str:
    """Return the text with `⟦` and `⟧` around what is trained."""
    source = choose_template(name, jinja=None, own=None)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(source, tokens=tokens, arguments=variables)
    renderer = ChatRenderer(template, end_tokens=END_TOKENS, eos_token="</s>")
    turns = [Turn(message, message["role"] == "assistant") for message in messages]
    rendered = renderer.render(Conversation(turns, tools), "row 1")
    text, shown, position = rendered.text, "", 0
    for span in rendered.spans:
        shown += f"{text[position : span.start]}⟦{text[span.start : span.end]}⟧"
        position = span.end
    return shown + text[position:]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_template_writes_what_its_format_says_and_the_answers_are_trained(name):
    assert marked(name, [SYSTEM, *TALK]) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_without_a_system_turn_the_rest_stays(name):
    without = marked(name, TALK)
    assert "Be kind." not in without
    assert re.findall("⟦(.*?)⟧", without, re.S) == re.findall("⟦(.*?)⟧", EXPECTED[name], re.S)


def test_every_known_name_has_a_template_and_a_case():
    assert set(TEMPLATES) == set(shipped_templates()) | set(ALIASES) == set(EXPECTED)


def test_smollm2_and_exaone_have_a_system_turn_of_their_own():
    assert marked("smollm2", TALK).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n"
    )
    assert marked("exaone", TALK).startswith("[|system|][|endofturn|]\n[|user|]Hi\n")


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = [
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two."},
]


def test_llama_3_1_with_tools_and_a_date():
    assert marked("llama3_1", CALLS, [TOOL], date_string="01 Jan 2026") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2026\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.'
        "Do not use variables.\n\n"
        '{\n    "type": "function",\n    "function": {\n        "name": "add",\n        '
        '"parameters": {\n            "type": "object"\n        }\n    }\n}\n\n'
        "1+1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '⟦{"name": "add", "parameters": {"a": 1}}<|eot_id|>⟧'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"2"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Two.<|eot_id|>⟧"
    )


QWEN_TOOLS = (
    "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user "
    "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n"
    '<tools>\n{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}'
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n'
    "<|im_start|>assistant\n"
)


def test_qwen_with_tools():
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    answered = "\n<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    assert marked("qwen_25", CALLS, [TOOL]) == (
        f"{QWEN_TOOLS}⟦{called}⟧{answered}<|im_start|>assistant\n⟦Two.<|im_end|>⟧\n"
    )


def test_qwen_3_with_tools_and_thinking():
    thinking = [{**m, "reasoning_content": "Hm."} if m["role"] == "assistant" else m for m in CALLS]
    assert marked("qwen3", thinking, [TOOL]) == (
        QWEN_TOOLS
        + '⟦<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n'
        "</tool_call><|im_end|>⟧\n<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nHm.\n</think>\n\nTwo.<|im_end|>⟧\n"
    )


@pytest.mark.parametrize("name", REFUSED_TEMPLATES)
def test_a_public_name_that_is_not_shipped_says_why_and_what_to_do(name):
    with pytest.raises(DataError, match=f"`chat_template: {name}`: .*tokenizer_default"):
        choose_template(name, jinja=None, own=None)
    assert choose_template(FALLBACK + name, jinja=None, own="own") == "own"


@pytest.mark.parametrize("name", ["mistral", "mistral_v1", "mistral_v2v3", "mistral_v3_tekken"])
def test_mistral_takes_turns(name):
    with pytest.raises(DataError, match="row 1: the chat template failed: After an optional"):
        marked(name, [TALK[0], TALK[0]])
