"""Classes of transformers by the names that a configuration gives them."""

from importlib import import_module
from typing import Any

from newtune.errors import ModelError
from newtune.lookup import did_you_mean

# `dir` of the package, which loads its modules on demand, takes a second each time it is asked.
LIBRARY = import_module("transformers")


def library_class(key: str, name: str, *, like: str) -> Any:
    """Return the class of that name, which a configuration gave as `key`.

    Raises:
        ModelError: transformers has no such class; suggests one of those with `like` in its name.
    """
    if name in LIBRARY.__all__:
        return getattr(LIBRARY, name)
    known = [other for other in LIBRARY.__all__ if like in other]
    raise ModelError(f"{key}: transformers has no class `{name}`; {did_you_mean(name, known)}")
