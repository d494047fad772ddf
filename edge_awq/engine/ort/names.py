"""Names of compiled graphs: runtime, contract version, and what they were compiled from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge_awq.export.ops import CONTRACT_VERSION

RUNTIME = "onnxruntime"
LOWERING_VERSION = 2  # grows when the same graph is lowered to a different one, or asks for different inputs


def engine_name(graph: Path) -> str:
    """File name of the compiled form of the canonical graph at ``graph``."""
    digest = hashlib.sha256(f"lowering {LOWERING_VERSION}\n".encode() + graph.read_bytes()).hexdigest()
    return f"{RUNTIME}-contract{CONTRACT_VERSION}-{digest[:16]}.onnx"
