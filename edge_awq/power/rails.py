"""Which power rails of a Jetson make up a total, by their names in the kernel's hwmon tree.

VDD_IN of Orin NX and Nano is the whole module (NVIDIA's Jetson Linux developer guide). AGX Orin and Thor have no such
rail. VDDQ_VDD2_1V8AO of AGX Orin, the memory's, is taken to be fed from VIN_SYS_5V0 and is no part of the sum, as in
most published measurements; the sum is not yet compared with a power supply's meter.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_awq.power.base import Total

# The first that a board has all rails of is its total; the others are logged beside it.
_TOTALS = (
    Total("module", ("VDD_IN",)),
    Total("module-est", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
    Total("module", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
    Total("board", ("VIN",)),
)
UNKNOWN = Total(None, ())


def is_rail(label: str) -> bool:
    """False for channels that are not connected and for the chip's own sum of shunt voltages."""
    return label != "NC" and not label.startswith("sum of")


def find_totals(rails: Sequence[str]) -> tuple[Total, tuple[Total, ...], tuple[str, ...]]:
    """The total of a board with these rails, its other totals, and a note when the board is not known."""
    known = [total for total in _TOTALS if set(total.rails) <= set(rails)]
    if not known:
        note = f"no total is known for the rails {', '.join(rails)}; only the energy of each rail is given"
        return UNKNOWN, (), (note,)
    return known[0], tuple(known[1:]), ()
