"""Datasets of a hub, through the `datasets` library and its cache."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its client's
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from newtune.data.sources.columnar import ArrowRows
from newtune.data.sources.files import Source
from newtune.data.sources.rows import Table
from newtune.errors import DataError
from newtune.logs import logger


def open_hub(source: Source, split: str) -> tuple[Table, str]:
    """Return a hub dataset's rows and a fingerprint of their content.

    Raises:
        DataError: there is no such dataset or split, it is gated, or the hub cannot be reached.
    """
    dataset = _load(source, split, streaming=False)
    assert isinstance(dataset, Dataset)
    table = dataset.with_format("arrow")[:] if len(dataset) else dataset.data.table
    return ArrowRows(source.path, table), _fingerprint(dataset, source, split)


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
        return load_dataset(
            source.path, source.name, split=split, revision=source.revision, **arguments
        )


@contextmanager
def _in_words(source: Source) -> Iterator[None]:
    """Turn the library's errors into ones that say what to do."""
    try:
        yield
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        raise DataError(_not_found(source, error)) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{source.path}: the dataset has no revision `{source.revision}`. Give a branch, a "
            "tag or a commit of its page, or leave `revision` out."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise DataError(
            f"{source.path}: the hub cannot be reached and the dataset is not in the local cache: "
            f"{_first_line(error)} Download it where there is a network and set HF_HOME to that "
            "cache, or give a local `path`."
        ) from error
    except (ValueError, RuntimeError) as error:  # unknown split, config name, or a loading script
        raise DataError(f"{source.path}: {_first_line(error)}") from error


def _not_found(source: Source, error: Exception) -> str:
    gated = isinstance(error, GatedRepoError) or "is a gated dataset" in str(error)
    if gated:
        return (
            f"{source.path}: the dataset is gated. Accept its terms on its page, then give a "
            "token: `hf auth login`, or the variable HF_TOKEN."
        )
    return (
        f"{source.path}: neither a local file or folder nor a dataset of the hub. Check the "
        "spelling; a private dataset needs a token (`hf auth login`, or HF_TOKEN)."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line if line.endswith(".") else line + "."


def _fingerprint(dataset: Dataset, source: Source, split: str) -> str:
    digest = hashlib.sha256(f"{source.path}:{source.name}:{source.revision}:{split}".encode())
    for entry in dataset.cache_files:
        with Path(entry["filename"]).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
