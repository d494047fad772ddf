"""What this machine can do for edge-awq, and what it lacks: ``edge-awq doctor``.

Every line tries the very thing that a command will need, so its errors and remedies are those of that command.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edge_awq.detect import Machine, detect_target, machine_root, mode_named, read_machine
from edge_awq.errors import EdgeAwqError
from edge_awq.memory import meminfo_bytes
from edge_awq.power.sysfs import gpu_devfreq, read_number

if TYPE_CHECKING:
    from pathlib import Path

    from edge_awq.power.base import MeterChoice
    from edge_awq.target import Target

# For what -> the package, and the extra of edge-awq that brings it.
_OPTIONAL = {"edge-awq build": ("torch", "quantize"), "edge-awq serve": ("uvicorn", "serve"),
             "--json-schema": ("llguidance", "structured"),
             "--workers": ("ray", "ray"), "report's picture": ("matplotlib", "plot")}


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        subject: what it is.
        text: how it is, or why it is not there.
        hint: the remedy; None where all is well, or nothing can be done.
        state: "ok"; "no", which this machine's own target needs; "-", which some command would need.
    """

    subject: str
    text: str
    hint: str | None = None
    state: str = "ok"


def examine(machine: Machine | None = None) -> Iterator[Finding]:
    """Findings, one after the other as they come; the power meters take some seconds."""
    machine = machine or read_machine()
    yield from _describe(machine)
    if machine.is_tegra:
        yield from _examine_board(machine)
    yield _attempt("target cpu", lambda: _version("onnxruntime", module="edge_awq.engine.ort.runtime"), "no")
    yield from _examine_gpu(machine)
    for purpose, (package, extra) in _OPTIONAL.items():
        yield _attempt(purpose, partial(_version, package, extra), "-")
    yield from _examine_meters(machine)


