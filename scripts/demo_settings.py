"""What the demo model is made from; free of torch, so that a model that is already there is found at once."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "edge_awq" / "bench"
SOURCES = (HERE / "demo_settings.py", HERE / "demo_training.py", PACKAGE / "hf_folder.py",
           PACKAGE / "random_weights.py", PACKAGE / "stdlib_text.py")


@dataclass(frozen=True)
class Phase:
    """``steps`` batches of ``sequences`` windows of ``tokens`` tokens."""

    steps: int
    sequences: int
    tokens: int


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides what the demo model becomes, besides the Python version.

    Attributes:
        context: positions the model is made for; the last phase trains all of them.
        text_size: characters of training text at most.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    context: int = 512
    text_size: int = 8_000_000
    phases: tuple[Phase, ...] = (Phase(800, 8, 128), Phase(80, 4, 512))
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0

    def stamp(self) -> str:
        """Changes whenever a model trained now would differ from one trained before."""
        sources = [path.read_bytes() for path in SOURCES]
        parts = [repr(self).encode(), platform.python_version().encode(), *sources]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()
