"""Where weights live, and how much memory they may take."""

from newtune.config.section import Section


class PlacementSection(Section):
    """Devices and memory limits."""

    device_map: str | dict[str, int | str] | None = None
    """Spread the layers over the GPUs of one process: `auto`, `balanced`, `sequential`, or module
    → device. Empty: the whole model on one device."""
    max_memory: dict[int | str, int | str] | None = None
    """Most memory per device (`{0: 20GiB, cpu: 60GiB}`). Excludes `gpu_memory_limit`."""
    gpu_memory_limit: int | float | str | None = None
    """Most memory per GPU, the same for each: `20GiB`, or a number of GiB."""
    lora_on_cpu: bool = False
    """A loaded adapter stays on the CPU until it is placed."""
    layer_offloading: bool | None = None
    """Keep the layers' weights on the CPU and fetch each when it is needed."""
    activation_offloading: bool | str | None = None
    """Keep activations on the CPU or disk until the backward pass."""