def _describe(machine: Machine) -> Iterator[Finding]:
    target = detect_target(machine)
    mode = f", power mode {machine.power_mode}" if machine.power_mode else ""
    memory = f", {machine.memory_bytes / 2**30:.1f} GiB" if machine.memory_bytes else ""
    yield Finding("machine", f"{target.name}: {target.description}{mode}{memory}")
    yield Finding("system", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _examine_board(machine: Machine) -> Iterator[Finding]:
    """What a Jetson's user can set: how much memory is free, and how fast the board may be."""
    target, root = detect_target(machine), machine_root()
    yield from _examine_memory(target, root / "proc/meminfo")
    mode = mode_named(target, machine.power_mode)
    speeds = {name: (one.bandwidth_gb_s or math.inf, one.gpu_mhz or math.inf) for name, one in target.modes.items()}
    faster = [name for name in speeds if mode is not None and speeds[name] > speeds[mode]]
    if faster:
        yield Finding("power mode", f"{mode}; faster: {', '.join(faster)}",
                      "'edge-awq tune BUNDLE' measures them; sudo nvpmodel -m ID sets one", "-")
    devfreq = gpu_devfreq(root)
    lowest, highest = (read_number(devfreq / name, 1e-6) if devfreq else None for name in ("min_freq", "max_freq"))
    if lowest is not None and highest is not None:
        is_fixed = lowest >= highest
        yield (Finding("GPU clock", f"fixed, {highest:.0f} MHz") if is_fixed else
               Finding("GPU clock", f"{lowest:.0f} to {highest:.0f} MHz",
                       "sudo jetson_clocks fixes it, so that measurements can be compared", "-"))


def _examine_memory(target: Target, path: Path) -> Iterator[Finding]:
    """What is free, and whether the system takes more than plans reckon with."""
    total, free, swap = (meminfo_bytes(name, path) for name in ("MemTotal", "MemAvailable", "SwapTotal"))
    if total is None or free is None:
        return
    text = f"{free / 2**30:.1f} GiB available, {(swap or 0) / 2**30:.1f} GiB of swap"
    taken_mib = (total - free) >> 20
    if target.reserve is None or taken_mib <= target.reserve.system_mib:
        yield Finding("memory", text)
    else:
        yield Finding("memory", text, f"the system takes {taken_mib} MiB, 'edge-awq plan' reckons with "
                      f"{target.reserve.system_mib}: end what is not needed, such as the desktop "
                      "(sudo systemctl isolate multi-user.target)", "-")


def _examine_gpu(machine: Machine) -> Iterator[Finding]:
    """What engines need, piece by piece."""
    if not machine.gpus and not machine.is_tegra:
        yield Finding("targets for GPUs", "NVIDIA's driver shows no GPU; bundles for them can be built here, not run",
                      state="-")
        return
    for gpu in machine.gpus:
        major, minor = gpu.compute_capability
        yield Finding("GPU", f"{gpu.name}, compute capability {major}.{minor}, {gpu.sm_count} multiprocessors")
    yield _attempt("pycuda", _try_cuda, "no")
    tensorrt = _attempt("TensorRT", _try_tensorrt, "no")
    yield tensorrt
    yield _attempt("plugins", partial(_try_plugins, tensorrt.state == "ok"), "no")


def _try_cuda() -> str:
    from edge_awq.engine.trt.cuda import open_cuda

    cuda = open_cuda()
    try:
        return f"{cuda.free_bytes() / 2**30:.1f} GiB free on the GPU"
    finally:
        cuda.close()


def _try_tensorrt() -> str:
    from edge_awq.engine.trt.bindings import import_tensorrt

    return import_tensorrt().version_text


def _try_plugins(is_tensorrt_here: bool) -> str:
    from edge_awq import plugins
    from edge_awq.engine.trt.bindings import load_toolkit

    path = plugins.find_library()
    plugins.load_library(path)
    if is_tensorrt_here:
        load_toolkit(path)
    return f"contract {plugins.CONTRACT_VERSION}{', in TensorRT' if is_tensorrt_here else ''}, {path}"


def _examine_meters(machine: Machine) -> Iterator[Finding]:
    """Each meter that "auto" would try here."""
    from edge_awq.power.base import MeterChoice
    from edge_awq.power.choose import candidates

    root = str(machine_root())
    devices = ("gpu", "cpu") if machine.gpus or machine.is_tegra else ("cpu",)
    names = [name for device in devices for name in candidates(MeterChoice(device=device, root=root))]
    for name in dict.fromkeys(names):
        yield _attempt("power", partial(_try_meter, MeterChoice(name, root=root)), "-")


def _try_meter(choice: MeterChoice) -> str:
    from edge_awq.power.monitor import start_meter

    with start_meter(choice) as meter:
        source = meter.ready()
        reading = meter.latest
        watts = source.total_w(reading) if reading is not None else None
        now = "" if watts is None else f"{watts:.1f} W now, "
        return f"{choice.name}: {now}{source.total.scope or 'total unknown'} of {', '.join(source.total.rails)}"


def _version(package: str, extra: str | None = None, module: str | None = None) -> str:
    """Of a package that can be imported.

    Args:
        extra: what brings it, None where edge-awq cannot be without.
        module: what imports it and has its version, where that is not the package itself.
    """
    from edge_awq.lazy import require

    try:
        found = require(module or package, extra or "")
    except EdgeAwqError as error:
        raise EdgeAwqError(f"{package} is not installed", error.hint if extra else "install edge-awq again") from error
    return f"{package} {found.__version__}"


def _attempt(subject: str, what: Callable[[], str], state: str) -> Finding:
    """``state``: what it is if it fails."""
    try:
        return Finding(subject, what())
    except EdgeAwqError as error:
        return Finding(subject, error.message, error.hint, state)
    except (ImportError, OSError) as error:  # a package that is there and does not load
        return Finding(subject, f"{type(error).__name__}: {error}", "install it again", state)
