"""The plugin library: where it lies, and whether it fits this package. plugins/library/capi.h has its functions."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION

LIBRARY = "libedge_awq_plugins.so"
OVERRIDE = "EDGE_AWQ_PLUGINS"  # an environment variable: the path of another build
_TOP = Path(__file__).resolve().parent
PLACES = (_TOP / "lib", _TOP.parent / "build" / "plugins")  # a wheel's, a checkout's

_BUILD_HINT = "install a wheel for this machine, or build it: python plugins/build_kernels.py library -o build/plugins"


def find_library() -> Path:
    """The file of the plugin library.

    Raises:
        EdgeAwqError: it is in none of the places.
    """
    override = os.environ.get(OVERRIDE)
    candidates = [Path(override)] if override else [folder / LIBRARY for folder in PLACES]
    for path in candidates:
        if path.is_file():
            return path
    searched = ", ".join(map(str, candidates))
    hint = f"unset {OVERRIDE}, or let it name the file" if override else _BUILD_HINT
    raise EdgeAwqError(f"the plugin library is not there: {searched}", hint=hint)


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The library, its contract version checked and its functions declared. Needs no GPU and no driver.

    Args:
        path: None finds it.

    Raises:
        EdgeAwqError: it is not there, is no library for this machine, or has another contract version.
    """
    path = path or find_library()
    try:
        library = ctypes.CDLL(str(path))
        version = library.edge_awq_contract_version()
    except (OSError, AttributeError) as error:
        raise EdgeAwqError(f"{path} is not a plugin library for this machine ({platform.machine()}): {error}",
                           hint=_BUILD_HINT) from error
    if version != CONTRACT_VERSION:
        raise EdgeAwqError(f"{path} has plugin contract version {version}, this edge-awq has {CONTRACT_VERSION}",
                           hint="build or install both from the same version")
    for name in ("edge_awq_last_error", "edge_awq_kernels", "edge_awq_ops"):
        getattr(library, name).restype = ctypes.c_char_p
    library.edge_awq_create.restype = ctypes.c_void_p
    library.edge_awq_workspace_bytes.restype = ctypes.c_int64
    return library
