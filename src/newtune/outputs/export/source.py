"""Which whole model of a run an export takes, and in which dtype it is written by default."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers import AutoConfig

from newtune.errors import ExportError
from newtune.outputs.load import available
from newtune.run_dir import RunDir

if TYPE_CHECKING:
    from newtune.outputs.export.gguf_file import GgufDtype

OF_TORCH = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}
DTYPES = ("f32", "f16", "bf16", "q8_0")


def result_folder(run_dir: RunDir) -> Path:
    """Return the folder of a run's whole model: the proven merged one, else what was trained whole.

    Raises:
        ExportError: there is an adapter alone, or nothing.
    """
    found = available(run_dir)
    if "merged" in found:
        return run_dir.merged
    if "model" in found:
        return run_dir.root
    if "adapter" in found:
        raise ExportError(
            f"{run_dir.root} holds an adapter; a file for other programs holds a whole model. "
            "Run `newtune merge` first."
        )
    raise ExportError(f"{run_dir.root} holds no trained weights. Run `newtune train` first.")


def choose_dtype(given: str | None, folder: Path) -> "GgufDtype":
    """Return the dtype asked for, else that of the folder's weights.

    Raises:
        ExportError: there is no such dtype.
    """
    if given is None:
        given = OF_TORCH[str(AutoConfig.from_pretrained(folder).dtype)]
    if given not in DTYPES:
        raise ExportError(f"--dtype is `{given}`; it may be {', '.join(DTYPES)}.")
    return cast("GgufDtype", given)
