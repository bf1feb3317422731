"""Local files and folders that a configuration names, and that are not there."""

from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

from newtune.config.run import RunConfig

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow", ".txt", ".gz", ".zst")


def missing_places(config: RunConfig, folder: Path) -> list[str]:
    """Return a sentence for each path that can only be local and does not exist.

    Relative paths of data are looked up in `folder`, the configuration's, and in the working
    directory; those of models in the latter. What may be a name on a hub is left to the command
    that opens it.
    """
    here = Path()
    missing = [(key, path, here) for key, path in _models(config) if not _exists(path, [here])]
    missing += [
        (key, path, folder) for key, path in _data(config) if not _exists(path, [folder, here])
    ]
    return [
        f"{key}: there is no `{path}` (looked for from {place.resolve()}); "
        "what needs it will stop there"
        for key, path, place in missing
    ]


def _models(config: RunConfig) -> Iterator[tuple[str, str]]:
    names = {
        "base_model": config.model.peek("base_model"),
        "base_model_config": config.model.peek("base_model_config"),
        "tokenizer_config": config.tokenizer.peek("tokenizer_config"),
        "lora_model_dir": config.adapter.peek("lora_model_dir"),
        "resume_from_checkpoint": config.output.peek("resume_from_checkpoint"),
    }
    for key, name in names.items():
        if name and (_looks_local(name) or name.endswith(".gguf")):
            yield key, name


def _data(config: RunConfig) -> Iterator[tuple[str, str]]:
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(config.data.peek(key)):
            path = entry.peek("path")
            if path and (_looks_local(path) or path.endswith(DATA_SUFFIXES)):
                yield f"{key}.{index}.path", path


def _looks_local(name: str) -> bool:
    if "://" in name:
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _exists(name: str, folders: list[Path]) -> bool:
    """Say whether a path exists in one of the folders; of a pattern, whether something matches."""
    path = Path(name).expanduser()
    if any((folder / path).exists() for folder in folders):
        return True
    if not has_magic(name):
        return False
    places = [Path(path.anchor)] if path.is_absolute() else folders
    pattern = str(path.relative_to(path.anchor))
    return any(next(place.glob(pattern), None) for place in places)
