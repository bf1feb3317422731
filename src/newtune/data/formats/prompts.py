"""The prompts of the instruction formats, as their public data is used: wording and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class PromptFormat:
    """`{slot}`s of the texts are filled from `columns`; `{system}` falls back to `system`.

    `{{` and `}}` are literal braces. A row without input is written `without_input`.
    """

    with_input: str
    without_input: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Slot → column, where they differ from each other."""
    answer: str = "{output}"
    system: str = ""
    system_without_input: str | None = None
    system_format: str = "{system}"

    def column(self, slot: str) -> str:
        """Return the column that fills a slot."""
        return self.columns.get(slot, slot)


ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_CONCISE = "Answer the USER's request as concisely as possible."
_EXPLAIN_CHOICE = "Choose the answer that best answers the question. Explain your reasoning."
_CONCISE_CHOICE = "Choose the answer that best answers the question. Be concise in your response."
_JEOPARDY = (
    "Below is a Jeopardy clue paired with input providing the category of the clue. Write a "
    "concise response that best answers the clue given the category."
)
_CONTEXT = "Use the following contextual information to concisely answer the question."
_NOT_IN_CONTEXT = (
    "The context provided does not contain any information about your inquiry. Therefore, I'm "
    "unable to answer your question based on the given context."
)


def alpaca(wording: str | None = None, /, **columns: str) -> PromptFormat:
    """Return `### Instruction:` prompts; `wording` replaces that of Stanford Alpaca."""
    return PromptFormat(
        with_input="{system}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
        "### Response:\n",
        without_input="{system}### Instruction:\n{instruction}\n\n### Response:\n",
        columns=columns,
        system=ALPACA_WITH_INPUT if wording is None else wording,
        system_without_input=ALPACA_WITHOUT_INPUT if wording is None else wording,
        system_format="{system}\n\n",
    )


def chat(wording: str = ALPACA_WITHOUT_INPUT, /, **columns: str) -> PromptFormat:
    """Return `USER:` and `ASSISTANT:` prompts."""
    return PromptFormat(
        with_input="{system}USER: {instruction}\n{input}\nASSISTANT: ",
        without_input="{system}USER: {instruction}\nASSISTANT: ",
        columns=columns,
        system=wording,
        system_format="{system}\n",
    )


def chatml(**columns: str) -> PromptFormat:
    """Return ChatML prompts."""
    opening, closing = "<|im_start|>", "<|im_end|>\n"
    return PromptFormat(
        with_input=f"{{system}}{opening}user\n{{instruction}}\n{{input}}{closing}"
        f"{opening}assistant\n",
        without_input=f"{{system}}{opening}user\n{{instruction}}{closing}{opening}assistant\n",
        columns=columns,
        system=ALPACA_WITHOUT_INPUT,
        system_format=f"{opening}system\n{{system}}{closing}",
    )


def phi(**columns: str) -> PromptFormat:
    """Return prompts of the Phi-3 family."""
    return PromptFormat(
        with_input="{system}<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
        without_input="{system}<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
        columns=columns,
        system=ALPACA_WITHOUT_INPUT,
        system_format="<|system|>\n{system}<|end|>\n",
    )


def _plain(prompt: str, answer: str, **columns: str) -> PromptFormat:
    return PromptFormat(prompt, prompt, columns=columns, answer=answer)


_QA = {"instruction": "question", "output": "answer"}
_OPEN_ORCA = {"instruction": "question", "output": "response", "system": "system_prompt"}
_OASST = {"instruction": "INSTRUCTION", "output": "RESPONSE"}
_JEOPARDY_COLUMNS = {"instruction": "question", "input": "category", "output": "answer"}
_CHOICE = {"instruction": "question", "input": "choices", "output": "solution"}
_CRITIQUE = (
    "Given the following Question and Answer, critique the Answer on a scale of 1 to 10 for each "
    "of its qualities.\n\nQuestion: {instruction}\n\nAnswer: {answer}"
)
_REPLY = "\n\n### Response:\n"
_REVISE = (
    "Given the following Question and Answer and a critique of the Answer, revise the Answer."
    "\n\nQuestion: {instruction}\n\nAnswer: {answer}\n\nCritique:\n{scores}"
)

