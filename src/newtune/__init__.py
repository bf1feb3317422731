"""newtune: fine-tuning of large language models from one YAML file, with proof of what it did."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newtune.config.load import load_config
    from newtune.config.run import RunConfig
    from newtune.data.prepare import prepare_data
    from newtune.model.load import load_model
    from newtune.plan.plan import make_plan
    from newtune.results import evaluate, merge
    from newtune.run import train

__version__ = "0.1.0"

__all__ = [
    "RunConfig",
    "__version__",
    "evaluate",
    "load_config",
    "load_model",
    "make_plan",
    "merge",
    "prepare_data",
    "train",
]

_HOMES = {
    "RunConfig": "newtune.config.run",
    "load_config": "newtune.config.load",
    "prepare_data": "newtune.data.prepare",
    "load_model": "newtune.model.load",
    "make_plan": "newtune.plan.plan",
    "train": "newtune.run",
    "evaluate": "newtune.results",
    "merge": "newtune.results",
}
"""Public name → its module, imported when the name is first used: torch takes seconds."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module `newtune` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)
