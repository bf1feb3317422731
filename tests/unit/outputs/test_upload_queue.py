"""Uploads run one after the other; a failed one is noted, a skipped one cleared away."""

import threading

import pytest

from newtune.errors import ExportError
from newtune.outputs.upload_queue import Upload, UploadQueue


def upload(done: list[str], name: str, *, wait: threading.Event | None = None, **options) -> Upload:
    def send() -> None:
        if wait is not None:
            wait.wait(10)
        done.append(name)

    return Upload(name, send, lambda: done.append(f"{name} cleared"), **options)


def test_they_run_in_order_and_waiting_returns_when_all_are_done():
    done: list[str] = []
    queue = UploadQueue()
    for name in "abc":
        queue.add(upload(done, name))
    queue.wait()
    assert done == ["a", "a cleared", "b", "b cleared", "c", "c cleared"]
    assert queue.is_idle
    queue.add(upload(done, "d"))  # a thread that ended is followed by another
    queue.wait()
    assert done[-1] == "d cleared"


def test_only_the_newest_of_those_that_may_be_skipped_waits():
    done: list[str] = []
    queue, go_on = UploadQueue(), threading.Event()
    queue.add(upload(done, "a", wait=go_on, may_be_skipped=True))
    while queue._waiting:  # until the thread has taken it
        threading.Event().wait(0.001)
    for name in "bcd":
        queue.add(upload(done, name, may_be_skipped=True))
    queue.add(upload(done, "result"))
    go_on.set()
    queue.wait()
    assert queue.skipped == ["b", "c"]
    assert [name for name in done if "cleared" not in name] == ["a", "d", "result"]
    assert {"b cleared", "c cleared"} < set(done)


@pytest.mark.parametrize("error", [ExportError("refused"), OSError("gone")])
def test_one_that_fails_is_noted_and_the_next_goes_on(error):
    def send() -> None:
        raise error

    done: list[str] = []
    queue = UploadQueue()
    queue.add(Upload("step 1", send))
    queue.add(upload(done, "b"))
    queue.wait()
    assert queue.problems == [f"step 1: {error}"]
    assert done[0] == "b"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_newtunes_own_is_noted_and_leaves_nobody_waiting():
    def send() -> None:
        raise KeyError("a bug")

    queue = UploadQueue()
    queue.add(Upload("step 1", send))
    queue.wait()
    for thread in threading.enumerate():
        if thread.name == "uploads":
            thread.join()  # its traceback is printed when it ends
    assert queue.problems == ["step 1: the upload ended unexpectedly"]
