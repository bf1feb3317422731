"""`newtune merge CONFIG`: merge the adapter into its base and prove the result."""

from pathlib import Path
from typing import Literal

from newtune.cli.config_file import read_config
from newtune.cli.show_results import show_merge


def run(
    config_path: Path,
    overrides: list[str],
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    keep: bool = False,
    quantize: Literal["nf4", "fp4", "int8"] | None = None,
) -> int:
    """Write `output_dir/merged` and print how close it is to base + adapter."""
    given = [*overrides, "--merged_dtype", dtype] if dtype else overrides
    config = read_config(config_path, given)
    from newtune.results import merge

    show_merge(merge(config, overwrite=overwrite, keep=keep, quantize=quantize), config_path)
    return 0
