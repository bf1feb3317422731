"""What a checkpoint's files call the parameters of a model, where that is something else."""

from collections.abc import Mapping

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)


def stored_names(model: PreTrainedModel) -> Mapping[str, tuple[str, ...]]:
    """Return parameter → its names in the files, by transformers' own mapping; `*` is any number.

    Several names stand for matrices that the model holds as one, such as those of experts.
    """
    mapping = get_model_conversion_mapping(model, add_legacy=False)
    entries = [entry for entry in reversed(mapping) if not isinstance(entry, PrefixChange)]
    reverse = [entry.reverse_transform() for entry in entries]
    renamings = [entry for entry in reverse if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in reverse if isinstance(entry, WeightConverter)]
    targets = {
        source: entry.target_patterns for entry in converters for source in entry.source_patterns
    }
    names = {}
    for name, _ in model.named_parameters():
        stored, source = rename_source_key(name, renamings, converters, reverse=True)
        if stored != name:
            first, *others = targets[source] if source else [stored]
            names[name] = (stored, *(stored.replace(first, other) for other in others))
    return names
