"""Where the layers of a model lie when one process spreads them: over GPUs, CPU memory, the disk.

Layers run one after the other, each where it lies (naive model parallelism): more GPUs hold a
larger model, they do not make it faster. A decoder layer is never cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    convert_file_size_to_int,
    get_max_memory,
)
from torch import nn
from transformers import PreTrainedModel

from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.lookup import did_you_mean
from newtune.plan.parts import PlacementPlan

Device = int | str
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
GIB = 1 << 30


@dataclass(frozen=True)
class Wish:
    """What the configuration asks for."""

    device_map: str | Mapping[str, Device] | None = None
    max_memory: Mapping[Device, int | str] | None = None
    gpu_memory_limit: int | float | str | None = None

    @property
    def key(self) -> str | None:
        """Return the first key that is given; None = nothing is asked for."""
        given = ("device_map", self.device_map), ("max_memory", self.max_memory)
        last = ("gpu_memory_limit", self.gpu_memory_limit)
        return next((key for key, value in (*given, last) if value), None)


def plan_placement(
    wish: Wish,
    world: World,
    skeleton: Callable[[], PreTrainedModel],
    bytes_of: Callable[[str, nn.Parameter], int],
    *,
    trains: bool,
    available: Callable[[], Mapping[Device, int]] = get_max_memory,
) -> tuple[PlacementPlan | None, str]:
    """Return where each part of the model lies, and why; None = all of it on the world's device.

    `skeleton` builds the model on the meta device. `bytes_of` tells what a parameter takes: in few
    bits where it is quantised, with gradient and optimizer state where it is trained.

    Raises:
        ConfigError: the wish cannot be met here, or not while training.
    """
    if wish.key is None:
        return None, "the first device of this process"
    if world.size > 1:
        hint = "Start one process, or leave the key out: then each has a GPU of its own."
        raise _refused(wish.key, f"excludes several processes ({world.size} are started)", hint)
    if (
        not world.visible_gpus
        and not _limits_cpu(wish)
        and not isinstance(wish.device_map, Mapping)
    ):
        return None, f"{wish.key}: no GPU is visible, so that all of it is on the CPU"
    model = skeleton()
    sizes = {name: bytes_of(name, parameter) for name, parameter in model.named_parameters()}
    if isinstance(wish.device_map, Mapping):
        devices = _given_map(wish.device_map, world, model)
    else:
        whole = footprint(model, sizes)
        budgets = _budgets(wish, world, available)
        unsplit = sorted(model._no_split_modules or ())
        devices = spread(whole, budgets, wish.device_map or "auto", unsplit)
    _require_usable(wish.key, devices, world, trains=trains)
    held = bytes_on(devices, sizes)
    why = f"{wish.key}: " + ", ".join(
        f"{_name(d)} holds {n / GIB:.2f} GiB" for d, n in held.items()
    )
    if set(devices.values()) == {_own_device(world)}:
        return None, why
    return PlacementPlan(dict(devices), held), why


def footprint(model: PreTrainedModel, sizes: Mapping[str, int]) -> PreTrainedModel:
    """Return the model on the meta device with each parameter as its bytes; `model` is used up."""
    shared: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in shared:
            data = torch.empty(sizes[name], dtype=torch.uint8, device="meta")
            shared[id(parameter)] = nn.Parameter(data, requires_grad=False)
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, shared[id(parameter)])
    return model


def spread(
    model: nn.Module, budgets: Mapping[Device, int], strategy: str, unsplit: Sequence[str]
) -> dict[str, Device]:
    """Return module → device: layers in their order, none cut, what fits nowhere on the disk.

    `balanced` gives every GPU about the same; `balanced_low_0` leaves room on GPU 0, as for
    generation; `sequential` fills one GPU after the other.
    """
    gpus = [device for device in budgets if isinstance(device, int)]
    if strategy != "sequential" and len(gpus) > 1:
        shares = _shares(model, gpus, unsplit, low_zero=strategy == "balanced_low_0")
        tight = {d: min(size, shares.get(d, size)) for d, size in budgets.items()}
        devices = _infer(model, tight, unsplit)
        if not _offloaded(devices, gpus):
            return devices
    return _infer(model, budgets, unsplit)


def bytes_on(devices: Mapping[str, Device], sizes: Mapping[str, int]) -> dict[Device, int]:
    """Return what each device holds."""
    held: dict[Device, int] = {}
    for name, size in sizes.items():
        device = devices[_covering(name, devices)]
        held[device] = held.get(device, 0) + size
    return held


def _infer(
    model: nn.Module, budgets: Mapping[Device, int], unsplit: Sequence[str]
) -> dict[str, Device]:
    found: Mapping[str, Device] = infer_auto_device_map(
        model, max_memory=dict(budgets), no_split_module_classes=list(unsplit)
    )
    return dict(found)


def _shares(
    model: nn.Module, gpus: Sequence[int], unsplit: Sequence[str], *, low_zero: bool
) -> dict[Device, int]:
    """Return the most that each GPU but the last should hold.

    accelerate keeps room for the largest layer free on the first GPU, so that it gets that more;
    half a layer more each, because layers are not cut.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = [_size(m) for m in model.modules() if type(m).__name__ in unsplit]
    largest = max([*layers, *(p.numel() for p in model.parameters())])
    layer = max(layers, default=0)
    first, *others = gpus
    if low_zero:
        return {first: largest, **dict.fromkeys(others[:-1], total // len(others) + layer // 2)}
    share = total // len(gpus) + layer // 2
    return {first: share + largest, **dict.fromkeys(others[:-1], share)}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _budgets(
    wish: Wish, world: World, available: Callable[[], Mapping[Device, int]]
) -> dict[Device, int]:
    there = dict(available())
    gpus: dict[Device, int] = {d: size for d, size in there.items() if isinstance(d, int)}
    cpu = there.get("cpu", 0)
    if wish.gpu_memory_limit:
        limit = memory_bytes(wish.gpu_memory_limit)
        gpus = {device: min(limit, size) for device, size in gpus.items()}
    elif wish.max_memory:
        given = {_device(name): memory_bytes(size) for name, size in wish.max_memory.items()}
        _require_devices("max_memory", list(given), world)
        cpu = given.get("cpu", cpu)
        gpus = {device: size for device, size in given.items() if isinstance(device, int)}
    else:  # activations and logits take room as well
        gpus = {device: int(0.9 * size) for device, size in gpus.items()}
    return {**gpus, "cpu": cpu}


def memory_bytes(size: int | float | str) -> int:
    """Return bytes; a number is in GiB, a text has its unit (`20GiB`)."""
    if isinstance(size, str) and not size.replace(".", "").isdigit():
        return int(convert_file_size_to_int(size.replace(" ", "")))
    return int(float(size) * GIB)


def _given_map(
    given: Mapping[str, Device], world: World, model: PreTrainedModel
) -> dict[str, Device]:
    """Check a map that the configuration spells out.

    Raises:
        ConfigError: a name that is no module, a device that is not there, a parameter without a
            device, a layer or tied weights on two devices.
    """
    devices = {name: _device(device) for name, device in given.items()}
    modules = dict(model.named_modules())
    for name in devices:
        if name not in modules:
            hint = did_you_mean(name, modules) or "Layers are named such as `model.layers.0`."
            raise _refused(f"device_map.{name}", "is no module of this model", hint)
    _require_devices("device_map", list(devices.values()), world)
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _covering(name, devices) not in devices:
            raise _refused("device_map", f"gives no device to `{name}`", "Add it, or `'': 0`.")
        users.setdefault(id(parameter), []).append(name)
    for names in users.values():
        _require_together(names, devices, "are one weight")
    for name, module in modules.items():
        if type(module).__name__ in (model._no_split_modules or ()):
            inside = [f"{name}.{own}" for own, _ in module.named_parameters()]
            _require_together(inside, devices, f"are in one layer, `{name}`, which is not cut")
    return devices


def _require_together(names: Sequence[str], devices: Mapping[str, Device], are: str) -> None:
    if len({devices[_covering(name, devices)] for name in names}) > 1:
        raise _refused("device_map", f"`{names[0]}` and `{names[-1]}` {are}", "Give one device.")


def _covering(name: str, devices: Mapping[str, Device]) -> str:
    """Return the longest module name of a map that a parameter is below; `` covers all."""
    while name and name not in devices:
        name = name.rpartition(".")[0]
    return name


def _require_devices(key: str, named: Sequence[Device], world: World) -> None:
    for device in named:
        if isinstance(device, int) and device >= world.visible_gpus:
            message = f"names GPU {device}, but {world.visible_gpus} GPU(s) are visible"
            raise _refused(key, message, "GPUs count from 0.")
        if isinstance(device, str) and device not in ("cpu", "disk"):
            raise _refused(key, f"`{device}` is no device", "A GPU's number, `cpu` or `disk`.")


def _require_usable(key: str, devices: Mapping[str, Device], world: World, *, trains: bool) -> None:
    used, own = set(devices.values()), _own_device(world)
    if world.visible_gpus and not any(isinstance(device, int) for device in used):
        raise _refused(key, "uses no GPU", "To compute on the CPU, set CUDA_VISIBLE_DEVICES to ''.")
    if used == {"disk"}:
        raise _refused(key, "leaves everything on the disk", "Something must be in memory.")
    if isinstance(own, int) and len(used) == 1 and used != {own}:
        raise _refused(key, f"uses GPU {used.pop()} alone", "Choose it by CUDA_VISIBLE_DEVICES.")
    offloaded = _offloaded(devices, [device for device in used if device == own])
    if trains and offloaded:
        name, device = offloaded[0]
        raise _refused(
            key,
            f"leaves {len(offloaded)} parts of the model in other memory, `{name}` on the "
            f"{_name(device)}: they are fetched for the forward pass, and gradients cannot flow "
            "back through them",
            "Quantise the base (`adapter: qlora`), add GPUs, or raise the limits. Evaluation, chat "
            "and merging run so.",
        )


def _offloaded(
    devices: Mapping[str, Device], computing: Sequence[Device]
) -> list[tuple[str, Device]]:
    """Return what lies where nothing is computed: on the disk, and on the CPU beside GPUs."""
    gpus = any(isinstance(device, int) for device in (*devices.values(), *computing))
    elsewhere = ("cpu", "disk") if gpus else ("disk",)
    return [(name, device) for name, device in devices.items() if device in elsewhere]


def _limits_cpu(wish: Wish) -> bool:
    return "cpu" in (wish.max_memory or {})


def _own_device(world: World) -> Device:
    return _device(world.device)


def _device(name: Device) -> Device:
    """Return a GPU's number, or `cpu`, or `disk`; `cuda:1` is 1."""
    text = str(name).removeprefix("cuda:")
    return int(text) if text.isdigit() else text


def _name(device: Device) -> str:
    return f"GPU {device}" if isinstance(device, int) else device


def _refused(key: str, message: str, hint: str) -> ConfigError:
    return ConfigError([Problem(key, message, hint)])