_ORCA_MINI = PromptFormat(
    with_input="{system}### User:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    without_input="{system}### User:\n{instruction}\n\n### Response:\n",
    system_format="### System:\n{system}\n\n",
)
_CONTEXT_QA = PromptFormat(
    with_input="{system}USER: {article}\n===\n{question}\nASSISTANT: ",
    without_input="{system}USER: {article}\n===\n{question}\nASSISTANT: ",
    answer="{answer}",
    system=_CONTEXT,
    system_format="{system}\n",
)
_TLDR = _plain(
    "USER: Summarize the following article as a TL;DR.\n{article}\nASSISTANT: ", "{summary}"
)
_EXPLAINED = "{explanation}\n\nThe answer is: {solution}"

FORMATS: Mapping[str, PromptFormat] = {
    "alpaca": alpaca(),
    "alpaca:instruct": alpaca(),
    "alpaca:chat": chat(),
    "alpaca:chatml": chatml(),
    "alpaca:phi": phi(),
    "alpaca_chat": chat(),
    "alpaca_chat.load": chat(),
    "alpaca_chat.load_qa": chat(**_QA),
    "alpaca_chat.load_concise": chat(_CONCISE),
    "alpaca_chat.load_no_prompt": chat(""),
    "alpaca_chat.load_camel_ai": chat(instruction="message_1", output="message_2"),
    "alpaca_instruct": alpaca(),
    "alpaca_instruct.load": alpaca(),
    "alpaca_instruct.load_no_prompt": alpaca(""),
    "alpaca_w_system": alpaca(),
    "alpaca_w_system:instruct": alpaca(),
    "alpaca_w_system:chat": chat(),
    "alpaca_w_system:chatml": chatml(),
    "alpaca_w_system:phi": phi(),
    "alpaca_w_system.load": alpaca(),
    "alpaca_w_system.load_instruct": alpaca(),
    "alpaca_w_system.load_chat": chat(),
    "alpaca_w_system.load_chatml": chatml(),
    "alpaca_w_system.load_open_orca": alpaca(**_OPEN_ORCA),
    "alpaca_w_system.load_open_orca_chatml": chatml(**_OPEN_ORCA),
    "gpteacher": alpaca(output="response"),
    "gpteacher:chat": chat(output="response"),
    "oasst": alpaca(**_OASST),
    "oasst:chat": chat(**_OASST),
    "orcamini": _ORCA_MINI,
    "orcamini.load": _ORCA_MINI,
    "reflection": replace(
        alpaca(),
        answer="{output}\n\n### Agent Reflection:\n{reflection}\n\n### Final Answer:\n{corrected}",
    ),
    "context_qa": _CONTEXT_QA,
    "context_qa.load": _CONTEXT_QA,
    "context_qa.load_404": replace(
        _CONTEXT_QA, columns={"question": "unanswerable_question"}, answer=_NOT_IN_CONTEXT
    ),
    "context_qa.load_v2": _plain(
        "Context:\n{context}\n\nQuestion:\n{question}\n\nAnswer:\n", "{answer}"
    ),
    "summarizetldr": _TLDR,
    "summarizetldr:chat": _TLDR,
    "jeopardy": replace(alpaca(_JEOPARDY, **_JEOPARDY_COLUMNS), answer="what is {output}"),
    "jeopardy:chat": replace(chat(_JEOPARDY, **_JEOPARDY_COLUMNS), answer="what is {output}"),
    "explainchoice": replace(alpaca(_EXPLAIN_CHOICE, **_CHOICE), answer=_EXPLAINED),
    "explainchoice:chat": replace(chat(_EXPLAIN_CHOICE, **_CHOICE), answer=_EXPLAINED),
    "concisechoice": alpaca(_CONCISE_CHOICE, **_CHOICE),
    "concisechoice:chat": chat(_CONCISE_CHOICE, **_CHOICE),
    "metharme": _plain("{prompt}", "{generation}"),
    "metharme.load": _plain("{prompt}", "{generation}"),
    "creative_acr.load_answer": alpaca(output="revision"),
    "creative_acr.load_critique": _plain(_CRITIQUE + _REPLY, "{scores}"),
    "creative_acr.load_revise": _plain(_REVISE + _REPLY, "{revision}"),
}
"""Name → prompt; a name after the colon is a style, after the point a variant of the columns."""
