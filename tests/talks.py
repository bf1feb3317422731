r"""One conversation, read as a configuration says, with ⟦ ⟧ around what is trained.

shown({"messages": HI}) == f"{U}Hi{E}\n{A}⟦Hello{E}⟧\n"
"""

from newtune.data.formats import FormatOptions, make_format
from newtune.data.sources import NumberedRow
from newtune.data.template_choice import shipped_templates
from newtune.data.tracing import ChatTemplate

CHATML = shipped_templates()["chatml"]
U = "<|im_start|>user\n"
A = "<|im_start|>assistant\n"
S = "<|im_start|>system\n"
E = "<|im_end|>"
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MORE = [*HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Ciao"}]
SYSTEM = {"role": "system", "content": "Be kind."}


def read(row: dict, *, type_="chat_template", template=CHATML, variables=None, **options):
    chat = ChatTemplate(template, tokens={"eos_token": "</s>"}, arguments=variables)
    given = FormatOptions(
        **{"template": chat, "end_tokens": (E, "</s>"), "eos_token": "</s>", **options}
    )
    return make_format(type_, given).read(NumberedRow(3, row, "rows.jsonl, line 3"))


def shown(row: dict, **options) -> str:
    """Return the text with ⟦ ⟧ around what is trained."""
    rendered = read(row, **options)
    text, made, position = rendered.text, "", 0
    for start, end in rendered.spans:
        made += f"{text[position:start]}⟦{text[start:end]}⟧"
        position = end
    return made + text[position:]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {}}}}
QWEN = shipped_templates()["qwen_25"]


def called(arguments, **call) -> dict:
    function = {"name": "add", "arguments": arguments}
    turn = {"role": "assistant", "content": None, "tool_calls": [{"function": function, **call}]}
    return {"messages": [HI[0], turn, {"role": "tool", "content": "2"}, HI[1]]}
