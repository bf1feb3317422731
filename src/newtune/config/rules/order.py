"""Rules about the order of the data and how datasets are mixed."""

from collections.abc import Iterator

from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem


@about("curriculum_sampling", "shuffle_before_merging_datasets", "group_by_length")
def kept_order_is_not_shuffled(config: RunConfig) -> Iterator[Problem]:
    """`curriculum_sampling` keeps the order of the files: nothing else may order the data."""
    if not config.sequence.curriculum_sampling:
        return
    against = {
        "shuffle_before_merging_datasets": config.data.shuffle_before_merging_datasets,
        "group_by_length": config.sequence.group_by_length,
    }
    for key, contradicts in against.items():
        if contradicts:
            message = "excludes `curriculum_sampling`, which keeps the order of the files"
            yield Problem(key, message, "Keep one of them.")


@about("eval_sequence_len", "test_datasets", "val_set_size")
def split_off_data_has_the_training_length(config: RunConfig) -> Iterator[Problem]:
    """`eval_sequence_len` is for `test_datasets`: what is split off has the training's length."""
    length = config.sequence.eval_sequence_len
    if length in (None, config.sequence.sequence_len) or not config.data.val_set_size:
        return
    message = "is for `test_datasets`; what `val_set_size` splits off has `sequence_len`"
    yield Problem("eval_sequence_len", message, "Leave it out, or give `test_datasets`.")


@about("test_datasets")
def held_out_data_is_not_mixed(config: RunConfig) -> Iterator[Problem]:
    """A `weight` is for training data: held-out data is read once, as it is."""
    for index, entry in enumerate(config.data.test_datasets):
        if entry.weight is not None:
            message = "is for training data: held-out data is read once, as it is"
            yield Problem(f"test_datasets.{index}.weight", message, "Leave it out.")


@about("dataset_mixing", "datasets")
def shares_come_from_weights_or_sizes(config: RunConfig) -> Iterator[Problem]:
    """Mixing `by: rows` or `tokens` needs the `weight` of every dataset, or a `temperature`."""
    mixing = config.data.dataset_mixing
    if mixing is None or mixing.by == "repeats":
        return
    weights = [entry.weight for entry in config.data.datasets]
    if mixing.temperature is None and None in weights:
        path = f"datasets.{weights.index(None)}.weight"
        hint = "Give every dataset one, or `dataset_mixing.temperature` in place of all."
        yield Problem(path, f"is required with `dataset_mixing.by: {mixing.by}`", hint)
    if mixing.temperature is not None and any(weight is not None for weight in weights):
        message = "excludes the datasets' `weight`: it makes the shares from the sizes"
        yield Problem("dataset_mixing.temperature", message, "Keep one of them.")


@about("dataset_mixing")
def repeats_need_no_shares(config: RunConfig) -> Iterator[Problem]:
    """`exhaust` and `temperature` are for mixing `by: rows` or `tokens`."""
    mixing = config.data.dataset_mixing
    if mixing is None or mixing.by != "repeats":
        return
    for key in ("exhaust", "temperature"):
        if getattr(mixing, key) is not None:
            message = "needs `dataset_mixing.by: rows` or `tokens`"
            hint = "With `repeats` each example stands as often as its dataset's `weight` says."
            yield Problem(f"dataset_mixing.{key}", message, hint)
