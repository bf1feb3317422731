"""Which files of this machine a path or pattern names, and in what order."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from newtune.data.sources.kinds import KINDS, kind_of
from newtune.errors import DataError
from newtune.lookup import did_you_mean, sentence

SPLITS: Mapping[str, frozenset[str]] = {
    "train": frozenset(("train", "training")),
    "test": frozenset(("test", "testing", "eval", "evaluation")),
    "validation": frozenset(("validation", "valid", "val", "dev")),
}
"""Split → words in names of files and folders that mean it, as on the hub."""

DESCRIPTIONS = frozenset(
    ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
)
"""What `datasets` writes beside data, with `save_to_disk` for one."""


@dataclass(frozen=True)
class Source:
    """One configured dataset's place: a file, a folder, or a hub id, and which rows of it."""

    path: str
    kind: str | None = None
    """`ds_type`; None reads it off the file's name."""
    data_files: tuple[str, ...] = ()
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    trust_remote_code: bool = False
    shards: int | None = None
    shard: int = 0
    base_folder: Path = Path()
    """Where relative paths are looked up besides the working directory."""
    cache_folder: Path = Path("last_run_prepared/sources")
    """Where files are unpacked, downloaded and indexed."""
    drop_malformed: bool = False
    """Rows that cannot be read become `Malformed` ones, to be counted and listed."""


@dataclass(frozen=True)
class Found:
    """A file on this machine and the name that the user knows it by."""

    path: Path
    name: str


def local_files(path: str, folder: Path, split: str, kind: str | None) -> list[Found] | None:
    """Return the files of a path, a folder or a pattern; None for what may be a hub id.

    Raises:
        DataError: the path is not there.
    """
    root = existing(path, folder)
    if root is None and has_magic(path):
        return _matching(path, folder)
    if root is None and _looks_local(path):
        raise DataError(f"{path}: no such file or folder. {_similar(path, folder)}")
    if root is None:
        return None
    if root.is_file():
        return [Found(root, str(root))]
    return [Found(file, str(file)) for file in _files_of_folder(root, split, kind)]


def named_files(name: str, folder: Path) -> list[Found]:
    """Return the file, or the files of a pattern, in a folder.

    Raises:
        DataError: it is not there.
    """
    found = existing(name, folder)
    if found is not None:
        return [Found(found, str(found))]
    if has_magic(name):
        return _matching(name, folder)
    raise DataError(f"{name}: no such file in {folder.resolve()}. {_similar(name, folder)}")


def _matching(pattern: str, folder: Path) -> list[Found]:
    given = Path(pattern).expanduser()
    places = [Path(given.anchor)] if given.is_absolute() else [folder, Path()]
    relative = str(given.relative_to(given.anchor))
    for place in places:
        paths = sorted(path for path in place.glob(relative) if path.is_file())
        if paths:
            return [Found(path, str(path)) for path in paths]
    raise DataError(f"{pattern}: no file matches this pattern in {folder.resolve()}.")


def existing(name: str, folder: Path) -> Path | None:
    """Return the path, taken from the folder or else the working directory, if it is there."""
    given = Path(name).expanduser()
    candidates = [folder / given, given]
    return next((path for path in candidates if path.exists()), None)


def _looks_local(path: str) -> bool:
    """Tell a path from a hub id: hub ids have at most one slash and no data suffix."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return kind_of(path) is not None


def _similar(name: str, folder: Path) -> str:
    parent = (folder / Path(name).expanduser()).parent
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(Path(name).name, names)
    if hint:
        return sentence(hint)
    return (
        "Check `path`; it is taken from the folder of the configuration file, else from the "
        "working directory."
    )


def _files_of_folder(folder: Path, split: str, kind: str | None) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    return [folder / name for name in choose_files(names, split, kind, str(folder))]


def choose_files(names: Sequence[str], split: str, kind: str | None, place: str) -> list[str]:
    """Return a folder's data files in order: those of the split by their names.

    Names are relative, with `/`. Text counts when it was asked for or there is nothing else.

    Raises:
        DataError: there is none, or they are named after other splits; `place` is named.
    """
    files = sorted(name for name in names if kind_of(name) and not _base(name).startswith("."))
    files = [name for name in files if _base(name) not in DESCRIPTIONS]
    if any(kind_of(name) != "text" for name in files):
        files = [name for name in files if kind_of(name) != "text" or kind == "text"]
    if not files:
        raise DataError(f"{place}: no data file in it ({', '.join(sorted(KINDS))}).")
    words = {name: re.split(r"[-_.]", _base(name)) for name in files}
    named = [name for name in files if split in words[name]]
    named = named or [name for name in files if split in name.split("/")]
    return named or _of_split(
        {name: _split_of([*words[name], *name.split("/")]) for name in files}, split, place
    )


def _of_split(splits: Mapping[str, str | None], split: str, place: str) -> list[str]:
    """Return the files of a split that goes by another name, or that no name tells."""
    wanted = _split_of([split])
    aliases = [name for name, other in splits.items() if wanted and other == wanted]
    nameless = [name for name, other in splits.items() if other is None]
    if aliases:
        return aliases
    if nameless and (wanted == "train" or len(nameless) == len(splits)):
        return nameless
    has = ", ".join(sorted({f"`{other}`" for other in splits.values() if other}))
    raise DataError(
        f"{place}: no file in it is named after the split `{split}`; it has {has}. "
        "Set `split`, or `data_files`."
    )


def _split_of(words: Sequence[str]) -> str | None:
    """Return the split that one of the words names."""
    return next((split for split, names in SPLITS.items() if names & {*words}), None)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
