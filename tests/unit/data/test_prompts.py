"""The exact text of every instruction format, with and without input, and what is trained."""

import pytest

from newtune.config.formats import FORMATS as NAMES
from newtune.data.formats import FORMATS, Drop, FormatOptions, PromptMapping, make_format
from newtune.data.formats.conversation import CONVERSATIONS
from newtune.data.sources import NumberedRow
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.types import IGNORE_INDEX
from tiny import tiny_tokenizer

PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
CONCISE = "Answer the USER's request as concisely as possible."
CHOICE = "Choose the answer that best answers the question. "
CONTEXT = "Use the following contextual information to concisely answer the question."
CLUE = (
    "Below is a Jeopardy clue paired with input providing the category of the clue. Write a "
    "concise response that best answers the clue given the category."
)
NOT_THERE = (
    "The context provided does not contain any information about your inquiry. Therefore, I'm "
    "unable to answer your question based on the given context."
)
TASK = {"instruction": "I", "input": "N", "output": "O"}
ORCA = {"system_prompt": "S", "question": "Q", "response": "A"}
CHOICES = {"question": "Q", "choices": ["a", "b"], "solution": "a", "explanation": "E"}
ARTICLE = {"article": "X", "question": "Q", "answer": "A"}
ACR = {"instruction": "I", "answer": "A", "scores": {"clarity": 7, "wit": 2}, "revision": "R"}

INPUT = "### Instruction:\nI\n\n### Input:\nN\n\n### Response:\n"
NO_INPUT = "### Instruction:\nI\n\n### Response:\n"
ALPACA = (TASK, f"{PAIRED}\n\n{INPUT}", f"{ALONE}\n\n{NO_INPUT}", "O")
CHAT = (
    TASK,
    f"{ALONE}\nUSER: I\nN\nASSISTANT: ",
    f"{ALONE}\nUSER: I\nASSISTANT: ",
    "O",
)
CHATML = (
    TASK,
    f"<|im_start|>system\n{ALONE}<|im_end|>\n<|im_start|>user\nI\nN<|im_end|>\n"
    "<|im_start|>assistant\n",
    f"<|im_start|>system\n{ALONE}<|im_end|>\n<|im_start|>user\nI<|im_end|>\n"
    "<|im_start|>assistant\n",
    "O",
)
PHI = (
    TASK,
    f"<|system|>\n{ALONE}<|end|>\n<|user|>\nI\nN<|end|>\n<|assistant|>\n",
    f"<|system|>\n{ALONE}<|end|>\n<|user|>\nI<|end|>\n<|assistant|>\n",
    "O",
)
MINI = (
    {**TASK, "system": "S"},
    "### System:\nS\n\n### User:\nI\n\n### Input:\nN\n\n### Response:\n",
    "### System:\nS\n\n### User:\nI\n\n### Response:\n",
    "O",
)


def with_system(case: tuple) -> tuple:
    """Return the case of a row that has a system text of its own."""
    row, with_input, without, answer = case
    texts = (text.replace(PAIRED, "S").replace(ALONE, "S") for text in (with_input, without))
    return ({**row, "system": "S"}, *texts, answer)


def same(row: dict, prompt: str, answer: str) -> tuple:
    """Return the case of a format that knows no input."""
    return (row, prompt, prompt, answer)


def named(case: tuple, **columns: str) -> tuple:
    """Return the case with other names of columns."""
    row = {columns.get(name, name): value for name, value in case[0].items()}
    return (row, *case[1:])


def choice(wording: str, answer: str) -> tuple:
    prompt = f"{CHOICE}{wording}\n\n### Instruction:\nQ\n\n### Input:\n- a\n- b\n\n### Response:\n"
    return same(CHOICES, prompt, answer)


def choice_chat(wording: str, answer: str) -> tuple:
    return same(CHOICES, f"{CHOICE}{wording}\nUSER: Q\n- a\n- b\nASSISTANT: ", answer)


