"""The commands printed in the documentation exist, with their options, targets and files.

Read off every fenced shell block and every command in a code span of the pages below.
"""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from newtune.cli.main import app
from newtune.config.overrides import parse_overrides
from newtune.config.run import SECTIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    ]
)
SHELLS = {"bash", "sh", "shell", "console"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:newtune|make|python3? -m newtune)[^`\n]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ASSIGNMENT = re.compile(r"^[A-Z_]+=")
FILE = re.compile(r"^[\w./-]+\.(?:ya?ml|jsonl?|py|md|txt|toml)$")
# Made by a run or by the reader, so absent from a fresh clone.
MADE_LATER = ("outputs/", "models/", "my", "path/to/", "FILE", "CONFIG")


def shell_lines(page: str) -> Iterator[str]:
    """Yield the command lines of a page, continuations joined, prompts taken off."""
    for language, block in FENCE.findall(page):
        if language in SHELLS:
            lines = block.replace("\\\n", " ").splitlines()
            shown = [line for line in lines if line.startswith("$ ")]
            yield from (line.removeprefix("$ ") for line in shown or lines)
    yield from SPAN.findall(FENCE.sub("", page))


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without comments and leading assignments."""
    for line in shell_lines(page):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>"):
                if words:
                    yield words
                words = []
            elif words or not ASSIGNMENT.match(word):
                words.append(word)


@cache
def cli() -> TyperGroup:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


@cache
def make_targets() -> frozenset[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def problem_with_newtune(words: list[str]) -> str | None:
    """Return what is wrong with `newtune WORDS...`."""
    if not words or words[0].startswith("-") or words[0] in {"COMMAND", "..."}:
        return None
    command = cli().commands.get(words[0])
    if command is None:
        return f"there is no command `newtune {words[0]}`"
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    options |= {option for parameter in command.params for option in parameter.secondary_opts}
    given = [word for word in words[1:] if re.match(r"--[a-z]", word)]
    unknown = [word for word in given if word.partition("=")[0] not in options]
    takes_keys = command.context_settings.get("ignore_unknown_options")
    for word in unknown:
        if not (takes_keys and is_key(word)):
            return f"`newtune {words[0]}` has no option and the configuration no key `{word}`"
    return None


def is_key(word: str) -> bool:
    """Say whether `--learning-rate` or `--datasets.0.path` names a configuration key."""
    [(path, _)] = parse_overrides([f"{word.partition('=')[0]}=1"], SECTIONS.values())
    sections = tuple(SECTIONS.values())
    for key in path:
        if isinstance(key, str):
            owner = next((section for section in sections if key in section.key_names()), None)
            if owner is None:
                return False
            below = owner.sections_below().get(key)
            if below is None:
                return True  # a plain value, or a mapping whose keys belong to a library
            sections = (below,)
    return True


def problem_with_make(words: list[str]) -> str | None:
    """Return what is wrong with `make WORDS...`."""
    for word in words:
        if not (word.startswith("-") or ASSIGNMENT.match(word) or word in make_targets()):
            return f"the Makefile has no target `{word}`"
    return None


def problem_with_python(words: list[str]) -> str | None:
    """Return what is wrong with `python WORDS...`: a module of ours that is not there."""
    if len(words) < 2 or words[0] != "-m" or not words[1].startswith("newtune"):
        return None
    return None if importlib.util.find_spec(words[1]) else f"there is no module {words[1]}"


CHECKS = {
    "newtune": problem_with_newtune,
    "make": problem_with_make,
    "python": problem_with_python,
    "python3": problem_with_python,
}


def problem_with(words: list[str]) -> str | None:
    """Return what is wrong with a command, or None."""
    name, *rest = words
    if name in CHECKS and (problem := CHECKS[name](rest)):
        return problem
    files = [word for word in rest if FILE.match(word) and "/" in word]
    missing = [word for word in files if not word.startswith(MADE_LATER)]
    missing = [word for word in missing if not (ROOT / word).exists()]
    return f"there is no file {missing[0]}" if missing else None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_exist(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    found = [(words, problem_with(words)) for words in commands(page)]
    wrong = [f"`{shlex.join(words)}`: {problem}" for words, problem in found if problem]
    assert not wrong, "\n".join([f"{path.name}:", *wrong])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    targets = LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    local = [
        target for target in targets if "://" not in target and not target.startswith("mailto")
    ]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("newtune train recipes/quickstart.yaml --learning-rate 1e-4", None),
        ("newtune train recipes/quickstart.yaml --datasets.0.path x --resume", None),
        ("newtune trane recipes/quickstart.yaml", "no command `newtune trane`"),
        ("newtune train recipes/quickstart.yaml --learning-rat 1", "no key `--learning-rat`"),
        ("newtune validate recipes/nothing.yaml", "no file recipes/nothing.yaml"),
        ("cd x && make quickstart PYTHON=python3.12  # a comment", None),
        ("PYTHON=python3.12 make quikstart", "no target `quikstart`"),
        ("python -m newtune.cli.train recipes/quickstart.yaml", None),
        ("python -m newtune.nothing", "no module newtune.nothing"),
    ],
)
def test_the_reading_of_a_command(line: str, problem: str | None) -> None:
    found = [problem_with(words) for words in commands(f"```bash\n{line}\n```\n")]
    problems = [text for text in found if text]
    assert (not problems) if problem is None else (problem in problems[0])
