"""What is remembered about a template's texts around turns never changes a mask."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masks import conversations, renderer
from newtune.data.chat import Conversation, Turn
from newtune.data.template_choice import shipped_templates
from newtune.data.turns import TurnFinder
from newtune.errors import DataError

ODD = {
    "numbers": "[{{ loop.index }}]{{ m.role }}: {{ m.content }}</s>",
    "no end": "{{ m.role }}: {{ m.content }}\n",
    "no header": "{{ m.content }}<|im_end|>",
    "one header": "Say: [{{ m.content }}]</s>",
    "ends on both sides": "<|im_end|>{{ m.content }} {{ m.role }}<|im_end|>",
    "end opens the next": "<|im_end|>{{ m.role }}: {{ m.content }}",
    "end in one": "{{ m.role }}: {{ m.content }}{{ '</s>' if loop.last }}",
}
PROMPT = "{% if add_generation_prompt %}Say: {% endif %}"
TEMPLATES = {
    "end after the loop": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}</s>",
    **shipped_templates(),
    **{
        name: f"{{% for m in messages %}}{turn}{{% endfor %}}{PROMPT}" for name, turn in ODD.items()
    },
}


def outcome(chat, conversation: Conversation) -> object:
    try:
        return chat.render(conversation, "row 1")
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("ends", ["turn", "all", "last"])
@given(messages=conversations(), trained=st.integers(0, 2**7 - 1))
@settings(max_examples=12, deadline=None)
def test_turns_are_found_where_they_are_found_afresh(name, ends, messages, trained):
    turns = [Turn(message, bool(trained >> n & 1)) for n, message in enumerate(messages)]
    chat = renderer(TEMPLATES[name], train_on_eos=ends, train_on_eot=ends)
    seen_before = outcome(chat, Conversation(turns))  # the renderer is one for all examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TurnFinder, "_find_alone", lambda *_: None)
        assert outcome(replace(chat), Conversation(turns)) == seen_before
