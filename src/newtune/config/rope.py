"""How rotary positions can be scaled: each type's keys, and what their values may be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from newtune.errors import Problem
from newtune.lookup import did_you_mean, sentence


@dataclass(frozen=True)
class Scaling:
    """The keys of one type of scaling."""

    needed: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


SCALINGS: Mapping[str, Scaling] = {
    "default": Scaling(),
    "linear": Scaling(("factor",)),
    "dynamic": Scaling(("factor",)),
    "yarn": Scaling(
        ("factor",),
        (
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate", "llama_4_scaling_beta",
        ),
    ),
    "llama3": Scaling(
        ("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)
    ),
    "longrope": Scaling(
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
    "proportional": Scaling((), ("factor",)),
}  # fmt: skip
"""transformers' `rope_type` → its keys."""
OF_THE_MODEL = (
    "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved",
)  # fmt: skip
"""Keys of a model's rotary positions that stay when the type of their scaling changes."""
NAMES_OF_TYPE = ("type", "rope_type")
NAMES = ("rope_scaling", "rope_parameters")
"""What the fields of a model's configuration are called, in files of old and of transformers 5."""


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_stretch(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_positive, value))


_LENGTH = (_is_length, "a whole number of tokens")
_FACTORS = (_is_list, "a list of numbers above 0, one for each angle")
KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "factor": (_is_stretch, "a number of at least 1"),
    "original_max_position_embeddings": _LENGTH,
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
    "truncate": (lambda value: isinstance(value, bool), "true or false"),
    "mrope_interleaved": (lambda value: isinstance(value, bool), "true or false"),
    "mrope_section": (_is_list, "a list of whole numbers"),
}
"""Key → whether a value fits, and what fits; every other key takes a number above 0."""
_POSITIVE = (_is_positive, "a number above 0")


def type_of(given: Mapping[str, Any]) -> Any:
    """Return the type that is named, by today's spelling or the older one; None if none is."""
    return given.get("rope_type", given.get("type"))


def by_layer(given: Any) -> bool:
    """Tell whether it is given for each kind of layers, as in `{full_attention: {...}}`."""
    if not isinstance(given, Mapping) or not given:
        return False
    return all(isinstance(value, Mapping) for value in given.values())


def wrong_scaling(path: str, given: Any) -> Iterator[Problem]:
    """Yield what is wrong with a scaling, whatever the model: its type, its keys, their values."""
    if not isinstance(given, Mapping):
        hint = "Example: `{type: linear, factor: 2.0}`."
        yield Problem(path, f"got `{given}`; expected a mapping", hint)
    elif by_layer(given):
        for layer, inner in given.items():
            yield from wrong_scaling(f"{path}.{layer}", inner)
    else:
        yield from _of_type(path, given)
        yield from _of_values(path, given)


def missing_keys(path: str, kind: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the keys that a type of scaling needs and has not."""
    for key in SCALINGS[kind].needed:
        if key not in given:
            kinds = KINDS.get(key, _POSITIVE)[1]
            message = f"`{kind}` needs `{key}`; got {_listing(given) or 'nothing'}"
            yield Problem(f"{path}.{key}", message, f"Give {kinds}.")


def _of_type(path: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    kind = type_of(given)
    if len({str(given[name]) for name in NAMES_OF_TYPE if name in given}) > 1:
        yield Problem(f"{path}.type", "contradicts `rope_type`", "Keep one of them.")
    elif kind is not None and kind not in SCALINGS:
        hint = did_you_mean(str(kind), SCALINGS)
        message = f"no scaling `{kind}`; known: {_listing(SCALINGS)}"
        yield Problem(f"{path}.type", message, sentence(hint))
    else:
        yield from _of_keys(path, kind, given)


def _of_keys(path: str, kind: str | None, given: Mapping[str, Any]) -> Iterator[Problem]:
    kinds = SCALINGS if kind is None else (kind,)
    keys = [key for name in kinds for key in (*SCALINGS[name].needed, *SCALINGS[name].further)]
    allowed = tuple(dict.fromkeys(("type", *keys, *OF_THE_MODEL)))
    unknown = [key for key in given if key not in (*allowed, *NAMES_OF_TYPE)]
    for key in unknown:
        of = "a scaling" if kind is None else f"`{kind}`"
        hint = did_you_mean(key, allowed)
        message = f"is no key of {of}; it has: {_listing(allowed)}"
        yield Problem(f"{path}.{key}", message, sentence(hint))
    if kind is not None and not unknown:
        yield from missing_keys(path, kind, given)


def _of_values(path: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = {key for kind in SCALINGS.values() for key in (*kind.needed, *kind.further)}
    for key, value in given.items():
        fits, wanted = KINDS.get(key, _POSITIVE)
        if key in known.union(OF_THE_MODEL) and not fits(value):
            yield Problem(f"{path}.{key}", f"got `{value}`; expected {wanted}")
    low, high = given.get("low_freq_factor"), given.get("high_freq_factor")
    if _is_number(low) and _is_number(high) and high <= low:
        message = f"got `{high}`; expected more than `low_freq_factor`, which is `{low}`"
        yield Problem(f"{path}.high_freq_factor", message)


def _listing(names: Mapping[str, Any] | tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
