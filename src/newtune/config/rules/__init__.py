"""Rules between keys: one small function each; all run, and all problems are reported together.

A rule's docstring is what `newtune explain KEY` shows. A rule is skipped when one of its keys has
been found wrong already.
"""

from collections.abc import Collection

from newtune.config.rules import adapter as _adapter  # noqa: F401 (enters its rules)
from newtune.config.rules import model as _model  # noqa: F401 (enters its rules)
from newtune.config.rules import order as _order  # noqa: F401 (enters its rules)
from newtune.config.rules import relora as _relora  # noqa: F401 (enters its rules)
from newtune.config.rules import rope as _rope  # noqa: F401 (enters its rules)
from newtune.config.rules import streams as _streams  # noqa: F401 (enters its rules)
from newtune.config.rules import training as _training  # noqa: F401 (enters its rules)
from newtune.config.rules.data import has_held_out_data
from newtune.config.rules.rule import RULES, Rule
from newtune.config.run import RunConfig
from newtune.errors import Problem

__all__ = ["RULES", "Rule", "broken_rules", "has_held_out_data"]


def broken_rules(config: RunConfig, wrong_keys: Collection[str] = ()) -> list[Problem]:
    """Return the problems of all rules but those about keys that are wrong already."""
    sound = [rule for rule in RULES if not set(rule.keys) & set(wrong_keys)]
    return [problem for rule in sound for problem in rule.check(config)]
