"""`newtune data` and `newtune preprocess` of a stream: its first sequences; nothing is prepared."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newtune.config.run import RunConfig
    from newtune.types import Example


def show_stream(config: "RunConfig", rows: int = 3) -> int:
    """Print the first sequences of a streamed run as they are trained; trained tokens are green."""
    from newtune.data.stream.prepare import peek
    from newtune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer, config.model)
    sequences, names = peek(config, tokenizer, rows)
    console = Console(highlight=False)
    for number, laid in enumerate(sequences, 1):
        tokens = sum(len(example.input_ids) for example in laid.examples)
        console.rule(Text(f"sequence {number}: {tokens:,} tokens"), align="left")
        for example, (source, row) in zip(laid.examples, laid.origins, strict=False):
            console.print(Text(f"{names[source]}, row {row}", style="cyan"), soft_wrap=True)
            console.print(_colored(example, tokenizer), soft_wrap=True)
    return 0


def say_nothing_to_prepare(config: "RunConfig") -> int:
    """Say that a stream is not prepared; its held-out datasets are."""
    from newtune.data.prepare import prepare_held_out
    from newtune.model.tokenizer import load_tokenizer

    console = Console(highlight=False)
    console.print("The training data is streamed: there is nothing to prepare.")
    if config.data.test_datasets:
        tokenizer = load_tokenizer(config.tokenizer, config.model)
        held_out = prepare_held_out(config, tokenizer)
        console.print(f"{held_out.facts.eval_examples:,} held-out examples are prepared.")
    return 0


def _colored(example: "Example", tokenizer: "PreTrainedTokenizerBase") -> Text:
    from newtune.data.inspect.visible import safe

    text = Text()
    trained = (example.labels >= 0).tolist()
    start = 0
    for end in range(1, len(trained) + 1):
        if end < len(trained) and trained[end] == trained[start]:
            continue
        piece = str(tokenizer.decode(example.input_ids[start:end].tolist()))
        text.append(safe(piece), style="bold green" if trained[start] else "dim")
        start = end
    return text
