"""Worker processes run no script a second time, end with their parent, and say when they die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newtune.data.shard_workers import start_workers
from newtune.errors import DataError

TESTS = Path(__file__).parents[2]


class Writes:
    """A dataset whose shard is a file with the number of the process that made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, shard: int) -> None:
        sys.stdout.write("a format that prints")
        if shard < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard > 9:
            raise DataError(f"shard {shard} is wrong")
        (self.folder / str(shard)).write_text(str(os.getpid()))


def test_shards_are_built_in_other_processes(tmp_path):
    with start_workers([Writes(tmp_path)], 1) as workers:
        workers.build(0, 1)
        workers.build(0, 2)
        builders = {(tmp_path / name).read_text() for name in "12"}
        assert len(builders) == 1
        assert builders != {str(os.getpid())}
        assert Path("/proc", *builders).exists()
    assert not Path("/proc", *builders).exists()


def test_an_error_comes_back_and_the_process_goes_on(tmp_path):
    with start_workers([Writes(tmp_path)], 1) as workers:
        with pytest.raises(DataError, match=r"^shard 10 is wrong$"):
            workers.build(0, 10)
        workers.build(0, 3)
    assert (tmp_path / "3").is_file()


def test_a_process_that_was_killed_is_an_error_that_says_so(tmp_path):
    with (
        start_workers([Writes(tmp_path)], 1) as workers,
        pytest.raises(DataError, match="ended with status -9; -9 means that it was killed"),
    ):
        workers.build(0, -1)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
print("script")
from newtune.data import shards
from prepared import prepare
shards.SHARD_ROWS = 10
print(len(prepare(Path.cwd(), dataset_num_proc=2).train))
"""  # without `if __name__ == "__main__"`, as many scripts are

PARENT = """
import sys, time
from pathlib import Path
from newtune.data.shard_workers import start_workers
sys.path.insert(0, {here!r})
from test_shard_workers import Writes
with start_workers([Writes(Path.cwd())], 1) as workers:
    workers.build(0, 7)
    print("built", flush=True)
    time.sleep(100)
"""


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(code.format(tests=str(TESTS), here=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def test_a_script_may_prepare_with_processes_and_is_run_once(tmp_path):
    row = '{"instruction": "Say hi", "output": "Hi"}\n'
    (tmp_path / "rows.jsonl").write_text(30 * row)
    said, _ = start(tmp_path, SCRIPT).communicate(timeout=120)
    assert said == "script\n30\n"


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = start(tmp_path, PARENT)
    assert process.stdout.readline() == "built\n"
    process.kill()
    process.communicate(timeout=20)
    worker = Path("/proc", (tmp_path / "7").read_text(), "stat")
    deadline = time.monotonic() + 20
    while worker.exists() and worker.read_text().split()[2] != "Z":  # Z: ended, not yet reaped
        assert time.monotonic() < deadline
        time.sleep(0.02)
