"""Masks of newtune and of transformers, and hostile conversations to compare them on."""

import re
from functools import cache

from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from newtune.data.chat import ChatRenderer, Conversation, Turn
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate
from newtune.types import IGNORE_INDEX
from tiny import tiny_tokenizer

SPECIAL = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_sep|>",
    "<|end_of_text|>",
    "[|endofturn|]",
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
    "user",
    "assistant",
    "\0",
    "\r\n",
    "e\u0301",
    "</think>",
    "<think>",
    "<|start|>assistant<|channel|>final<|message|>",
    "long " * 300,
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


MARK = re.compile(r"\{%-? *(?:end)?generation *-?%\}")


def without_marks(template: str) -> str:
    """Take the marks out; a `-` on a mark is kept, for it takes white space with it."""

    def replacement(mark: re.Match[str]) -> str:
        left = "-" if mark[0].startswith("{%-") else ""
        right = "-" if mark[0].endswith("-%}") else ""
        return f"{{%{left} if true {right}%}}{{% endif %}}" if left or right else ""

    return MARK.sub(replacement, template)


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
