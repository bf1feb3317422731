"""newtune starts with what a plain installation brings: no module of it needs an extra's package.

The development environment has every extra, so nothing else would notice.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "newtune"
LAZY = {
    "gguf": SOURCE / "outputs" / "export",
    "deepspeed": SOURCE / "training" / "zero.py",
    "ray": SOURCE / "distributed" / "ray_launch.py",
}
"""Extras' packages, and the place that is imported for a command which has asked for them."""


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def plain_requirements(distribution: str) -> set[str]:
    """What a distribution needs without any of its extras."""
    return {name_of(line) for line in requires(distribution) or () if "extra ==" not in line}


def plain_installation() -> set[str]:
    """newtune's dependencies, and theirs."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    reached, ahead = set[str](), {name_of(line) for line in declared}
    while ahead:
        name = ahead.pop()
        reached.add(name)
        try:
            ahead |= plain_requirements(name) - reached
        except ModuleNotFoundError:  # of another platform or Python
            continue
    return reached


def imported_when_loaded(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def missing_from(path: Path, installed: set[str], distributions: dict[str, list[str]]) -> set[str]:
    """The packages that a module imports and a plain installation lacks."""
    foreign = set(imported_when_loaded(path)) - set(sys.stdlib_module_names) - {"newtune"}
    return {
        package
        for package in foreign
        if not installed
        & {name.lower().replace("_", "-") for name in distributions.get(package, ())}
        and not (package in LAZY and path.is_relative_to(LAZY[package]))
    }


def test_modules_import_only_what_a_plain_installation_brings() -> None:
    installed, distributions = plain_installation(), dict(packages_distributions())
    for path in SOURCE.rglob("*.py"):
        assert missing_from(path, installed, distributions) == set(), path


def test_an_import_of_an_extra_is_found(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    module = tmp_path / "module.py"
    module.write_text("import numpy\nfrom aiohttp import ClientError\n")
    found = missing_from(module, plain_installation(), dict(packages_distributions()))
    assert found == {"aiohttp"}
