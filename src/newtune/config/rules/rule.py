"""What a rule between keys is, and the list that rules are entered into."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from newtune.config.run import RunConfig
from newtune.errors import Problem
from newtune.lookup import did_you_mean, sentence

Check = Callable[[RunConfig], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A rule and the keys it is about."""

    keys: tuple[str, ...]
    check: Check

    @property
    def says(self) -> str:
        """The rule in one sentence."""
        return str(self.check.__doc__).splitlines()[0]


RULES: list[Rule] = []
"""Every rule, in the order of the sections."""


def about(*keys: str) -> Callable[[Check], Check]:
    """Enter a function into `RULES` as a rule about these keys."""

    def enter(check: Check) -> Check:
        RULES.append(Rule(keys, check))
        return check

    return enter


def known_name(
    key: str, name: str, names: tuple[str, ...], refused: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield a problem if `name` is none of `names`, or one that is `refused` (→ the reason)."""
    if name in refused:
        yield Problem(key, f"`{name}` is not supported: {refused[name]}")
    elif name not in names:
        usable = sorted(set(names) - set(refused))
        hint = did_you_mean(name, usable) or f"Known: {', '.join(usable)}."
        yield Problem(key, f"no {key} `{name}`", sentence(hint))
