"""A lock that a killed build left is removed; one that is held, or may be, is named."""

import os
import time
from pathlib import Path

import pytest

from newtune.training.build_locks import LONGEST_BUILD_SECONDS, clear_build_locks

OLD = 2 * LONGEST_BUILD_SECONDS


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    return lock


@pytest.mark.parametrize(
    ("age", "held", "stays", "says"),
    [
        (OLD, False, False, "no process holds it: a build was killed. It is removed."),
        (OLD, True, True, "process {own} holds it. This one waits."),
        (5, False, True, "Remove the file then: rm "),
    ],
)
def test_the_lock_of_a_build(
    lock: Path, caplog: pytest.LogCaptureFixture, age: int, held: bool, stays: bool, says: str
) -> None:
    os.utime(lock, (time.time() - age,) * 2)
    handle = os.open(lock, os.O_RDONLY) if held else None
    clear_build_locks("cpu_adam")
    if handle is not None:
        os.close(handle)
    assert lock.exists() is stays
    assert says.format(own=os.getpid()) in caplog.text
    assert str(lock) in caplog.text


def test_without_a_lock_nothing_is_said(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock.unlink()
    clear_build_locks("cpu_adam")
    assert not caplog.text
