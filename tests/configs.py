"""A configuration that is valid, to be changed by tests."""

from collections.abc import Mapping
from typing import Any

import pytest

from newtune.config.load import config_from
from newtune.config.run import RunConfig
from newtune.errors import ConfigError

VALID: Mapping[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "learning_rate": 1e-4,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
}


def valid(**changes: Any) -> RunConfig:
    """Return the config; a change of None removes a key."""
    return config_from(changed(changes))


def problems(**changes: Any) -> list[str]:
    """Return `key: message` of each problem of a config that has some."""
    with pytest.raises(ConfigError) as caught:
        config_from(changed(changes))
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def hints(**changes: Any) -> list[str]:
    """Return the hints of a config that has problems."""
    with pytest.raises(ConfigError) as caught:
        config_from(changed(changes))
    return [problem.hint for problem in caught.value.problems]


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    values = {**VALID, **changes}
    return {key: value for key, value in values.items() if value is not None}
