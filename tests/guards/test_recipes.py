"""Every recipe, and every configuration shown in the documentation, is valid."""

import re
from pathlib import Path

import pytest

from newtune.config.load import load_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
SHOWN = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if re.search(r"^base_model:", text, re.MULTILINE)
]


OLD_SPELLINGS = {"fsdp_lora.yaml": ("`fsdp: full_shard` is now", "`fsdp: auto_wrap` is now")}
"""Recipes as older configurations write them → how their notices begin."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_are_valid_without_a_notice(recipe: Path) -> None:
    notices = load_config(recipe).notices
    expected = OLD_SPELLINGS.get(recipe.name, ())
    assert [text for text in notices if not text.startswith(expected or "nothing")] == []
    assert len(notices) == len(expected)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_tell_editors_their_schema(recipe: Path) -> None:
    assert recipe.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=")


@pytest.mark.parametrize("text", SHOWN)
def test_configurations_in_the_documentation_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(text, encoding="utf-8")
    load_config(file)


def test_there_are_recipes() -> None:
    assert RECIPES
