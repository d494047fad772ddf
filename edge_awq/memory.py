"""What this process takes of the machine's memory, and what is left of it."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The most memory that this process had resident.

    Linux hands ``ru_maxrss`` down from the parent process through exec, so a small process started by a large one would
    report the large one's; VmHWM belongs to this process alone.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def meminfo_bytes(field: str, path: Path = Path("/proc/meminfo")) -> int | None:
    """What the kernel says of the machine's memory, such as "MemTotal"; None where the system does not say."""
    if not path.is_file():
        return None
    match = re.search(rf"^{field}:\s*(\d+) kB", path.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def available_bytes() -> int | None:
    """Memory that programs can have without swapping, page cache included; None where the system does not say.

    Where a GPU shares it, CUDA does not count the page cache as free (NVIDIA, CUDA for Tegra, section "Estimating total
    allocatable device memory").
    """
    return meminfo_bytes("MemAvailable")
