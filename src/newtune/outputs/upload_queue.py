"""Uploads, one after the other, in a thread of their own; a failed one is noted, no more."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from newtune.errors import ExportError
from newtune.logs import logger


@dataclass(frozen=True)
class Upload:
    """Something to upload, and what is cleared away when that is done, failed or given up."""

    label: str
    send: Callable[[], object]
    clear: Callable[[], None] = lambda: None
    may_be_skipped: bool = False
    """A newer one takes its place while it waits."""


class UploadQueue:
    """Runs uploads in the order in which they came; `problems` says what went wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self._waiting: deque[Upload] = deque()
        self._running = False
        self._changed = threading.Condition()

    def add(self, upload: Upload) -> None:
        """Append an upload; those that wait and may be skipped make room for it."""
        with self._changed:
            if upload.may_be_skipped:
                self._skip()
            self._waiting.append(upload)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="uploads", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        """Tell whether everything was uploaded or has failed."""
        with self._changed:
            return not self._running

    def wait(self) -> None:
        """Return when nothing is under way any more; Ctrl-C ends the waiting."""
        with self._changed:
            while self._running:
                self._changed.wait()

    def note(self, problem: str) -> None:
        """Keep what went wrong, and say so at once."""
        self.problems.append(problem)
        logger.warning("upload failed, the run goes on: %s", problem)

    def _skip(self) -> None:
        skipped = [upload for upload in self._waiting if upload.may_be_skipped]
        self._waiting = deque(upload for upload in self._waiting if not upload.may_be_skipped)
        for upload in skipped:
            self.skipped.append(upload.label)
            upload.clear()

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            ended = False
            try:
                upload.send()
                ended = True
            except (ExportError, OSError) as error:
                ended = True
                self.note(f"{upload.label}: {error}")
            finally:
                if not ended:  # a fault of newtune's; its traceback is printed by the thread
                    self.note(f"{upload.label}: the upload ended unexpectedly")
                    self._stop()
                upload.clear()

    def _next(self) -> Upload | None:
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            self._running = False
            self._changed.notify_all()
            return None

    def _stop(self) -> None:
        with self._changed:
            self._running = False
            self._changed.notify_all()
