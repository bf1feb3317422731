"""Formats of the user's own: what a function may return, and where it is looked for."""

import pytest

from newtune.data.formats import Drop, FormatOptions, Tokens, make_format, source_digest
from newtune.data.sources import NumberedRow
from newtune.data.template_choice import shipped_templates
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
PAIRS = [["Q: ", False], ["A", True]]


@pytest.fixture
def module(tmp_path, request):
    """Return a function that writes a module and gives its name, a new one for each test."""

    def write(code: str) -> str:
        name = f"own_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def read(dotted: str, folder, row: dict):
    template = ChatTemplate(shipped_templates()["chatml"])
    options = FormatOptions(template=template, end_tokens=("<|im_end|>",), folder=str(folder))
    return make_format(dotted, options).read(NumberedRow(3, row, "rows.jsonl, line 3"))


SHAPES = [
    ("All of it", "⟦All of it⟧"),
    ({"text": "All of it"}, "⟦All of it⟧"),
    (CHAT, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho<|im_end|>⟧\n"),
    ({"messages": CHAT}, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho<|im_end|>⟧\n"),
    (PAIRS, "Q: ⟦A⟧"),
    ({"segments": [{"text": "Q: ", "label": False}, {"text": "A", "label": True}]}, "Q: ⟦A⟧"),
    ([{"text": "Q: ", "label": False}, {"text": "A", "label": True}], "Q: ⟦A⟧"),
    ({"prompt": "Q: ", "completion": "A"}, "Q: ⟦A⟧"),
]


@pytest.mark.parametrize(("returned", "expected"), SHAPES)
def test_what_a_function_may_return(module, tmp_path, returned, expected):
    name = module("def read(row):\n    return row['it']\n")
    rendered = read(f"{name}:read", tmp_path, {"it": returned})
    text, made, position = rendered.text, "", 0
    for start, end in rendered.spans:
        made += f"{text[position:start]}⟦{text[start:end]}⟧"
        position = end
    assert made + text[position:] == expected
    opened = not isinstance(returned, list) and not {"messages", "segments"} & set(returned)
    assert (rendered.bos, rendered.eos) == ((True, "trained") if opened else (False, "none"))


def test_tokens_and_rows_left_out(module, tmp_path):
    name = module("def read(row):\n    return row['it']\n")
    tokens = {"input_ids": [5, 6], "labels": [-100, 6]}
    assert read(f"{name}:read", tmp_path, {"it": tokens}) == Tokens([5, 6], [-100, 6])
    assert isinstance(read(f"{name}:read", tmp_path, {"it": None}), Drop)


@pytest.mark.parametrize(
    ("returned", "shown"), [(3, "got 3"), ({"x": 1}, "got {'x': 1}"), ([1], "got")]
)
def test_anything_else_is_an_error_with_the_row(module, tmp_path, returned, shown):
    name = module("def read(row):\n    return row['it']\n")
    with pytest.raises(DataError, match=f"line 3: `{name}:read` must return None, text.*{shown}"):
        read(f"{name}:read", tmp_path, {"it": returned})


def test_a_function_that_fails_names_the_row(module, tmp_path):
    name = module("def read(row):\n    return row['text']\n")
    with pytest.raises(DataError, match=f"line 3: `{name}:read` failed: KeyError: 'text'"):
        read(f"{name}:read", tmp_path, {})


def test_a_module_that_fails_or_has_no_such_function(module, tmp_path):
    name = module("read = 3\n")
    with pytest.raises(DataError, match=f"`{name}` has no function `read`"):
        read(f"{name}:read", tmp_path, {})
    (tmp_path / "own_broken_rows.py").write_text("1 / 0")
    with pytest.raises(DataError, match="importing `own_broken_rows` failed: ZeroDivisionError"):
        read("own_broken_rows:read", tmp_path, {})
    with pytest.raises(DataError, match=f"no module `own_missing` to import; looked in {tmp_path}"):
        read("own_missing:read", tmp_path, {})


def test_the_working_directory_is_looked_in_too(module, tmp_path, monkeypatch):
    name = module("def read(row):\n    return 'x'\n")
    monkeypatch.chdir(tmp_path)
    assert read(f"{name}:read", "/nowhere", {}).text == "x"


def test_other_code_has_another_digest(tmp_path):
    digests = set()
    for number in (1, 2):
        (tmp_path / f"own_digest_{number}.py").write_text(
            f"def read(row):\n    return '{number}'\n"
        )
        digests.add(source_digest(f"own_digest_{number}:read", str(tmp_path)))
    assert len(digests) == 2
