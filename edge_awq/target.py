"""Targets: what a bundle is built for, read from ``profiles/*.toml`` and from the user's own profiles."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.toml import from_table, load_toml

AUTO = "auto"  # the profile that matches this machine
DEFAULT = "cpu"  # what a machine without a known GPU is
OWN_PROFILES = "EDGE_AWQ_PROFILES"  # environment variable: folders of the user's profiles, in place of the usual one


@dataclass(frozen=True)
class Limits:
    """max_context: tokens in the KV cache; prefill_chunk: prompt tokens per pass."""

    max_context: int
    prefill_chunk: int


@dataclass(frozen=True)
class QuantSpec:
    """How weights are stored.

    Attributes:
        group_size: weights that share a scale along K; 64 is used where K does not divide by 128.
        symmetric: all zero points are 8.
        head_bits: 4, 8 or 16 for the output head.
    """

    group_size: int
    symmetric: bool
    head_bits: int

    def __post_init__(self) -> None:
        for name, choices in (("group_size", (128, 64)), ("head_bits", (4, 8, 16))):
            if getattr(self, name) not in choices:
                raise EdgeAwqError(f"{name} = {getattr(self, name)!r} is not possible",
                                   hint=f"use one of: {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class Match:
    """How a machine is recognised; one entry that fits is enough.

    Attributes:
        modules: part numbers of Jetson modules, as the device tree's ``compatible`` has them: "p3701-0005".
        gpus: the driver's names of GPUs: "NVIDIA GeForce RTX 4090".
    """

    modules: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Device:
    """The hardware at its best; a power mode may allow less. None: not known.

    Attributes:
        memory_mib: memory that programs can have at most, as CUDA reports it.
        unified_memory: CPU and GPU share that memory.
        compute_capability: CUDA's, such as "8.7"; None without a GPU, as is ``sm_count``.
        bandwidth_gb_s: of that memory; 1 GB is 1e9 bytes.
        fp16_tflops, int8_tops: dense tensor peaks, fp16 accumulation.
        default_mode: the power mode that forecasts assume; a key of the profile's modes.
    """

    memory_mib: int
    unified_memory: bool
    compute_capability: str | None = None
    sm_count: int | None = None
    bandwidth_gb_s: float | None = None
    l2_mib: int | None = None
    gpu_mhz: float | None = None
    fp16_tflops: float | None = None
    int8_tops: float | None = None
    default_mode: str | None = None


@dataclass(frozen=True)
class Mode:
    """What a power mode allows. None: as the device at its best, for ``watts``: not known.

    Attributes:
        watts: the mode's power budget.
    """

    watts: float | None = None
    gpu_mhz: float | None = None
    bandwidth_gb_s: float | None = None
    sm_count: int | None = None


@dataclass(frozen=True)
class Reserve:
    """Memory that the model cannot have, in MiB.

    Attributes:
        system_mib: operating system; beside a discrete GPU, display and driver.
        runtime_mib: the runtime's own context and code.
        page_cache_mib: pages of the weights file that are in memory while they are uploaded.
        build_mib: what compiling an engine takes at its peak, beside what runs all the time.
    """

    system_mib: int
    runtime_mib: int
    page_cache_mib: int
    build_mib: int


@dataclass(frozen=True)
class Forecast:
    """efficiency: share of the memory limit that a prediction assumes; source: why that much."""

    efficiency: float
    source: str


@dataclass(frozen=True)
class Target:
    """One target profile; ``kind`` names the runtime that compiles and runs its bundles."""

    name: str
    description: str
    kind: str
    limits: Limits
    quant: QuantSpec
    match: Match = field(default_factory=Match)
    device: Device | None = None  # None: any machine; nothing is known before one is at hand
    modes: dict[str, Mode] = field(default_factory=dict)
    reserve: Reserve | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        default = self.device.default_mode if self.device else None
        if default is not None and default not in self.modes:
            raise EdgeAwqError(f"target '{self.name}': default_mode = '{default}' is none of its modes",
                               hint=f"its modes: {', '.join(self.modes) or 'none'}")
        if self.forecast and not 0 < self.forecast.efficiency <= 1:
            raise EdgeAwqError(f"target '{self.name}': efficiency = {self.forecast.efficiency:g} is not a share",
                               hint="give the share of the memory limit, above 0 and up to 1")


def profile_folder() -> Path:
    """Where the profiles lie: in the installed package, or in ``profiles/`` of an editable checkout."""
    try:
        return Path(str(resources.files("edge_awq.profiles")))
    except ModuleNotFoundError:  # a checkout that is not installed
        return Path(__file__).resolve().parents[1] / "profiles"


def own_profile_folders() -> tuple[Path, ...]:
    """Where the user's profiles lie: the folders in $EDGE_AWQ_PROFILES, else ``profiles`` in the config folder."""
    if named := os.environ.get(OWN_PROFILES):
        return tuple(Path(part).expanduser() for part in named.split(os.pathsep) if part)
    from platformdirs import user_config_path

    return (user_config_path("edge-awq") / "profiles",)


def load_targets() -> tuple[Target, ...]:
    """Every target, by name: those that ship with edge-awq, and the user's, which replace one of the same name."""
    found = {target.name: target for target in map(read_target, sorted(profile_folder().glob("*.toml")))}
    for folder in own_profile_folders():
        found |= {target.name: target for target in map(read_target, sorted(folder.glob("*.toml")))}
    return tuple(found[name] for name in sorted(found))


def find_target(name: str) -> Target:
    """The target called ``name``, or in the file NAME.toml, or with "auto" the one that this machine is.

    Raises:
        EdgeAwqError: there is none; the hint lists those that exist.
    """
    if name == AUTO:
        from edge_awq.detect import detect_target

        return detect_target()
    if name.endswith(".toml"):
        return _read_own(Path(name).expanduser())
    targets = load_targets()
    for target in targets:
        if target.name == name:
            return target
    raise EdgeAwqError(f"target '{name}' is not known",
                       hint=f"known: {', '.join(t.name for t in targets)}; or {AUTO}, or a profile's file NAME.toml")


def read_target(path: Path) -> Target:
    """Read one profile; a missing or unknown key, or a value of another type, is an error that names it."""
    return from_table(Target, load_toml(path), str(path))


def _read_own(path: Path) -> Target:
    if not path.is_file():
        raise EdgeAwqError(f"target '{path}': no such file", hint="give a profile's file, or a name: edge-awq targets")
    return read_target(path)
