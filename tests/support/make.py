"""Run the support table's cells, a family at a time, and write docs/support.md.

python tests/support/make.py [--jobs N] [--only FAMILY ...] [--column COLUMN ...]
"""

import argparse
import json
import logging
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))


def look_at(family: str, columns: list[str]) -> tuple[dict[str, dict[str, str]], float]:
    """Return a family's cells and the seconds they took; in a process of its own."""
    warnings.simplefilter("ignore")
    import torch

    from support.bench import Bench
    from support.cells import look_at_family

    torch.set_num_threads(1)
    logging.getLogger("newtune").setLevel(logging.ERROR)
    began = monotonic()
    with TemporaryDirectory(prefix="newtune-support-") as folder:
        bench = Bench.new(Path(folder), family)
        return look_at_family(bench, columns), monotonic() - began


def main() -> int:
    """Run what was asked for and write the page; 1 when a cell fails."""
    from support.page import COLUMNS, DATA, Record, write_page
    from tiny import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES))
    parser.add_argument("--column", nargs="*", default=list(COLUMNS))
    words = parser.parse_args()
    record = Record.read(DATA)
    with ProcessPoolExecutor(words.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(look_at, family, words.column): family for family in words.only}
        for done in as_completed(waiting):
            family = waiting[done]
            cells, seconds = done.result()
            record.add(family, cells)
            record.write(DATA)
            bad = {name: cell["why"] for name, cell in cells.items() if cell["verdict"] == "fails"}
            sys.stderr.write(f"{family}: {seconds:.0f} s {json.dumps(bad) if bad else ''}\n")
    write_page(record)
    return int(record.fails())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
