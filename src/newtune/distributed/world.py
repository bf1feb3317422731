"""The processes of this run: rank, size, device. The environment is read here, once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from newtune.errors import SetupError


@dataclass(frozen=True)
class World:
    """This process among the others; `device` is a torch device string (`cpu`, `cuda:0`)."""

    rank: int
    size: int
    device: str
    visible_gpus: int
    bf16_is_fast: bool
    """The device multiplies bfloat16 in hardware (Ampere or newer; AVX512-BF16 or AMX)."""
    local_size: int | None = None
    """Processes on this machine; None = the launcher does not say."""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability of the device; None without one."""

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes and speaks for all."""
        return self.rank == 0

    @classmethod
    def current(cls) -> "World":
        """Read the launcher's environment and the devices.

        Raises:
            SetupError: the environment is half that of a launcher; a process without its GPU.
        """
        import torch

        rank, size, local_rank = launched(os.environ)
        here = _number(os.environ, "LOCAL_WORLD_SIZE", default=0) or None
        gpus = torch.cuda.device_count()
        if not gpus:
            return cls(rank, size, "cpu", 0, _cpu_has_bf16(), here)
        if local_rank >= gpus:
            raise SetupError(
                f"process {rank} is number {local_rank} of this machine (LOCAL_RANK), but "
                f"{gpus} GPU(s) are visible: start {gpus} process(es) here, one per GPU."
            )
        torch.cuda.set_device(local_rank)
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        capability = torch.cuda.get_device_capability(local_rank)
        return cls(rank, size, f"cuda:{local_rank}", gpus, is_fast, here, capability)

    @classmethod
    def alone(cls) -> "World":
        """Return the world of a command that runs as one process.

        Raises:
            SetupError: a launcher started several.
        """
        world = cls.current()
        if world.size > 1:
            raise SetupError(
                f"WORLD_SIZE is {world.size}, but only `newtune train` runs on several processes. "
                "Start this command by itself, without torchrun or accelerate launch."
            )
        return world


ENGINES_OF_ACCELERATE: Mapping[str, str] = {
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_FSDP": "fsdp_config",
}
"""Variable that `accelerate launch` sets when its own settings ask for an engine → our key."""


def launched(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (rank, number of processes, rank on this machine) as torchrun and others set them.

    Raises:
        SetupError: a part is missing or no number: the processes would not find each other, and
            each would train a model of its own.
    """
    for name, key in ENGINES_OF_ACCELERATE.items():
        if environment.get(name, "").lower() == "true":
            raise SetupError(
                f"accelerate's own settings ask for an engine ({name}), which newtune takes from "
                f"`{key}` in its configuration. Start with `accelerate launch --multi_gpu "
                "--num_processes N`, or with torchrun."
            )
    size = _number(environment, "WORLD_SIZE", default=1)
    if size == 1:
        require_one_meant(environment)
        return 0, 1, _number(environment, "LOCAL_RANK", default=0)
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise SetupError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: the processes could not "
            "find each other. Start them with torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    rank = _number(environment, "RANK", default=0)
    if not 0 <= rank < size:
        raise SetupError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks go from 0 to {size - 1}")
    return rank, size, _number(environment, "LOCAL_RANK", default=0)


def extensions_folder() -> Path | None:
    """Return where torch compiles extensions, if that was said; None = in the user's cache."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else None


def name_as_the_only_process() -> None:
    """Put what DeepSpeed reads where no launcher did; accelerate must have looked before."""
    os.environ.setdefault("LOCAL_RANK", "0")


STARTED_SEVERAL = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}
"""What says how many processes a launcher started that tells them nothing else torch knows."""
NO_GPU_LAUNCH = (
    "accelerate launch was asked for several processes and started one, as it does without GPUs: "
    "that would be a run of one process. Use `accelerate launch --multi_gpu --num_processes N`, "
    "`torchrun --nproc_per_node N`, or `newtune train CONFIG --num-processes N`."
)


def require_one_meant(environment: Mapping[str, str]) -> None:
    """Check that a process that is alone was not meant to be one of several.

    Raises:
        SetupError: each of several would train a model of its own, into the same folder.
    """
    if "WORLD_SIZE" not in environment:
        if "RANK" in environment:
            raise SetupError(
                f"RANK is {environment['RANK']}, but WORLD_SIZE is not set: a launcher sets both."
            )
        if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= environment.keys():
            raise SetupError(NO_GPU_LAUNCH)
    elif "TORCHELASTIC_RUN_ID" not in environment:
        return  # somebody says that it is alone
    for name, launcher in STARTED_SEVERAL.items():
        if (count := _number(environment, name, default=1)) > 1:
            raise SetupError(
                f"{launcher} started {count} processes ({name}), but each would train by itself. "
                "Let it start one `newtune train CONFIG --nodes N --rendezvous HOST:PORT` on each "
                "machine (examples/cluster), or set WORLD_SIZE=1 for runs that have nothing to do "
                "with each other."
            )


def restarts() -> int:
    """Return how often the launcher has started this process's run again."""
    return _number(os.environ, "TORCHELASTIC_RESTART_COUNT", default=0)


def _number(environment: Mapping[str, str], name: str, *, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise SetupError(f"the environment's {name} is `{text}`, which is no number") from error


def _cpu_has_bf16() -> bool:
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
