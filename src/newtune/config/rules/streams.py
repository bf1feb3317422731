"""Rules about data that is read while the run goes on."""

from collections.abc import Iterator

from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem

RAW_TEXT = ("completion", "pretrain")
"""What `type` is for raw text."""

TEXT_TYPES = (None, "", *RAW_TEXT)
"""What `type` of a pretraining dataset may be for it to be raw text."""


@about("pretraining_dataset", "streaming", "max_steps")
def streams_need_an_end(config: RunConfig) -> Iterator[Problem]:
    """Streamed data has no known length: it needs `max_steps`."""
    if config.is_streamed and config.training.max_steps is None:
        yield Problem("max_steps", "is required with streamed data, whose length is unknown")


@about("pretraining_dataset", "streaming")
def pretraining_data_is_streamed(config: RunConfig) -> Iterator[Problem]:
    """`pretraining_dataset` is always streamed: it excludes `streaming: false`."""
    if config.data.pretraining_dataset and config.data.streaming is False:
        hint = "Leave it out; or read all of the text first, as `datasets` of type `completion`."
        yield Problem("streaming", "`false` contradicts `pretraining_dataset`", hint)


@about("pretraining_dataset", "streaming", "val_set_size")
def nothing_is_held_out_of_a_stream(config: RunConfig) -> Iterator[Problem]:
    """No part of streamed data can be held out: it excludes `val_set_size`."""
    if config.is_streamed and config.data.val_set_size:
        hint = (
            "Give `test_datasets`, which are prepared ahead; `skip` leaves the first rows of a "
            "streamed dataset out, so that they can be held out."
        )
        yield Problem("val_set_size", "excludes streamed data, whose size is unknown", hint)


@about(
    "pretraining_dataset",
    "streaming",
    "dataset_exact_deduplication",
    "dataset_shard_num",
    "shuffle_before_merging_datasets",
    "push_dataset_to_hub",
)
def whole_data_is_never_there(config: RunConfig) -> Iterator[Problem]:
    """Streamed data excludes what looks at all rows: deduplication, cutting, shuffling, uploads."""
    remedies = {
        "dataset_exact_deduplication": "Leave duplicates out beforehand.",
        "dataset_shard_num": "`shards` and `shards_idx` cut a single dataset.",
        "shuffle_before_merging_datasets": "The stream is shuffled in its buffer, "
        "`streaming_multipack_buffer_size` examples at a time.",
        "push_dataset_to_hub": "Prepare the data first, without `streaming`.",
    }
    for key, remedy in remedies.items():
        if config.is_streamed and getattr(config.data, key):
            yield Problem(key, "excludes streamed data: it looks at all rows", remedy)


@about(
    "pretraining_dataset",
    "datasets",
    "streaming",
    "pretraining_sample_concatenation",
    "pretrain_multipack_attn",
)
def only_text_is_joined(config: RunConfig) -> Iterator[Problem]:
    """`pretraining_sample_concatenation` and `pretrain_multipack_attn: false` are for raw text."""
    data, sequence = config.data, config.sequence
    if not data.pretraining_dataset:
        return
    asked = {
        "pretraining_sample_concatenation": bool(sequence.pretraining_sample_concatenation),
        "pretrain_multipack_attn": not sequence.pretrain_multipack_attn,
    }
    structured = [
        f"pretraining_dataset.{index}"
        for index, entry in enumerate(data.pretraining_dataset)
        if entry.type not in TEXT_TYPES
    ]
    structured += [f"datasets.{index}" for index in range(len(data.datasets))]
    for key, wanted in asked.items():
        if wanted and structured:
            message = f"is for raw text, and `{structured[0]}` holds more than that"
            yield Problem(key, message, "Its rows have parts that are not trained.")


@about("pretraining_dataset", "streaming", "dataloader_num_workers")
def a_stream_is_read_by_one_thread(config: RunConfig) -> Iterator[Problem]:
    """Streamed data excludes `dataloader_num_workers`: each would read a stream of its own."""
    if config.is_streamed and config.data.dataloader_num_workers:
        hint = "Leave it out: a thread reads the stream ahead while the model trains."
        yield Problem("dataloader_num_workers", "excludes streamed data", hint)


@about("datasets", "pretraining_dataset")
def a_text_column_is_of_raw_text(config: RunConfig) -> Iterator[Problem]:
    """`text_column` is for raw text: other formats have keys of their own for their columns."""
    for name, of_text in (("pretraining_dataset", TEXT_TYPES), ("datasets", RAW_TEXT)):
        for index, entry in enumerate(getattr(config.data, name)):
            if entry.text_column and entry.type not in of_text:
                hint = (
                    "`field_messages` and the other `field_*` keys name columns of other formats."
                )
                key = f"{name}.{index}.text_column"
                yield Problem(key, "is for raw text (`type: completion`)", hint)


@about("pretraining_dataset", "streaming", "dataset_mixing")
def streams_are_mixed_by_tokens(config: RunConfig) -> Iterator[Problem]:
    """Streamed data is mixed by tokens and never ends: of `dataset_mixing` only `by: tokens`."""
    mixing = config.data.dataset_mixing
    if not config.is_streamed or mixing is None:
        return
    wrong = {
        "by": mixing.by != "tokens",
        "exhaust": mixing.exhaust is not None,
        "temperature": mixing.temperature is not None,
    }
    for key, given in wrong.items():
        if given:
            message = "does not go with streamed data, which is mixed by tokens and has no end"
            hint = "A `weight` beside each `path` gives the shares of the tokens."
            yield Problem(f"dataset_mixing.{key}", message, hint)
