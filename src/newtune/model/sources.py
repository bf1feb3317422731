"""Where a checkpoint's files are: a folder, a hub repository or one `.gguf` file."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants

from newtune.errors import ModelError, SetupError
from newtune.hub import HubError, Repository, diagnose, first_line, is_unreachable
from newtune.logs import notice


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is given: a hub id or folder, and perhaps the GGUF file in it."""

    name: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments beside the name."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder of this machine."""
        return Path(self.name).is_dir()


def find_source(source: str) -> Source:
    """Return where to load from.

    Raises:
        ModelError: a file or folder that does not exist, or a file of another kind.
        SetupError: a GGUF file without the package that reads it.
    """
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if importlib.util.find_spec("gguf") is None:
            raise SetupError(
                f"{source}: reading a GGUF file needs the package `gguf`. "
                "Install it: pip install 'newtune[gguf]'"
            )
        if not path.is_file():
            raise ModelError(f"{source}: there is no such file.{_neighbours(path)}")
        return Source(str(path.parent), path.name)
    if path.is_file():
        raise ModelError(
            f"{source}: is a file. Give the folder that holds config.json and the weights, "
            "a `.gguf` file, or a hub id."
        )
    if path.is_dir():
        return Source(str(path))
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"{source}: there is no such folder.{_neighbours(path)}")
    return Source(source)


def cannot_load(
    source: str, what: str, error: Exception, *, revision: str | None = None
) -> ModelError:
    """Return an error that says what to do about a checkpoint that could not be read.

    Of a repository, the hub itself is asked what is wrong.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(path.name for path in folder.iterdir())
        return ModelError(
            f"{source}: cannot read its {what}: {first_line(error)} The folder holds: "
            f"{', '.join(files) or 'nothing'}."
        )
    said = diagnose(Repository(source, "model", revision)) or first_line(error)
    return ModelError(f"`{source}`: cannot read its {what}: {said}")


def repository_files(source: Source, revision: str | None) -> list[str] | None:
    """Return the files at the root of a hub repository; None when only the cache can be asked.

    Raises:
        ModelError: the hub refuses it.
    """
    if constants.is_offline_mode():
        return None
    try:
        names = HfApi().list_repo_files(source.name, revision=revision)
    except (HubError, OSError, ValueError) as error:
        if is_unreachable(error):
            return None
        raise cannot_load(source.name, "files", error, revision=revision) from error
    return sorted(name for name in names if "/" not in name)


def choose_weights(source: Source, revision: str | None = None) -> dict[str, Any]:
    """Return the arguments that make `from_pretrained` read safe weights only.

    Raises:
        ModelError: weights are missing, or are pickles that may run code.
    """
    if source.gguf_file is not None:
        return {}
    if source.is_local:
        names: list[str] | None = sorted(path.name for path in Path(source.name).iterdir())
    else:
        names = repository_files(source, revision)
    if names is None:
        return {"weights_only": True}
    if any(name.endswith(".safetensors") for name in names):
        return {"use_safetensors": True}
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        notice(f"{source.name}: old `.bin` weights, read with weights_only=True (no code is run)")
        return {"use_safetensors": False, "weights_only": True}
    pickles = [n for n in names if n.endswith((".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"))]
    if pickles:
        raise ModelError(
            f"{source.name}: its weights are pickles ({', '.join(pickles)}), which can run code "
            "when they are opened. Convert them to safetensors where you trust them: "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)`."
        )
    raise ModelError(
        f"{source.name}: holds no weights (*.safetensors). It holds: "
        f"{', '.join(names) or 'nothing'}."
    )


def _neighbours(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" There is no folder {parent} either."
    names = sorted(entry.name for entry in parent.iterdir())[:12]
    return f" {parent} holds: {', '.join(names) or 'nothing'}."
