"""Sliding windows as the installed onnxruntime counts them.

Ours count the newest position, as transformers does. GroupQueryAttention does so since onnxruntime 1.24
(microsoft/onnxruntime pull request 25927); before, its local_window_size counted the positions before the newest. So a
graph with windows says in its metadata how they are counted, and is counted anew where a device has another
onnxruntime than the workstation: with Python 3.10, as in JetPack 6, 1.23 is the last.
"""

from __future__ import annotations

from edge_awq.engine.ort.runtime import onnxruntime

COUNTS_NEWEST_SINCE = (1, 24)
METADATA_KEY = "edge_awq.windows"
UNLIMITED = -1
_OFFSETS = {"with the newest": 0, "before the newest": -1}  # what is added to a window of ours


def counting() -> str:
    """How the installed onnxruntime counts: the value of METADATA_KEY."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    return "with the newest" if (int(major), int(minor)) >= COUNTS_NEWEST_SINCE else "before the newest"


def kernel_window(window: int) -> int:
    """``local_window_size`` for a window of ``window`` positions, the newest included."""
    return window + _OFFSETS[counting()]


def counted_here(graph: bytes) -> bytes:
    """A serialized lowered graph whose windows are counted as the installed onnxruntime counts them.

    Bytes that are no graph, or say nothing of windows, come back as they are.
    """
    if METADATA_KEY.encode() not in graph:
        return graph
    import onnx  # only where there are windows: to run, onnx is not needed otherwise
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(graph)
    except DecodeError:  # onnxruntime says what is wrong
        return graph
    made = next((entry for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    shift = _OFFSETS[counting()] - _OFFSETS[made.value] if made else 0
    if shift == 0:
        return graph
    made.value = counting()
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size" and attribute.i != UNLIMITED:
                attribute.i += shift
    return model.SerializeToString()
