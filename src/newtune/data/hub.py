"""Datasets of a hub, through the `datasets` library and its cache, whose files are mapped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, constants

from newtune.data.sources.columnar import ArrowRows, map_arrow
from newtune.data.sources.files import Source
from newtune.data.sources.rows import Table
from newtune.errors import DataError
from newtune.hub import HubError, Repository, diagnose, first_line, is_unreachable
from newtune.logs import logger, notice
from newtune.lookup import did_you_mean, sentence
from newtune.run_dir import write_json

LISTED = 20
"""Most files of a dataset that a message names."""


def open_hub(source: Source, split: str) -> tuple[Table, str]:
    """Return a hub dataset's rows and a fingerprint of their content.

    Without a network, what was read before for exactly this source is read again.

    Raises:
        DataError: there is no such dataset, file or split, it is gated, or the hub cannot be
            reached and the cache does not hold it.
    """
    commit = _reachable_commit(source)
    paths = _remembered(source, split) if commit is None else None
    if paths is None:
        paths = _downloaded(source, split, commit)
    if not paths:
        raise DataError(f"{source.path}: holds no rows.")
    return open_cached(source.path, paths), _fingerprint(paths, source, split)


def open_cached(name: str, paths: Sequence[str]) -> ArrowRows:
    """Return the rows of a dataset's files in the cache, mapped; another process maps them too."""
    table = pa.concat_tables([map_arrow(Path(path), name) for path in paths])
    return ArrowRows(name, table, (open_cached, (name, paths)))


def commit_of(source: Source) -> str:
    """Return the commit that a hub dataset's `revision` (by default `main`) is at now.

    Raises:
        DataError: there is no such dataset or revision, it is gated, or the hub cannot be reached.
    """
    with _in_words(source):
        commit = HfApi().dataset_info(source.path, revision=source.revision).sha
    assert commit is not None
    return commit


def open_hub_stream(source: Source, split: str, commit: str) -> IterableDataset:
    """Return a hub dataset as it is at a commit; its rows come while they are read.

    Nothing is kept on disk.

    Raises:
        DataError: there is no such dataset or split, it is gated, or the hub cannot be reached.
    """
    dataset = _load(replace(source, revision=commit), split, streaming=True)
    assert isinstance(dataset, IterableDataset)
    return dataset


def _reachable_commit(source: Source) -> str | None:
    """Return the commit to read, or None where only the cache can be asked."""
    if constants.is_offline_mode():
        return None
    try:
        return HfApi().dataset_info(source.path, revision=source.revision).sha
    except (HubError, OSError, ValueError) as error:
        if is_unreachable(error):
            return None
        with _in_words(source):
            raise


def _downloaded(source: Source, split: str, commit: str | None) -> tuple[str, ...]:
    """Return the cached files of a dataset, downloaded where they are missing.

    The library answers for a hub that it cannot reach with the newest copy it has, whatever
    `revision` and `data_files` say; that is taken only where they say nothing.
    """
    if commit is None and (source.revision or source.data_files):
        raise DataError(f"{source.path}: {_unreachable(source)}")
    dataset = _load(replace(source, revision=commit), split, streaming=False)
    assert isinstance(dataset, Dataset)
    paths = tuple(str(entry["filename"]) for entry in dataset.cache_files)
    if commit is not None:
        if any(commit not in path for path in paths):
            raise DataError(f"{source.path}: {_unreachable(source)}")
        with suppress(OSError):  # a cache that cannot be written to is good enough with a network
            write_json(_record(source, split), {"commit": commit, "files": paths})
    return paths


def _remembered(source: Source, split: str) -> tuple[str, ...] | None:
    """Return the cached files that this source had when the hub was last reached."""
    record = _record(source, split)
    if not record.is_file():
        return None
    known = json.loads(record.read_text(encoding="utf-8"))
    if not all(Path(path).is_file() for path in known["files"]):
        return None
    notice(f"{source.path}: the hub is not reached; the cached commit {known['commit']} is used")
    return tuple(known["files"])


def _record(source: Source, split: str) -> Path:
    asked = [
        constants.ENDPOINT,
        source.path,
        source.name,
        source.revision,
        source.data_files,
        split,
    ]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "newtune" / f"{name}.json"


def _unreachable(source: Source) -> str:
    said = diagnose(Repository(source.path, "dataset", source.revision))
    return said or "the hub went away while it was read. Try again."


def _load(source: Source, split: str, *, streaming: bool) -> Dataset | IterableDataset:
    if source.trust_remote_code:
        logger.warning(
            "%s: `trust_remote_code` is set; the hub's datasets run no code any more, so it "
            "changes nothing. Pin `revision` to know what you train on.",
            source.path,
        )
    arguments: dict[str, Any] = {}
    if source.data_files:
        arguments["data_files"] = list(source.data_files)
    if streaming:
        arguments["streaming"] = True
    with _in_words(source):
        dataset = load_dataset(
            source.path, source.name, split=split, revision=source.revision, **arguments
        )
    # the library passes over a pattern that matches nothing, if another one matches something
    if len(source.data_files) > 1 and (missing := _missing_files(source)):
        raise DataError(f"{source.path}: {missing}")
    return dataset


@contextmanager
def _in_words(source: Source) -> Iterator[None]:
    """Turn the library's errors into ones that say what to do; the hub itself is asked first."""
    try:
        yield
    except (DatasetsError, HubError, OSError, ValueError, RuntimeError) as error:
        said = diagnose(Repository(source.path, "dataset", source.revision))
        said = said or _missing_files(source) or _own_words(error)
        raise DataError(f"{source.path}: {said}") from error


def _missing_files(source: Source) -> str | None:
    """Say which `data_files` a dataset that can be read does not hold."""
    if not source.data_files:
        return None
    with suppress(HubError, OSError):
        names = HfApi().list_repo_files(source.path, repo_type="dataset", revision=source.revision)
        for wanted in source.data_files:
            if "://" not in wanted and not any(fnmatch(name, wanted) for name in names):
                shown = [name for name in names if not name.startswith(".")]
                more = ", ..." if len(shown) > LISTED else "."
                hint = did_you_mean(wanted, shown)
                return (
                    f"the dataset holds no file `{wanted}` (`data_files`). "
                    f"{f'{sentence(hint)} ' if hint else ''}"
                    f"It holds: {', '.join(shown[:LISTED])}{more}"
                )
    return None


def _own_words(error: Exception) -> str:
    """Return what the library says: an unknown split or configuration, a file that is broken."""
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    line = first_line(cause)
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _fingerprint(paths: Sequence[str], source: Source, split: str) -> str:
    digest = hashlib.sha256(f"{source.path}:{source.name}:{source.revision}:{split}".encode())
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
