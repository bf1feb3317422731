"""Whatever is given, the answer is a config or a ConfigError; never a crash."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from configs import VALID
from newtune.config.data import DatasetSection, PromptSection
from newtune.config.legacy import OldDatasetSpellings
from newtune.config.load import TOP_LEVEL, config_from
from newtune.config.yaml_file import EMPTY
from newtune.errors import ConfigError

ENTRY_KEYS = [
    *DatasetSection.key_names(),
    *PromptSection.key_names(),
    *OldDatasetSpellings.key_names(),
]
scalars = st.one_of(
    st.none(),
    st.just(EMPTY),
    st.booleans(),
    st.integers(-2, 10**6),
    st.floats(allow_nan=False),
    st.sampled_from(["", "auto", "lora", "no", "steps", "full_shard", "sharegpt", "x", "1e-4"]),
)
names = st.sampled_from([*ENTRY_KEYS, *TOP_LEVEL]) | st.integers(0, 3)
trees = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(names, below, max_size=4),
    max_leaves=10,
)
entries = st.dictionaries(st.sampled_from(ENTRY_KEYS), trees, max_size=5)
files = st.fixed_dictionaries(
    {},
    optional={
        "datasets": st.lists(entries, max_size=2) | trees,
        "test_datasets": st.lists(entries, max_size=2) | trees,
        "pretraining_dataset": st.lists(entries, max_size=2) | trees,
    },
)


@given(files, st.dictionaries(st.sampled_from(list(TOP_LEVEL)), trees, max_size=6))
def test_no_value_of_any_key_crashes(file: dict[str, Any], more: dict[str, Any]) -> None:
    try:
        config = config_from({**VALID, **more, **file})
    except ConfigError:
        return
    config.unread_keys()
    config.dump()
