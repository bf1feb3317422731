"""`newtune plan CONFIG`: every derived number with its reason; no weights are loaded."""

from pathlib import Path

from newtune.cli.config_file import read_config
from newtune.cli.show_run import show_json, show_plan


def run(config_path: Path, overrides: list[str], *, as_json: bool = False) -> int:
    """Print the plan of a configuration."""
    config = read_config(config_path, overrides)
    from newtune.plan.plan import plan_as_dict
    from newtune.prepare import prepare, refuse_unread_keys

    prepared = prepare(config, trains=True)
    refuse_unread_keys(config)
    if as_json:
        show_json(plan_as_dict(prepared.plan))
    else:
        show_plan(prepared.plan)
    return 0
