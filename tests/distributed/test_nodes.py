"""Two machines, as network namespaces of this one: they meet, one is cut off and comes back."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from breaking import lines, started
from launching import Bench, run, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("nodes")]

LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0.1,
    "batch_size": 2,
    "num_epochs": 4,
    "save_steps": 4,
    "save_strategy": None,
    "hang_timeout_seconds": 15,
}
NAMES = ("newtune-a", "newtune-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def why_not() -> str:
    """Return why namespaces cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "`ip` (iproute2) and `unshare` (util-linux) are needed"
    try:
        ip("netns", "add", "newtune-probe")
        ip("netns", "del", "newtune-probe")
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    return ""


@pytest.fixture
def machines() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    if reason := why_not():
        pytest.skip(reason)
    remove()
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "eth0",
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            NAMES[1],
        )
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        remove()


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def on_machine(number: int, config: Path, *options: str) -> list[str]:
    """Return the command that trains on one of the machines, which has a name of its own."""
    words = ["train", str(config), "--num-processes", "1", "--nodes", "2", "--max-restarts", "2"]
    words += ["--node-rank", str(number), "--rendezvous", f"{ADDRESSES[0]}:29517", *options]
    program = "from newtune.cli.main import main; main()"
    named = f'hostname {NAMES[number]}; exec "$@"'
    enter = ["ip", "netns", "exec", NAMES[number], "unshare", "--uts", "bash", "-c", named, "-"]
    return [*enter, sys.executable, "-c", program, *words]


def test_a_machine_is_cut_off_and_brought_back(machines: None, tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    config = bench.config("cut", **LORA)
    metrics = bench.root / "cut" / "metrics.jsonl"
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(started(on_machine(number, config), tmp_path / f"said-{number}"))
            for number in (0, 1)
        )
        first.wait_until(lambda: lines(metrics) >= 6, "six steps")
        ip("-n", NAMES[1], "link", "set", "eth0", "down")
        first.wait_until(lambda: "All processes end" in first.said, "the first machine's message")
        # a cluster gives the machine up, and starts it again
        for pid in ip("netns", "pids", NAMES[1]).split():
            os.kill(int(pid), signal.SIGKILL)
        second.process.wait()
        ip("-n", NAMES[1], "link", "set", "eth0", "up")
        again = on_machine(1, config, "--resume")
        third = stack.enter_context(started(again, tmp_path / "said-again"))
        assert third.end() == 0, third.said[-3000:] + first.said[-3000:]
        assert first.end() == 0, first.said[-3000:]
    lost = r"process 1 on newtune-b has not answered for \d+ s; it stood at step \d+ \(\w+\)"
    assert len(re.findall(lost, first.said)) == 1
    run(torchrun(2, "-m", "newtune.cli.train", bench.config("whole", **LORA)))
    ours, theirs = bench.weights("whole"), bench.weights("cut")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
