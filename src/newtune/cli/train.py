"""`newtune train CONFIG`, and `accelerate launch -m newtune.cli.train CONFIG --key value`.

Started by itself it starts one process per GPU; each of them comes here again.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.config_file import read_config
from newtune.cli.show_run import show_summary
from newtune.config.load import load_config
from newtune.distributed.world import launched, require_one_meant
from newtune.errors import ExportError, SetupError

if TYPE_CHECKING:
    from newtune.config.run import RunConfig
    from newtune.distributed.launch import Launch


@dataclass(frozen=True)
class Asked:
    """What the command line says of processes."""

    num_processes: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int | None = None

    def given(self) -> list[str]:
        """Return the options that were given."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value]


def run(
    config_path: Path, overrides: list[str], *, resume: bool = False, asked: Asked | None = None
) -> int:
    """Train in the processes that were asked for, or in this one; the first prints the result."""
    asked = asked or Asked()
    if "LOCAL_RANK" in os.environ or ("WORLD_SIZE" in os.environ and not asked.given()):
        if given := asked.given():
            raise SetupError(
                f"{given[0]}: a launcher has started this process already (LOCAL_RANK is set). "
                "Leave the option to the launcher, or start `newtune train` by itself."
            )
        return train_here(config_path, overrides, resume=resume)
    config = load_config(config_path, overrides)
    words = [str(config_path.resolve()), *overrides, *(["--resume"] if resume else [])]
    if config.parallel.use_ray:
        return start_on_ray(config, asked, words)
    plan = plan_launch(config, asked)
    if plan is None:
        return train_here(config_path, overrides, resume=resume)
    from newtune.distributed.launch import launch

    return launch(plan, words)


def start_on_ray(config: "RunConfig", asked: Asked, words: list[str]) -> int:
    """Train in processes that Ray starts.

    Raises:
        SetupError: Ray is not installed; options that belong to the other launcher.
    """
    from newtune.plan.attention import is_installed
    from newtune.plan.processes import ray_workers

    if given := replace(asked, max_restarts=None).given():
        raise SetupError(
            f"{given[0]}: with `use_ray` it is Ray that starts the processes: give "
            "`ray_num_workers` and `resources_per_worker`, or leave `use_ray` out."
        )
    if not is_installed("ray"):
        raise SetupError("use_ray: needs the package `ray`. Install it: pip install 'newtune[ray]'")
    from newtune.distributed.ray_launch import RayLaunch, launch_on_ray

    workers = ray_workers(config)
    assert workers is not None
    folder = Path(config.output.output_dir) / "ray"
    restarts = asked.max_restarts or 0
    plan = RayLaunch(workers.count, workers.resources, workers.run_name, folder, restarts)
    return launch_on_ray(plan, words)


def train_here(config_path: Path, overrides: list[str], *, resume: bool) -> int:
    """Train, as the only process or as one of several."""
    from newtune.distributed.group import leave_group

    speaks = launched(os.environ)[0] == 0
    if resume:
        overrides = [*overrides, "--auto_resume_from_checkpoints", "true"]
    config = read_config(config_path, overrides) if speaks else load_config(config_path, overrides)
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


def plan_launch(config: "RunConfig", asked: Asked) -> "Launch | None":
    """Return what to start, or None where this process is to train alone.

    Raises:
        SetupError: options that do not go together.
    """
    nodes = asked.nodes or 1
    if nodes == 1:
        require_one_meant(os.environ)
    _require_meeting_point(asked, nodes)
    processes = asked.num_processes or _default(config)
    if processes == nodes == 1 and not asked.max_restarts:
        return None
    from newtune.distributed.launch import Launch

    return Launch(
        processes, nodes, asked.node_rank, asked.rendezvous or "", asked.max_restarts or 0
    )


def _require_meeting_point(asked: Asked, nodes: int) -> None:
    if nodes == 1 and (asked.node_rank or asked.rendezvous):
        raise SetupError("--node-rank and --rendezvous are for several machines: give --nodes")
    if nodes == 1:
        return
    host, _, port = (asked.rendezvous or "").rpartition(":")
    if not host or not port.isdigit():
        got = f"got `{asked.rendezvous}`" if asked.rendezvous else "there is none"
        raise SetupError(
            f"--nodes {nodes} needs `--rendezvous HOST:PORT`, the same on each machine; {got}. "
            "HOST is the machine with `--node-rank 0`, PORT a free one, such as 29500."
        )
    if asked.node_rank is not None and asked.node_rank >= nodes:
        raise SetupError(f"--node-rank goes from 0 to {nodes - 1}, got {asked.node_rank}")


def _default(config: "RunConfig") -> int:
    import torch

    from newtune.plan.processes import processes_of

    return processes_of(config, torch.cuda.device_count())[0]


def without_rank(words: list[str]) -> list[str]:
    """Leave out the rank that DeepSpeed's launcher writes before the rest, and sets besides."""
    return [word for word in words if not word.startswith("--local_rank=")]


if __name__ == "__main__":
    from newtune.cli.main import main

    sys.argv[1:] = ["train", *without_rank(sys.argv[1:])]
    main()
