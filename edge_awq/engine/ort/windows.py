"""Sliding windows as the installed onnxruntime counts them.

Ours count the newest position, as transformers does. GroupQueryAttention does so since onnxruntime 1.24
(microsoft/onnxruntime pull request 25927); before, its local_window_size counted the positions before the newest. So a
graph with windows says in its metadata how they are counted, and runs only where they are counted that way.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime

from edge_awq.errors import EdgeAwqError

COUNTS_NEWEST_SINCE = (1, 24)
METADATA_KEY = "edge_awq.windows"
UNLIMITED = -1


def counting() -> str:
    """How the installed onnxruntime counts: the value of METADATA_KEY."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    return "with the newest" if (int(major), int(minor)) >= COUNTS_NEWEST_SINCE else "before the newest"


def kernel_window(window: int) -> int:
    """``local_window_size`` for a window of ``window`` positions, the newest included."""
    return window if counting() == "with the newest" else window - 1


def check_windows(metadata: Mapping[str, str]) -> None:
    """A graph with this ``metadata`` computes here what was meant.

    Raises:
        EdgeAwqError: its windows are counted otherwise than the installed onnxruntime counts.
    """
    if metadata.get(METADATA_KEY, counting()) != counting():
        raise EdgeAwqError(f"the graph was compiled for an onnxruntime that counts sliding windows otherwise than "
                           f"{onnxruntime.__version__} does", hint="build the bundle again with this onnxruntime")
