"""Which meters a machine offers, in the order in which "auto" tries them."""

from __future__ import annotations

import importlib
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import AUTO, NONE, Meter, MeterChoice
from edge_awq.power.sysfs import is_tegra

# Name -> module and class; imported in the sampling process only.
METERS = {
    "jtop": ("edge_awq.power.jtop", "Jtop"),
    "ina3221": ("edge_awq.power.ina3221", "Ina3221"),
    "nvml": ("edge_awq.power.nvml", "Nvml"),
    "rapl": ("edge_awq.power.rapl", "Rapl"),
    "battery": ("edge_awq.power.battery", "Battery"),
}
NAMES = (AUTO, *METERS, NONE)
_JETSON = ("jtop", "ina3221")
_BY_DEVICE = {"gpu": ("nvml",), "cpu": ("rapl", "battery")}


def candidates(choice: MeterChoice) -> tuple[str, ...]:
    """Names of the meters to try, best first.

    A GPU's work is measured by its own meter only: the processor's power would be another machine's number.

    Raises:
        EdgeAwqError: an unknown name.
    """
    if choice.name == NONE:
        return ()
    if choice.name == AUTO:
        return _JETSON if is_tegra(Path(choice.root)) else _BY_DEVICE[choice.device]
    if choice.name not in METERS:
        raise EdgeAwqError(f"meter '{choice.name}' is not known", hint=f"known: {', '.join(NAMES)}")
    return (choice.name,)


def make_meter(name: str, choice: MeterChoice) -> Meter:
    """A meter that is not yet open."""
    module, kind = METERS[name]
    return getattr(importlib.import_module(module), kind)(choice)
