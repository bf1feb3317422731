"""Greedy answers in batches, and streamed answers for a chat."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextIteratorStreamer

from newtune.model.head import base_model
from newtune.model.placement import input_device


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """Return for each prompt the most likely tokens after it, up to and without a stop id.

    Prompts are batched by length, padded at the left, which changes no answer; where it would (a
    state that takes the padding in), just prompts of one length share a batch. The model's training
    mode is restored.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _answering(model) as generate:
        for chosen in _batches(prompts, batch_size, padded=not base_model(model)._is_stateful):
            ids, mask = _pad_left([prompts[i] for i in chosen], int(tokenizer.pad_token_id))
            output = generate(ids, attention_mask=mask, generation_config=config)
            for index, row in zip(chosen, output[:, ids.shape[1] :].tolist(), strict=True):
                answers[index] = _until_stop(row, stop_ids)
    return answers


def stream_chat(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[str]:
    """Yield the answer piece by piece as text; `temperature` 0 takes the likeliest token."""
    sampling = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        use_cache=True,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failures: list[BaseException] = []

    def answer() -> None:
        try:
            with _answering(model) as generate:
                ids = torch.tensor([list(prompt)])
                mask = torch.ones_like(ids)
                generate(ids, attention_mask=mask, generation_config=config, streamer=streamer)
        except BaseException as error:  # handed over to the thread that reads
            failures.append(error)
            raise
        finally:
            streamer.end()  # type: ignore[no-untyped-call]

    worker = Thread(target=answer, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failures:
        raise failures[0]


def _batches(prompts: Sequence[Sequence[int]], size: int, *, padded: bool) -> Iterator[list[int]]:
    """Yield the indices of the prompts of each batch, the longest first."""
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for _, alike in groupby(longest_first, key=lambda index: padded or len(prompts[index])):
        indices = list(alike)
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


@contextmanager
def _answering(model: nn.Module) -> Iterator[Callable[..., Tensor]]:
    """Yield the model's `generate`, without gradients and dropout, in the weights' 16 bit."""
    base = base_model(model)
    was_training = model.training
    device = input_device(base)
    model.eval()

    def generate(ids: Tensor, *, attention_mask: Tensor, **options: Any) -> Tensor:
        output: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=attention_mask.to(device), **options
        )
        return output

    try:
        with torch.no_grad(), _autocast(base):
            yield generate
    finally:
        model.train(was_training)


def _autocast(model: nn.Module) -> AbstractContextManager[Any]:
    """Return autocast where float32 adapters meet 16-bit weights, as in training."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    halves = dtypes - {torch.float32, torch.float64}
    if len(dtypes) == 1 or not halves:
        return nullcontext()
    return torch.autocast(input_device(model).type, dtype=halves.pop())


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[pad_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return torch.tensor(ids), torch.tensor(mask)


def _until_stop(row: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [index for index, token in enumerate(row) if token in stop_ids]
    return row[: ends[0]] if ends else row
