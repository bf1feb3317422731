"""`make install-gptq` follows nobody's requirements: it replaces nothing but what it names."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = [
    line
    for line in (ROOT / "requirements" / "gptq.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
NAMES = {re.split(r"[=<>~!]", line)[0] for line in LINES}


def recipe() -> str:
    """The lines of the Makefile that install it."""
    text = (ROOT / "Makefile").read_text()
    return text.partition("/.gptq: requirements/gptq.txt")[2].partition("\n\n")[0]


def test_torch_and_what_newtune_needs_are_not_among_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in project["dependencies"]}
    assert "torch" in own
    assert not NAMES & {*own, "triton", "torchvision", "torchaudio", "tokenizers"}
    assert {"gptqmodel", "optimum"} <= NAMES


def test_all_of_them_have_a_version() -> None:
    assert all(re.fullmatch(r"[a-z-]+(==\d+(\.\d+)+|>=\d+)", line) for line in LINES), LINES


def test_it_is_installed_without_requirements() -> None:
    installs = [line for line in recipe().splitlines() if "$(PIP) install" in line]
    assert [line.partition("install ")[2] for line in installs] == [
        "setuptools wheel",  # what builds the others
        "--no-deps --no-build-isolation -r requirements/gptq.txt",
    ]