QUESTION = {"instruction": "question", "output": "answer"}
OASST = {"instruction": "INSTRUCTION", "output": "RESPONSE"}
CASES = {
    "alpaca": ALPACA,
    "alpaca:instruct": ALPACA,
    "alpaca:chat": CHAT,
    "alpaca:chatml": CHATML,
    "alpaca:phi": PHI,
    "alpaca_chat": CHAT,
    "alpaca_chat.load": CHAT,
    "alpaca_chat.load_qa": named(CHAT, **QUESTION),
    "alpaca_chat.load_concise": (
        TASK,
        f"{CONCISE}\nUSER: I\nN\nASSISTANT: ",
        f"{CONCISE}\nUSER: I\nASSISTANT: ",
        "O",
    ),
    "alpaca_chat.load_no_prompt": (
        TASK,
        "USER: I\nN\nASSISTANT: ",
        "USER: I\nASSISTANT: ",
        "O",
    ),
    "alpaca_chat.load_camel_ai": named(CHAT, instruction="message_1", output="message_2"),
    "alpaca_instruct": ALPACA,
    "alpaca_instruct.load": ALPACA,
    "alpaca_instruct.load_no_prompt": (TASK, INPUT, NO_INPUT, "O"),
    "alpaca_w_system": with_system(ALPACA),
    "alpaca_w_system:instruct": with_system(ALPACA),
    "alpaca_w_system:chat": with_system(CHAT),
    "alpaca_w_system:chatml": with_system(CHATML),
    "alpaca_w_system:phi": with_system(PHI),
    "alpaca_w_system.load": with_system(ALPACA),
    "alpaca_w_system.load_instruct": with_system(ALPACA),
    "alpaca_w_system.load_chat": with_system(CHAT),
    "alpaca_w_system.load_chatml": with_system(CHATML),
    "alpaca_w_system.load_open_orca": same(
        ORCA, "S\n\n### Instruction:\nQ\n\n### Response:\n", "A"
    ),
    "alpaca_w_system.load_open_orca_chatml": same(
        ORCA,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "A",
    ),
    "gpteacher": named(ALPACA, output="response"),
    "gpteacher:chat": named(CHAT, output="response"),
    "oasst": named(ALPACA, **OASST),
    "oasst:chat": named(CHAT, **OASST),
    "orcamini": MINI,
    "orcamini.load": MINI,
    "reflection": (
        {**TASK, "reflection": "R", "corrected": "C"},
        *ALPACA[1:3],
        "O\n\n### Agent Reflection:\nR\n\n### Final Answer:\nC",
    ),
    "context_qa": same(ARTICLE, f"{CONTEXT}\nUSER: X\n===\nQ\nASSISTANT: ", "A"),
    "context_qa.load": same(ARTICLE, f"{CONTEXT}\nUSER: X\n===\nQ\nASSISTANT: ", "A"),
    "context_qa.load_404": same(
        {"article": "X", "unanswerable_question": "Q"},
        f"{CONTEXT}\nUSER: X\n===\nQ\nASSISTANT: ",
        NOT_THERE,
    ),
    "context_qa.load_v2": same(
        {"context": "X", "question": "Q", "answer": "A"},
        "Context:\nX\n\nQuestion:\nQ\n\nAnswer:\n",
        "A",
    ),
    "summarizetldr": same(
        {"article": "X", "summary": "Y"},
        "USER: Summarize the following article as a TL;DR.\nX\nASSISTANT: ",
        "Y",
    ),
    "summarizetldr:chat": same(
        {"article": "X", "summary": "Y"},
        "USER: Summarize the following article as a TL;DR.\nX\nASSISTANT: ",
        "Y",
    ),
    "jeopardy": same(
        {"category": "C", "question": "Q", "answer": "A"},
        f"{CLUE}\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\n",
        "what is A",
    ),
    "jeopardy:chat": same(
        {"category": "C", "question": "Q", "answer": "A"},
        f"{CLUE}\nUSER: Q\nC\nASSISTANT: ",
        "what is A",
    ),
    "explainchoice": choice("Explain your reasoning.", "E\n\nThe answer is: a"),
    "explainchoice:chat": choice_chat("Explain your reasoning.", "E\n\nThe answer is: a"),
    "concisechoice": choice("Be concise in your response.", "a"),
    "concisechoice:chat": choice_chat("Be concise in your response.", "a"),
    "metharme": same(
        {"prompt": "<|user|>P<|model|>", "generation": "G"}, "<|user|>P<|model|>", "G"
    ),
    "metharme.load": same({"prompt": "P", "generation": "G"}, "P", "G"),
    "creative_acr.load_answer": same(ACR, f"{ALONE}\n\n{NO_INPUT}", "R"),
    "creative_acr.load_critique": same(
        ACR,
        "Given the following Question and Answer, critique the Answer on a scale of 1 to 10 for "
        "each of its qualities.\n\nQuestion: I\n\nAnswer: A\n\n### Response:\n",
        "clarity: 7\nwit: 2",
    ),
    "creative_acr.load_revise": same(
        ACR,
        "Given the following Question and Answer and a critique of the Answer, revise the Answer."
        "\n\nQuestion: I\n\nAnswer: A\n\nCritique:\nclarity: 7\nwit: 2\n\n### Response:\n",
        "R",
    ),
}
"""Name → (row, prompt with input, prompt without, answer)."""


