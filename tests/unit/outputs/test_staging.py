"""Results are written aside; what a killed process left is removed by the next."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from newtune.errors import ExportError
from newtune.outputs.staging import move_folder, staging_folder

WRITER = """
import sys, time
from pathlib import Path
from newtune.outputs.staging import staging_folder
with staging_folder(Path(sys.argv[1])) as stage:
    (stage / "weights").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def stages(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".writing-*") if path.is_dir()]


def test_a_killed_writers_folder_goes_and_a_living_ones_stays(tmp_path, writer):
    (theirs,) = stages(tmp_path)
    with staging_folder(tmp_path) as mine:
        assert set(stages(tmp_path)) == {theirs, mine}
    assert stages(tmp_path) == [theirs]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert (theirs / "weights").is_file()
    with staging_folder(tmp_path) as mine:
        assert stages(tmp_path) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_folders_without_a_lock_of_earlier_versions_go_too(tmp_path):
    (tmp_path / ".writing-12345678").mkdir()
    with staging_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_a_failure(tmp_path):
    def write() -> None:
        with staging_folder(tmp_path) as stage:
            (stage / "weights").write_text("half")
            raise OSError("no space")

    with pytest.raises(ExportError, match="Nothing half-written"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_older_one_and_of_what_a_kill_left(tmp_path):
    target, left = tmp_path / "merged", tmp_path / ".retired-merged-1"
    for folder in (target, left):
        folder.mkdir()
        (folder / "old").touch()
    with staging_folder(tmp_path) as stage:
        (stage / "new").touch()
        move_folder(stage, target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
