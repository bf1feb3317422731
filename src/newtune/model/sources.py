"""Where a checkpoint's files are: a folder, a hub repository or one `.gguf` file."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newtune.errors import ModelError, SetupError
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


def cannot_load(source: str, what: str, error: Exception) -> ModelError:
    """Return an error that says what to do about a checkpoint that could not be read."""
    reason = str(error).strip().split("\n")[0]
    if Path(source).expanduser().is_dir():
        files = sorted(path.name for path in Path(source).expanduser().iterdir())
        return ModelError(
            f"{source}: cannot read its {what}: {reason} The folder holds: "
            f"{', '.join(files) or 'nothing'}."
        )
    return ModelError(
        f"`{source}`: cannot read its {what} from the hub: {reason} If the name is right: a gated "
        "or private model needs access granted on its page and a token (`hf auth login`, or "
        "HF_TOKEN); without a network it must already be in the cache (HF_HOME; "
        "HF_HUB_OFFLINE=1 then skips the attempts to connect). A folder of this machine is "
        "written with `./` in front."
    )


def choose_weights(source: Source) -> dict[str, Any]:
    """Return the arguments that make `from_pretrained` read safe weights only.

    Raises:
        ModelError: a folder whose weights are missing, or are pickles that may run code.
    """
    if source.gguf_file is not None:
        return {}
    if not source.is_local:
        return {"weights_only": True}
    names = sorted(path.name for path in Path(source.name).iterdir())
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