def read(type_, row: dict, **options):
    return make_format(type_, FormatOptions(**options)).read(NumberedRow(3, row, "rows, line 3"))


def parts(rendered) -> tuple[str, str]:
    """Return the untrained and the trained text, which must be one after the other."""
    ((start, end),) = rendered.spans
    assert end == len(rendered.text)
    return rendered.text[:start], rendered.text[start:]


@pytest.mark.parametrize("name", CASES)
def test_prompt_and_answer_are_exactly_the_formats(name):
    row, with_input, without, answer = CASES[name]
    assert parts(read(name, row)) == (with_input, answer)
    bare = {key: value for key, value in row.items() if key != "input"}
    assert parts(read(name, bare)) == (without, answer)
    if "input" in row:
        for empty in ("", None, "  "):
            assert parts(read(name, {**row, "input": empty})) == (without, answer)


@pytest.mark.parametrize("name", CASES)
def test_labels_are_the_answer_and_eos(name):
    row, with_input, _, answer = CASES[name]
    tokenizer = tiny_tokenizer()
    batch = TextEncoder.from_tokenizer(tokenizer).encode([read(name, row)])
    assert tokenizer.decode(batch.input_ids) == with_input + answer + "</s>"
    trained = batch.input_ids[batch.labels != IGNORE_INDEX]
    assert tokenizer.decode(trained).lstrip() == answer + "</s>"


def test_every_known_name_is_a_format_and_has_a_case():
    assert set(NAMES) == set(FORMATS)
    assert set(CASES) | set(CONVERSATIONS) | {"completion", "pretrain", "input_output"} == set(
        NAMES
    )


def test_a_rows_own_system_text_and_the_default_one():
    assert parts(read("alpaca", {**TASK, "system": "S"}))[0].startswith("S\n\n###")
    assert parts(read("alpaca", TASK, default_system_message="D"))[0].startswith("D\n\n###")
    both = read("alpaca", {**TASK, "system": "S"}, default_system_message="D")
    assert parts(both)[0].startswith("S\n\n###")


def test_completion_with_its_column_in_the_name():
    assert read("completion:body", {"body": "All"}).text == "All"
    assert read("pretrain", {"text": "All"}).text == "All"
    assert read("completion", {"body": "All"}, text_field="body").text == "All"


MULTI_LINE = PromptMapping(
    system_prompt="Be kind.",
    system_format="[{system}]\n",
    field_instruction="q",
    field_input="ctx",
    field_output="a",
    format="Q: {instruction}\n\n  C: {input}\nA:\n",
    no_input_format="Q: {instruction}\nA:\n",
)


def test_a_mapping_may_have_many_lines():
    row = {"q": "Why?", "ctx": "Here", "a": "So."}
    assert parts(read(MULTI_LINE, row)) == ("[Be kind.]\nQ: Why?\n\n  C: Here\nA:\n", "So.")
    assert parts(read(MULTI_LINE, {"q": "Why?", "a": "So."})) == (
        "[Be kind.]\nQ: Why?\nA:\n",
        "So.",
    )


def test_literal_braces_of_a_mapping_and_of_its_rows():
    mapping = PromptMapping(format='{{"q": "{instruction}"}}\n')
    row = {"instruction": "{input} {{x}} {", "input": "N", "output": "{}"}
    assert parts(read(mapping, row)) == ('{"q": "{input} {{x}} {"}\n', "{}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{question}", r"`format` uses `\{question\}`; it may use `\{input\}`, `\{instruction\}`"),
        ("{}", r"`format` uses `\{\}`"),
        ("{instruction.real}", r"uses `\{instruction.real\}`"),
        ("{instruction!r}", "with a width or a conversion"),
        ("{instruction:>9}", "with a width or a conversion"),
        ("{instruction", "`format`: expected '}'.*A literal brace is written"),
    ],
)
def test_a_wrong_slot_of_a_mapping_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        make_format(PromptMapping(format=text), FormatOptions())


def test_wrong_rows_name_row_and_field():
    with pytest.raises(DataError, match="line 3: no field `question`; the row has `x`"):
        read("alpaca_chat.load_qa", {"x": "1"})
    assert read("concisechoice", {**CHOICES, "solution": None}) == Drop("`solution` is empty")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user_defined", "is written as a mapping"),
        ("llama2_chat", "`chat_template: llama2`"),
        ("chatml.intel", "needs `rl`"),
        ("alpca", "did you mean `alpaca`"),
        ("sharegpt.load_rol", "did you mean `sharegpt.load_role`"),
    ],
)
def test_what_is_no_format_is_answered(name, message):
    with pytest.raises(DataError, match=message):
        make_format(name, FormatOptions())
