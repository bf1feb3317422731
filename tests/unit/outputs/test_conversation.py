"""Answers begin and end where the chat template says."""

import pytest

from newtune.outputs.conversation import (
    Conversation,
    answer_all,
    prompt_ids,
    stop_ids,
    turn_end_id,
)
from newtune.outputs.load import Loaded
from tiny import CHATML, tiny_model, tiny_tokenizer

END_OF_TURN, EOS = 5, 2


@pytest.fixture
def loaded():
    return Loaded(tiny_model().eval(), tiny_tokenizer(), "model", "tiny")


def test_a_prompt_ends_where_the_assistant_begins():
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == expected


def test_without_a_template_the_text_itself_is_the_prompt():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "once upon"}])
    assert tokenizer.decode(ids) == "once upon"
    assert turn_end_id(tokenizer) is None


def test_an_answer_stops_at_the_end_of_the_turn_and_of_the_text(loaded):
    """The template ends a turn with a token that is not the tokenizer's eos."""
    assert turn_end_id(loaded.tokenizer) == END_OF_TURN
    assert stop_ids(loaded) == [EOS, END_OF_TURN]


def test_a_conversation_remembers_until_it_is_reset(loaded):
    conversation = Conversation(loaded, max_new_tokens=3, system="be brief")
    answer = "".join(conversation.reply("one"))
    assert conversation.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": answer},
    ]
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]


def test_streamed_and_batched_answers_are_the_same(loaded):
    questions = ["one", "a longer question than that", "two"]
    streamed = [
        "".join(Conversation(loaded, max_new_tokens=6).reply(text)).strip() for text in questions
    ]
    asked = [[{"role": "user", "content": text}] for text in questions]
    assert answer_all(loaded, asked, max_new_tokens=6, rows_per_batch=2) == streamed


def test_the_template_in_the_test_is_the_one_of_the_tokenizer():
    assert tiny_tokenizer().chat_template == CHATML
