"""Which target the machine at hand is: by its device tree on a Jetson, by NVIDIA's driver elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_awq.gpus import Gpu, query_gpus
from edge_awq.memory import meminfo_bytes
from edge_awq.power.sysfs import gpu_devfreq, read_number
from edge_awq.target import DEFAULT, Device, Limits, Match, Mode, QuantSpec, Reserve, Target, find_target, load_targets

OLDEST_GPU = (8, 0)  # compute capability that the kernels are built for at least
_MIB = 1 << 20
_PART = re.compile(r"p\d{4}-\d{4}")
_MODE_ID = re.compile(r"pmode:\s*0*(\d+)")
_MODE_NAME = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """What identifies a machine; no serial numbers, user or host names.

    Attributes:
        model: the device tree's name of the board; None elsewhere.
        compatible: the device tree's ``compatible``, most specific first.
        gpus: what the driver says.
        memory_bytes: memory that the operating system has; None where it does not say.
        power_mode: the name of the Jetson's power mode, where it is known.
        gpu_max_mhz: the GPU's highest clock in this mode, where it is known.
    """

    model: str | None
    compatible: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    memory_bytes: int | None
    power_mode: str | None
    gpu_max_mhz: float | None

    @property
    def is_tegra(self) -> bool:
        """A Jetson, or another board with NVIDIA's Tegra."""
        return any(entry.startswith("nvidia,tegra") for entry in self.compatible)

    @property
    def parts(self) -> frozenset[str]:
        """Part numbers of module and carrier board, such as "p3767-0005"."""
        return frozenset(part for entry in self.compatible for part in _PART.findall(entry))


def machine_root() -> Path:
    """Where the machine's /sys, /proc and /etc are: where ``EDGE_AWQ_METER_ROOT`` says, as in a container, or /."""
    return Path(os.environ.get("EDGE_AWQ_METER_ROOT") or "/")


def read_machine(root: Path | None = None, query: Callable[[], tuple[Gpu, ...]] = query_gpus) -> Machine:
    """Read the machine's own description; ``query`` asks the driver.

    Args:
        root: where its files are; None: ``machine_root()``.
    """
    root = root or machine_root()
    tree, devfreq = root / "proc/device-tree", gpu_devfreq(root)
    return Machine(
        model=_text(tree / "model"),
        compatible=tuple((_text(tree / "compatible") or "").split("\0")) if (tree / "compatible").is_file() else (),
        gpus=query(),
        memory_bytes=meminfo_bytes("MemTotal", root / "proc/meminfo") or meminfo_bytes("MemTotal"),
        power_mode=_power_mode(root),
        gpu_max_mhz=read_number(devfreq / "max_freq", 1e-6) if devfreq else None,
    )


def detect_target(machine: Machine | None = None, targets: Sequence[Target] | None = None) -> Target:
    """The profile that the machine matches; one made of what the driver says for an unknown GPU; else target cpu."""
    machine = machine or read_machine()
    targets = load_targets() if targets is None else targets
    if found := matching_target(machine, targets):
        return found
    for gpu in machine.gpus:
        if gpu.compute_capability >= OLDEST_GPU:
            return target_from_driver(gpu)
    return find_target(DEFAULT)


def matching_target(machine: Machine, targets: Sequence[Target]) -> Target | None:
    """The first profile whose rules fit the machine: its module on a Jetson, one of its GPUs elsewhere."""
    names = {gpu.name for gpu in machine.gpus}
    for target in targets:
        if machine.is_tegra and machine.parts & set(target.match.modules):
            return target
        if not machine.is_tegra and names & set(target.match.gpus):
            return target
    return None


def mode_named(target: Target, name: str | None) -> str | None:
    """The target's own spelling of a power mode: images write "15W" and "MODE_15W"; None where it has no such mode."""
    plain = {mode.removeprefix("MODE_"): mode for mode in target.modes}
    return plain.get(name.removeprefix("MODE_")) if name else None


def target_from_driver(gpu: Gpu) -> Target:
    """A profile for a GPU that no profile knows; limits and reserves are careful guesses, there is no forecast."""
    major, minor = gpu.compute_capability
    return Target(
        name=re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"),
        description=f"{gpu.name}, made from what the driver says",
        kind="tensorrt",
        limits=Limits(max_context=4096, prefill_chunk=512),
        quant=QuantSpec(group_size=128, symmetric=False, head_bits=4),
        match=Match(gpus=(gpu.name,)),
        device=Device(
            compute_capability=f"{major}.{minor}",
            sm_count=gpu.sm_count,
            memory_mib=gpu.memory_bytes // _MIB,
            unified_memory=gpu.integrated,
            bandwidth_gb_s=gpu.bandwidth_gb_s,
            l2_mib=gpu.l2_bytes // _MIB or None,
            gpu_mhz=gpu.clock_mhz or None,
            default_mode="default",
        ),
        modes={"default": Mode()},
        reserve=Reserve(system_mib=1536 if gpu.integrated else 400, runtime_mib=600,
                        page_cache_mib=256 if gpu.integrated else 0, build_mib=2048 if gpu.integrated else 512),
    )


def _text(path: Path) -> str | None:
    """A small file's text without the zero byte that ends device tree strings."""
    try:
        return path.read_bytes().decode(errors="replace").strip().rstrip("\0") or None
    except OSError:
        return None


def _power_mode(root: Path) -> str | None:
    """nvpmodel keeps the mode's number in its status file, and their names in its configuration."""
    number = _MODE_ID.search(_text(root / "var/lib/nvpmodel/status") or "")
    names = dict(_MODE_NAME.findall(_text(root / "etc/nvpmodel.conf") or ""))
    return names.get(number[1]) if number else None
