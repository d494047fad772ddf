"""The machine that runs: what a run log says about it. No serial numbers, user or host names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

PACKAGES = ("edge-awq", "numpy", "onnxruntime", "tokenizers", "tensorrt")


def describe_cpu() -> dict[str, Any]:
    """Name of the processor (None where the kernel does not say), its architecture, CPUs that this process may use."""
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text(encoding="utf-8", errors="replace") if cpu_info.is_file() else ""
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return {"name": name[1] if name else None, "arch": platform.machine(), "usable_cpus": len(os.sched_getaffinity(0))}


def describe_software() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a run's speed and text; None for one that is not installed."""
    return {"python": platform.python_version(), **{name.replace("-", "_"): _version(name) for name in PACKAGES}}


def in_container() -> bool:
    """Whether Docker or Podman runs this process."""
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
