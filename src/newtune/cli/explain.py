"""`newtune explain KEY`: what a key takes, means and does."""

from newtune.cli.show import show_pairs
from newtune.config.explain import key_lines
from newtune.config.keys import find_key


def run(key: str) -> int:
    """Print a key; several, if the name stands in several places."""
    for info in find_key(key):
        show_pairs(key_lines(info))
    return 0
