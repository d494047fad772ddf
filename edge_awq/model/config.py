"""config.json, read once into the canonical words that the rest of edge-awq uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.model.family import Family, find_family
from edge_awq.model.rope import RopeSpec, read_rope

# Names of activations in config.json -> canonical activation.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of one decoder, in canonical words; sizes count elements, positions and windows count tokens.

    Attributes:
        windows: per layer, the number of newest positions a query sees (itself included); None sees all.
        tied_head: the head's weight is the embedding's.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    rope: RopeSpec
    windows: tuple[int | None, ...]
    tied_head: bool | None  # None: config.json does not say; the checkpoint decides

    @property
    def q_size(self) -> int:
        """Output features of q."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Output features of k, and of v."""
        return self.num_kv_heads * self.head_size

    def linear_shape(self, name: str) -> tuple[int, int]:
        """(N, K) = (output, input) features of the canonical linear ``name``."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q": (self.q_size, hidden),
            "k": (self.kv_size, hidden),
            "v": (self.kv_size, hidden),
            "o": (hidden, self.q_size),
            "gate": (inner, hidden),
            "up": (inner, hidden),
            "down": (hidden, inner),
            "head": (self.vocab_size, hidden),
            "embed": (self.vocab_size, hidden),
        }[name]


def read_config(folder: Path) -> tuple[Family, DecoderConfig]:
    """Read ``folder``/config.json.

    Raises:
        EdgeAwqError: the file is missing or broken, the family unknown, or a value impossible.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise EdgeAwqError(
            f"{folder}: no config.json, so this is not a Hugging Face checkpoint",
            hint="give the folder that holds config.json and the weights, or a hub id such as org/name",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EdgeAwqError(f"{path}: not valid JSON: {error}", hint="download the file again") from error
    if not isinstance(raw, dict):
        raise EdgeAwqError(f"{path}: a JSON object is expected", hint="download the file again")
    family = find_family(str(raw.get("model_type")))
    return family, parse_config(raw, family)


def parse_config(raw: dict[str, Any], family: Family) -> DecoderConfig:
    """Translate the keys of a config.json with the names that ``family`` gives."""
    reader = _Reader(raw, family)
    num_heads = reader.count("num_heads")
    hidden_size = reader.count("hidden_size")
    head_size = reader.count("head_size", default=hidden_size // num_heads)
    num_kv_heads = reader.count("num_kv_heads", default=num_heads)
    max_positions = reader.count("max_positions")
    num_layers = reader.count("num_layers")
    if num_heads % num_kv_heads:
        raise EdgeAwqError(
            f"config.json: {num_heads} query heads do not share {num_kv_heads} KV heads evenly",
            hint="the number of query heads must be a multiple of the number of KV heads",
        )
    if head_size % 2:
        raise EdgeAwqError(f"config.json: head size {head_size} is odd; rotary positions need pairs",
                           hint="check num_attention_heads and head_dim")
    name = reader.value("activation", default="silu")
    if name not in ACTIVATIONS:
        raise EdgeAwqError(f"config.json: activation '{name}' is not known",
                           hint=f"known: {', '.join(sorted(ACTIVATIONS))}")
    return DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=reader.count("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        vocab_size=reader.count("vocab_size"),
        max_positions=max_positions,
        norm_eps=reader.number("norm_eps", default=1e-6),
        activation=ACTIVATIONS[name],
        rope=read_rope(raw, head_size, max_positions),
        windows=_read_windows(raw, num_layers),
        tied_head=raw.get("tie_word_embeddings"),
    )


class _Reader:
    """Values of a config.json by canonical name, with errors that name the key."""

    def __init__(self, raw: dict[str, Any], family: Family) -> None:
        self._raw = raw
        self._keys = family.config

    def value(self, name: str, default: Any = None) -> Any:
        found: Any = self._raw
        for part in self._keys[name].split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return default if found is None else found

    def count(self, name: str, default: int | None = None) -> int:
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EdgeAwqError(f"config.json: {self._keys[name]} = {value!r}, a positive whole number is expected",
                               hint="download config.json again, or correct it")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.value(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1:
            raise EdgeAwqError(f"config.json: {self._keys[name]} = {value!r}, a small positive number is expected",
                               hint="download config.json again, or correct it")
        return float(value)


def _read_windows(raw: dict[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Sliding windows per layer: from layer_types where it is given, else from the switches of Mistral and Qwen2."""
    window = raw.get("sliding_window")
    if window is None or raw.get("use_sliding_window") is False:
        return (None,) * num_layers
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise EdgeAwqError(f"config.json: sliding_window = {window!r}, a positive whole number is expected",
                           hint="use null for no window")
    kinds = raw.get("layer_types")
    if kinds is not None:
        if len(kinds) != num_layers:
            raise EdgeAwqError(f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers",
                               hint="download config.json again, or correct it")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = raw.get("max_window_layers", 0) if raw.get("use_sliding_window") else 0
    return tuple(window if layer >= first else None for layer in range(num_layers))
