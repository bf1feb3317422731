"""`newtune train CONFIG`, and `accelerate launch -m newtune.cli.train CONFIG --key value`."""

import sys
from pathlib import Path

from newtune.cli.config_file import read_config
from newtune.cli.show_run import show_summary
from newtune.errors import ExportError


def run(config_path: Path, overrides: list[str], *, resume: bool = False) -> int:
    """Train, then print the result."""
    if resume:
        overrides = [*overrides, "--auto_resume_from_checkpoints", "true"]
    config = read_config(config_path, overrides)
    from newtune.distributed.group import leave_group
    from newtune.run import train

    try:
        report = train(config)
    finally:
        leave_group()
    if report is None:  # the first process has it
        return 0
    show_summary(report, config_path)
    if report.upload_problems:
        raise ExportError(
            f"the run is complete in {report.folder}, but not every upload is: "
            f"{'; '.join(report.upload_problems)} Upload the result: newtune upload {config_path}"
        )
    return 0


def without_rank(words: list[str]) -> list[str]:
    """Leave out the rank that DeepSpeed's launcher writes before the rest, and sets besides."""
    return [word for word in words if not word.startswith("--local_rank=")]


if __name__ == "__main__":
    from newtune.cli.main import main

    sys.argv[1:] = ["train", *without_rank(sys.argv[1:])]
    main()
