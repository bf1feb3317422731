"""One process of several: trains every configuration it is given, one after the other.

worker.py CONFIG ...
"""

import json
import os
import sys
from pathlib import Path

from newtune.config.load import load_config
from newtune.distributed.group import Group, leave_group
from newtune.distributed.world import World
from newtune.errors import NewtuneError
from newtune.run import train


def fail() -> None:
    """Fail as writing a checkpoint may."""
    raise OSError("no room")


def what_is_said(group: Group) -> dict[str, object]:
    """Return what this process hears from the others."""
    try:
        group.on_main(fail)
        heard = "nothing"
    except (NewtuneError, OSError) as error:
        heard = f"{type(error).__name__}: {error}"
    return {
        "numbers": group.numbers([group.rank, 0.5]),
        "sums": group.sums([group.rank + 1, 0.1]),
        "greatest": group.greatest(7 - group.rank),
        "gathered": group.gather(f"process {group.rank}"),
        "main": group.on_main(lambda: "done"),
        "heard": heard,
    }


def main() -> None:
    """Train, then write what was heard."""
    configs = [Path(word) for word in sys.argv[1:]]
    for config in configs:
        own = config.parent / f"process-{os.environ['RANK']}"
        if own.is_dir():  # what a relative path means differs
            os.chdir(own)
        train(load_config(config, []))
    group = Group.of(World.current())
    if group.size > 1:
        said = configs[0].parent / f"said-{group.rank}.json"
        said.write_text(json.dumps(what_is_said(group)))
    leave_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
