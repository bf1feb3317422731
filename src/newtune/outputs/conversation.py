"""Talk with a model: its chat template around the messages, its answer as it comes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from newtune.errors import ExportError
from newtune.model.generate import generate_greedy, stream_chat
from newtune.outputs.load import Loaded

Message = dict[str, str]
"""`role` and `content`, as chat templates take them."""

PROBE = "answer"
"""The assistant's words when a template is asked how it ends a turn."""


@dataclass
class Conversation:
    """The messages so far; `reply` adds a turn of both sides."""

    loaded: Loaded
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with the system message."""
        self.stops = stop_ids(self.loaded)
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def reply(self, text: str) -> Iterator[str]:
        """Yield the answer to `text` piece by piece."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        for piece in stream_chat(
            self.loaded.model,
            self.loaded.tokenizer,
            prompt_ids(self.loaded.tokenizer, asked),
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.stops,
            temperature=self.temperature,
            top_p=self.top_p,
        ):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def answer_all(
    loaded: Loaded, prompts: list[list[Message]], *, max_new_tokens: int, rows_per_batch: int = 16
) -> list[str]:
    """Return the greedy answer to each list of messages."""
    answers = generate_greedy(
        loaded.model,
        loaded.tokenizer,
        [prompt_ids(loaded.tokenizer, messages) for messages in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=rows_per_batch,
        stop_ids=stop_ids(loaded),
    )
    decode = loaded.tokenizer.decode
    return [str(decode(answer, skip_special_tokens=True)).strip() for answer in answers]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant begins to speak.

    A tokenizer without a chat template gets the last message's text alone.
    """
    if tokenizer.chat_template is None:
        return cast("list[int]", tokenizer(messages[-1]["content"])["input_ids"])
    text = _render(tokenizer, messages, begin_answer=True)
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(loaded: Loaded) -> list[int]:
    """Return the tokens that end an answer of a loaded model."""
    return answer_ends(loaded.model, loaded.tokenizer)


def answer_ends(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return the tokens that end an answer: the model's, the tokenizer's, the template's."""
    config = model.generation_config
    configured = config.eos_token_id if config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    ids = [*ids, tokenizer.eos_token_id, turn_end_id(tokenizer)]
    return sorted({token for token in ids if token is not None})


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes after the assistant's words."""
    if tokenizer.chat_template is None:
        return None
    messages: list[Message] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": PROBE},
    ]
    text = _render(tokenizer, messages, begin_answer=False)
    rest = text[text.rindex(PROBE) + len(PROBE) :]
    after = cast("list[int]", tokenizer(rest, add_special_tokens=False)["input_ids"])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((token for token in after if token in special), None)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, begin_answer: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=begin_answer,
            )
        )
    except ValueError as error:
        raise ExportError(f"the chat template refuses these messages: {error}") from error
