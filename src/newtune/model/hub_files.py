"""The weights of a checkpoint on a hub: which files they are, and fetching them ahead."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

from newtune.errors import ModelError
from newtune.hub import HubError
from newtune.model.sources import Source, cannot_load, repository_files

INDEXED = {
    "model.safetensors.index.json": "model.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model.bin",
}
"""Index of weights in several files → the file that holds them all otherwise; the first that a
repository has is what transformers loads."""


def fetch_weights(source: Source, revision: str | None) -> None:
    """Download a checkpoint's weights into the cache, where loading finds them.

    Raises:
        ModelError: there are none, or they cannot be read; what is there of them stays.
    """
    if source.is_local:
        return
    names = repository_files(source, revision)
    if names is None:
        _require_cached(source, revision)
        return
    try:
        weights = _weight_files(source, revision, names)
        snapshot_download(source.name, revision=revision, allow_patterns=weights)
    except (HubError, OSError, ValueError) as error:
        raise cannot_load(source.name, "weights", error, revision=revision) from error


def _weight_files(source: Source, revision: str | None, names: Sequence[str]) -> list[str]:
    for index, single in INDEXED.items():
        if single in names:
            return [single]
        if index in names:
            path = hf_hub_download(source.name, index, revision=revision)
            return [index, *_shards(Path(path))]
    raise ModelError(
        f"`{source.name}` on the hub holds no weights that can be loaded (model.safetensors, "
        f"model.safetensors.index.json). It holds: {', '.join(names)}."
    )


def _require_cached(source: Source, revision: str | None) -> None:
    """Make sure that the cache holds all of the weights: the hub cannot be asked."""

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(source.name, name, revision=revision)
        return found if isinstance(found, str) else None

    for index, single in INDEXED.items():
        if cached(single):
            return
        listed = cached(index)
        if listed and all(cached(shard) for shard in _shards(Path(listed))):
            return
    missing = FileNotFoundError("the cache does not hold all of them")
    raise cannot_load(source.name, "weights", missing, revision=revision)


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
