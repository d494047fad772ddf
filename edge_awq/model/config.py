"""config.json, read once into the canonical words that the rest of edge-awq uses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.model.expression import evaluate
from edge_awq.model.family import Family, find_family
from edge_awq.model.rope import RopeSpec, read_rope

# Names of activations in config.json -> canonical activation.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
_LAYERS = 10_000  # far above every model; what a damaged file asks for would not fit into memory


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of one decoder, in canonical words; sizes count elements, positions and windows count tokens.

    Attributes:
        norm, mlp, position, residual: the family's words for how a block is built.
        rope: rotary positions, None where there are none; ``local_rope`` in layers with a window, None: as the others.
        rotated: per layer, whether it has rotary positions; None: as all others.
        windows: per layer, the number of newest positions a query sees (itself included); None sees all.
        tied_head: the head's weight is the embedding's.
        attention_scale: factor on queries times keys.
        attention_softcap, logit_softcap: scores, or logits, x become c * tanh(x / c); None leaves them alone.
        alibi_max_bias: ALiBi's steepest slope is 2 ** -(alibi_max_bias / num_heads); None has no ALiBi.
        clip_qkv: bound on the size of every element of q, k and v; None has no bound.
        logit_scale: factor on the head's results, before a soft-cap; the last norm's stored gains have it in them.
        embed_scale: factor on embedded tokens; the head multiplies by the table as it is.
        qk_norm: whether q_norm and k_norm are over each "head", or over the whole "row".
        position_offset: rows of the stored table of learned positions before that of position 0.
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
    norm: str
    mlp: str
    position: str
    residual: str
    rope: RopeSpec | None
    windows: tuple[int | None, ...]
    tied_head: bool | None  # None: config.json does not say; the checkpoint decides
    attention_scale: float
    rotated: tuple[bool, ...] | None = None
    local_rope: RopeSpec | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    alibi_max_bias: float | None = None
    clip_qkv: float | None = None
    logit_scale: float = 1.0
    embed_scale: float = 1.0
    qk_norm: str = "head"
    position_offset: int = 0

    @property
    def q_size(self) -> int:
        """Output features of q."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Output features of k, and of v."""
        return self.num_kv_heads * self.head_size

    def rope_of(self, layer: int) -> RopeSpec | None:
        """Rotary positions of a layer; None where it has none."""
        if self.rotated is not None and not self.rotated[layer]:
            return None
        return self.rope if self.local_rope is None or self.windows[layer] is None else self.local_rope

    @property
    def ropes(self) -> dict[str, RopeSpec]:
        """Stored name -> every kind of rotary positions in the model; a layer's is found by ``rope_name``."""
        found = {"rope": self.rope, "local_rope": self.local_rope}
        return {name: spec for name, spec in found.items() if spec is not None}

    def rope_name(self, layer: int) -> str:
        """Name of the tables of a layer with rotary positions, a key of ``ropes``."""
        return "rope" if self.rope_of(layer) is self.rope else "local_rope"

    def norm_size(self, name: str) -> int:
        """Elements that the canonical norm ``name`` normalizes together."""
        sizes = {"q_norm": self.q_size, "k_norm": self.kv_size}
        if name not in sizes:
            return self.hidden_size
        return sizes[name] if self.qk_norm == "row" else self.head_size

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
    family = find_family(raw)
    return family, parse_config(raw, family)


def parse_config(raw: dict[str, Any], family: Family) -> DecoderConfig:
    """Translate a config.json with the names that ``family`` gives.

    Raises:
        EdgeAwqError: a value is impossible, contradicts another, or asks for what the family's words do not describe.
    """
    family.check(raw)
    reader = _Reader(raw, family)
    num_heads, hidden_size = reader.count("num_heads"), reader.count("hidden_size")
    num_kv_heads = reader.count("num_kv_heads", default=num_heads)
    head_size = _head_size(reader, hidden_size, num_heads)
    max_positions, num_layers = reader.count("max_positions"), reader.count("num_layers", below=_LAYERS)
    if num_heads % num_kv_heads:
        raise EdgeAwqError(
            f"config.json: {num_heads} query heads do not share {num_kv_heads} KV heads evenly",
            hint="the number of query heads must be a multiple of the number of KV heads",
        )
    windows = _read_windows(raw, reader, num_layers)
    rope, local_rope = _read_ropes(raw, reader, head_size, max_positions) if family.position == "rope" else (None, None)
    return DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=reader.count("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        vocab_size=reader.count("vocab_size"),
        max_positions=max_positions,
        norm_eps=reader.number("norm_eps", below=1.0),
        activation=_read_activation(reader),
        norm=family.norm,
        mlp=family.mlp,
        position=family.position,
        residual=family.residual,
        rope=rope,
        windows=windows,
        tied_head=_read_tied_head(reader),
        attention_scale=reader.number("attention_scale", default=head_size**-0.5),
        rotated=_read_rotated(raw, reader, windows),
        local_rope=local_rope,
        attention_softcap=reader.number("attention_softcap"),
        logit_softcap=reader.number("logit_softcap"),
        alibi_max_bias=reader.number("alibi_max_bias") if family.position == "alibi" else None,
        clip_qkv=reader.number("clip_qkv"),
        logit_scale=reader.number("logit_scale", default=1.0),
        embed_scale=reader.number("embed_scale", default=1.0),
        qk_norm=family.qk_norm,
        position_offset=reader.value("position_offset", default=0),
    )


