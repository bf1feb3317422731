"""Datasets of a hub, through the `datasets` library and its cache, whose files are mapped."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi

from newtune.data.sources.columnar import ArrowRows, map_arrow
from newtune.data.sources.files import Source
from newtune.data.sources.rows import Table
from newtune.errors import DataError
from newtune.hub import HubError, Repository, diagnose, first_line
from newtune.logs import logger
from newtune.lookup import did_you_mean

LISTED = 20
"""Most files of a dataset that a message names."""


def open_hub(source: Source, split: str) -> tuple[Table, str]:
    """Return a hub dataset's rows and a fingerprint of their content.

    Raises:
        DataError: there is no such dataset, file or split, it is gated, or the hub cannot be
            reached and the cache does not hold it.
    """
    dataset = _load(source, split, streaming=False)
    assert isinstance(dataset, Dataset)
    paths = tuple(entry["filename"] for entry in dataset.cache_files)
    rows = open_cached(source.path, paths) if paths else ArrowRows(source.path, dataset.data.table)
    assert len(rows) == len(dataset)
    return rows, _fingerprint(paths, source, split)


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
                    f"{f'{hint[:1].upper()}{hint[1:]} ' if hint else ''}"
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
