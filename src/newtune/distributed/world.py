"""The processes of this run: rank, size, device. The environment is read here, once."""

import os
from dataclasses import dataclass

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

    @classmethod
    def current(cls) -> "World":
        """Read the launcher's environment and the devices.

        Raises:
            SetupError: a launcher started several processes.
        """
        import torch

        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            raise SetupError(
                f"WORLD_SIZE is {size}, but newtune trains with one process for now. "
                "Start it as `newtune train CONFIG`, without torchrun or accelerate launch."
            )
        gpus = torch.cuda.device_count()
        if gpus:
            return cls(
                0, 1, "cuda:0", gpus, torch.cuda.is_bf16_supported(including_emulation=False)
            )
        return cls(0, 1, "cpu", 0, _cpu_has_bf16())


def _cpu_has_bf16() -> bool:
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
