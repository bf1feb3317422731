"""Where weights live, and how much memory they may take."""

from newtune.config.section import Section


class PlacementSection(Section):
    """Devices and memory limits."""

    device_map: str | dict[str, int | str] | None = None
    """Spread the layers over the devices of one process: `auto` (as `balanced`, about the same on
    every GPU), `balanced_low_0` (GPU 0 kept free), `sequential` (one after the other), or module →
    GPU number, `cpu` or `disk`. Layers are never cut. Training needs all of them on GPUs, or all on
    the CPU. Empty: the whole model on one device."""
    max_memory: dict[int | str, int | str] | None = None
    """Most memory for weights per device (`{0: 20GiB, cpu: 60GiB}`; a number is in GiB); GPUs that
    it leaves out are not used. What does not fit stays on the disk. Excludes `gpu_memory_limit`."""
    gpu_memory_limit: int | float | str | None = None
    """Most memory per GPU, the same for each: `20GiB`, or a number of GiB."""
    lora_on_cpu: bool = False
    """A stored adapter is read into the CPU's memory first, then put beside its layers."""
    layer_offloading: bool | None = None
    """Keep the layers' weights on the CPU and fetch each when it is needed."""
    activation_offloading: bool | str | None = None
    """Keep activations on the CPU or disk until the backward pass."""
