"""edge-awq: AWQ-quantized language models on Jetson, RTX and plain laptops, with tokens/s and joules.

    from edge_awq import load

    with load("tinyllama.bundle") as session:
        for token in session.generate("The capital of France is", max_tokens=32):
            print(token.text, end="")
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``load`` is imported when it is first asked for, so that ``import edge_awq`` stays light."""
    if name == "load":
        from edge_awq.runner.session import load

        return load
    raise AttributeError(f"module 'edge_awq' has no attribute '{name}'")
