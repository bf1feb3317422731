"""`RunConfig`: the sections together; each key of the flat YAML lives in exactly one of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from newtune.config.adapter import AdapterSection
from newtune.config.compute import ComputeSection
from newtune.config.data import DataSection
from newtune.config.evaluation import EvaluationSection
from newtune.config.model import ModelSection
from newtune.config.objective import ObjectiveSection
from newtune.config.output import OutputSection
from newtune.config.parallel import ParallelSection
from newtune.config.placement import PlacementSection
from newtune.config.quantization import QuantizationSection
from newtune.config.section import Section
from newtune.config.sequence import SequenceSection
from newtune.config.tokenizer import TokenizerSection
from newtune.config.tracking import TrackingSection
from newtune.config.training import TrainingSection


@dataclass(frozen=True)
class RunConfig:
    """What the user said; nothing derived. `config.adapter.lora_r` is the YAML's `lora_r`."""

    model: ModelSection
    tokenizer: TokenizerSection
    quantization: QuantizationSection
    placement: PlacementSection
    compute: ComputeSection
    data: DataSection
    sequence: SequenceSection
    adapter: AdapterSection
    objective: ObjectiveSection
    training: TrainingSection
    evaluation: EvaluationSection
    parallel: ParallelSection
    output: OutputSection
    tracking: TrackingSection
    source: Path | None = None
    """The file it was read from."""
    notices: tuple[str, ...] = ()
    """What was translated, and which given keys change nothing in this run."""
    excused: frozenset[str] = frozenset()
    """Given keys that nothing has to read, because a notice has answered them."""

    @property
    def is_streamed(self) -> bool:
        """Say whether the training data is read while the run goes on."""
        return bool(self.data.pretraining_dataset or self.data.streaming)

    @property
    def relora_every(self) -> int | None:
        """The steps of a round of ReLoRA; None where it is off."""
        keys = self.adapter
        if not keys.adapter or keys.relora is False:
            return None
        return keys.relora_steps or (self.training.jagged_restart_steps if keys.relora else None)

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Yield (name, section) in the order of the reference."""
        for name in SECTIONS:
            yield name, getattr(self, name)

    def dump(self) -> dict[str, Any]:
        """Return the resolved flat mapping, defaults included; loading it gives an equal config."""
        return {
            key: value for _, section in self.sections() for key, value in section.dump().items()
        }

    def unread_keys(self) -> list[str]:
        """Return the given keys (`datasets.0.shards`) that nothing has read.

        Keys that ask for what happens anyway (the default, or an "off" value) and keys that a
        notice has answered do not count.
        """
        unread = []
        for _, section in self.sections():
            unread += _unread(section)
            for path, nested in section.nested():
                unread += [f"{path}.{key}" for key in _unread(nested)]
        return [key for key in unread if key not in self.excused]

    def forget_reads(self) -> None:
        """Count no read made so far: the rules have looked at everything."""
        for _, section in self.sections():
            section.forget_reads()


SECTIONS: Mapping[str, type[Section]] = {
    field.name: field.type
    for field in fields(RunConfig)
    if isinstance(field.type, type) and issubclass(field.type, Section)
}
"""The sections by name, in the order of the reference."""

SECTION_OF: Mapping[str, str] = {
    key: name for name, cls in SECTIONS.items() for key in cls.key_names()
}
"""Key of the YAML → name of its section."""


def is_off(value: Any) -> bool:
    """Say whether a value asks for nothing: empty, false, or an empty text or collection."""
    return value is None or value is False or value in ("", (), [], {})


def _unread(section: Section) -> list[str]:
    """Return the given leaves of one section that were not read."""
    return [
        key
        for key in section.key_names()
        if key in section.given() - section.reads()
        and asks_for_something(section, key)
        and not _holds_sections(section.peek(key))
    ]


def asks_for_something(section: Section, key: str) -> bool:
    """Say whether a key's value is neither its default nor "off"."""
    value, default = section.peek(key), section.default(key)
    return value != default and (default is True or not is_off(value))


def _holds_sections(value: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return any(isinstance(item, Section) for item in items)