class _Reader:
    """Values of a config.json by canonical name, with errors that name the key."""

    def __init__(self, raw: dict[str, Any], family: Family) -> None:
        self._raw = raw
        self._expressions = family.config
        self._defaults = family.defaults

    def value(self, name: str, default: Any = None) -> Any:
        """The first of the family's expressions that has a value, else its default, else ``default``."""
        for expression in self._expressions.get(name, ()):
            if (found := evaluate(expression, self._raw)) is not None:
                return found
        return self._defaults.get(name, default)

    def key(self, name: str) -> str:
        """What is written in config.json for ``name``."""
        return " or ".join(self._expressions.get(name, (name,)))

    def count(self, name: str, default: int | None = None, below: float = math.inf) -> int:
        """A whole number in [1, ``below``)."""
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < below:
            bound = "" if below == math.inf else f" below {below}"
            raise self.wrong(name, value, f"a positive whole number{bound}")
        return value

    def number(self, name: str, default: float | None = None, below: float = math.inf) -> float | None:
        """A number in (0, ``below``); None where neither config.json nor a default gives one."""
        value = self.value(name, default)
        if value is None and below == math.inf:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < below:
            raise self.wrong(name, value, "a positive number" if below == math.inf else "a small positive number")
        return float(value)

    def wrong(self, name: str, value: Any, expected: str) -> EdgeAwqError:
        """The error for a value that cannot be."""
        return EdgeAwqError(f"config.json: {self.key(name)} = {value!r}, {expected} is expected",
                            hint="download config.json again, or correct it")


def _head_size(reader: _Reader, hidden_size: int, num_heads: int) -> int:
    """As config.json gives it, else what is left when the heads share the hidden size."""
    given = reader.value("head_size")
    if given is None and hidden_size % num_heads:
        raise EdgeAwqError(f"config.json: {num_heads} heads do not share {hidden_size} hidden channels evenly",
                           hint="download config.json again, or correct it")
    head_size = reader.count("head_size", default=hidden_size // num_heads)
    if head_size % 2:
        raise EdgeAwqError(f"config.json: head size {head_size} is odd; positions and kernels need pairs",
                           hint="check the number of heads and the size of a head")
    return head_size


def _read_activation(reader: _Reader) -> str:
    name = reader.value("activation")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise EdgeAwqError(f"config.json: activation '{name}' is not known",
                           hint=f"known: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def _read_tied_head(reader: _Reader) -> bool | None:
    tied = reader.value("tied_head")
    if tied is not None and not isinstance(tied, bool):
        raise reader.wrong("tied_head", tied, "true or false")
    return tied


def _read_ropes(
    raw: dict[str, Any], reader: _Reader, head_size: int, max_positions: int
) -> tuple[RopeSpec, RopeSpec | None]:
    """rope_parameters (since transformers 5, perhaps one table for each kind of layer) or rope_scaling (before)."""
    table = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(table, dict):
        raise EdgeAwqError(f"config.json: rope_parameters = {table!r}, a table is expected",
                           hint="download config.json again, or correct it")
    fraction = reader.number("rotary_fraction", default=1.0)

    def spec(table: dict[str, Any], theta: float) -> RopeSpec:
        beside = {"rope_theta": theta, "partial_rotary_factor": fraction}
        if (original := raw.get("original_max_position_embeddings")) is not None:
            beside["original_max_position_embeddings"] = original
        return read_rope({**beside, **table}, head_size, max_positions)

    rope = spec(table.get("full_attention", table), reader.number("rope_theta", default=10000.0))
    local_theta = reader.number("local_rope_theta")
    local = table.get("sliding_attention", {})
    return rope, None if local_theta is None else spec(local, local_theta)


def _read_windows(raw: dict[str, Any], reader: _Reader, num_layers: int) -> tuple[int | None, ...]:
    """Sliding windows per layer.

    From layer_types where it is given; else every ``window_pattern``-th layer sees all, where the family has that
    word; else from the switches of Mistral and Qwen2.
    """
    window = raw.get("sliding_window")
    if window is None or raw.get("use_sliding_window") is False:
        return (None,) * num_layers
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise EdgeAwqError(f"config.json: sliding_window = {window!r}, a positive whole number is expected",
                           hint="use null for no window")
    kinds = raw.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise EdgeAwqError(f"config.json: layer_types = {kinds!r}, {num_layers} entries are expected",
                               hint="download config.json again, or correct it")
        windows = {"sliding_attention": window, "full_attention": None}
        if unknown := [kind for kind in kinds if kind not in windows]:
            raise EdgeAwqError(f"config.json: layer_types has '{unknown[0]}', which is not supported",
                               hint=f"models with {' and '.join(windows)} work")
        return tuple(windows[kind] for kind in kinds)
    if reader.value("window_pattern") is not None:
        pattern = reader.count("window_pattern")
        return tuple(window if (layer + 1) % pattern else None for layer in range(num_layers))
    first = raw.get("max_window_layers", 0) if raw.get("use_sliding_window") else 0
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _read_rotated(raw: dict[str, Any], reader: _Reader, windows: tuple[int | None, ...]) -> tuple[bool, ...] | None:
    """Which layers have rotary positions, where the family has the word ``rope_layers``; None: all.

    Its value is a list with 1 for a layer that has them and 0 for one that has none; or n, and every n-th has none; or
    "windowed", and those with a window have them (all, where config.json gives no window).
    """
    given = reader.value("rope_layers")
    if given is None or (given == "windowed" and raw.get("sliding_window") is None):
        return None
    if given == "windowed":
        return tuple(window is not None for window in windows)
    if isinstance(given, list) and len(given) >= len(windows) and all(entry in (0, 1) for entry in given):
        return tuple(map(bool, given[: len(windows)]))
    if isinstance(given, list):
        raise reader.wrong("rope_layers", given, f"{len(windows)} entries of 0 or 1")
    every = reader.count("rope_layers")
    return tuple(bool((layer + 1) % every) for layer in range(len(windows)))
