"""A preparer as a process: a rows file comes in as a line, what it took goes out as a line.

Standard library only: it runs in the environments of other trainers too.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

Prepare = Callable[[Path], Callable[[], dict[str, int]]]
"""Gets a file ready outside the clock and returns what the clock runs for; that counts."""


def serve(make: Callable[[Path, Path, str], Prepare], packages: list[str]) -> None:
    """Load once, say what runs here, then time one preparation for each line of standard input.

    The command line is: folder of the tokenizer, folder to work in, chat template.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs to nobody
    prepare = make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    versions = {name: version(name) for name in packages}
    _answer(answers, {"python": platform.python_version(), **versions})
    for line in sys.stdin:
        run = prepare(Path(line.strip()))
        started, cpu = time.perf_counter(), _cpu_seconds()
        counts = run()
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
        _answer(answers, {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": _peak_mb(), **counts})


def _answer(answers, content: dict) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # own and of children that ended


def _peak_mb() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) / 1024
