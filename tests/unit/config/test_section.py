"""`Section` records reads by attribute, and only those."""

import pytest
from pydantic import ValidationError

from newtune.config.adapter import AdapterSection
from newtune.config.data import DataSection, PromptSection
from newtune.config.training import TrainingSection


def test_reading_a_key_is_recorded() -> None:
    section = TrainingSection.model_validate({"learning_rate": 1e-4, "num_epochs": 3})
    assert section.reads() == frozenset()
    assert section.learning_rate == 1e-4
    assert section.reads() == {"learning_rate"}


def test_looking_is_not_reading() -> None:
    section = TrainingSection.model_validate({"learning_rate": 1e-4})
    section.dump()
    repr(section)
    section.model_dump_json()
    assert section.peek("learning_rate") == 1e-4
    assert section == TrainingSection.model_validate({"learning_rate": 1e-4})
    assert section.reads() == frozenset()


def test_nested_sections_record_their_own_reads() -> None:
    section = DataSection.model_validate({"datasets": [{"path": "a", "type": {"format": "x"}}]})
    (entry,) = section.datasets
    assert isinstance(entry.type, PromptSection)
    assert entry.type.format == "x"
    assert {path: below.reads() for path, below in section.nested()} == {
        "datasets.0": {"type"},
        "datasets.0.type": {"format"},
    }
    section.forget_reads()
    assert all(not below.reads() for _, below in section.nested())


def test_sections_are_frozen() -> None:
    section = AdapterSection.model_validate({"lora_r": 4})
    with pytest.raises(ValidationError, match="frozen"):
        section.lora_r = 8  # type: ignore[misc]


@pytest.mark.parametrize("value", ["8", 8.5, True])
def test_types_are_strict(value: object) -> None:
    with pytest.raises(ValidationError):
        AdapterSection.model_validate({"lora_r": value})


def test_a_whole_number_is_a_number() -> None:
    section = TrainingSection.model_validate({"num_epochs": 3})
    assert section.num_epochs == 3.0
    assert isinstance(section.num_epochs, float)


def test_lists_become_tuples() -> None:
    section = AdapterSection.model_validate({"lora_target_modules": ["q_proj", "v_proj"]})
    assert section.lora_target_modules == ("q_proj", "v_proj")


def test_docs_come_from_the_docstring_below_a_key() -> None:
    assert AdapterSection.docs()["lora_r"] == "Rank of the adapter's matrices."
