"""Rules about rotary positions."""

from collections.abc import Iterator

from newtune.config.rope import NAMES, wrong_scaling
from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem


@about("overrides_of_model_config")
def scaling_is_whole(config: RunConfig) -> Iterator[Problem]:
    """`rope_scaling` names a type that there is, with its keys: all it needs, and no other."""
    overrides = config.model.overrides_of_model_config or {}
    given = [name for name in NAMES if name in overrides]
    for name in given:
        yield from wrong_scaling(f"overrides_of_model_config.{name}", overrides[name])
    if len(given) > 1:
        path = f"overrides_of_model_config.{given[1]}"
        yield Problem(path, f"says the same as `{given[0]}`", "Keep one of them.")
