"""The one decoder: every family's forward pass, driven by Family and DecoderConfig values, one block at a time.

Weights are plain tables of float32 tensors by canonical name (``q.weight`` [N, K], ``q.bias`` [N],
``attn_norm.weight`` [hidden]), so quantization can replace any of them and read any input of a linear
through the ``linear`` argument, with nothing stored on a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.checkpoint import open_checkpoint
from edge_awq.model.checkpoint import Checkpoint
from edge_awq.model.config import DecoderConfig, read_config
from edge_awq.model.family import Family
from edge_awq.model.rope import rope_tables

Weights = dict[str, torch.Tensor]
# linear(name, x, weights) -> y: how a block applies the canonical linear ``name`` to x [..., K].
Linear = Callable[[str, torch.Tensor, Weights], torch.Tensor]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class Decoder:
    """A checkpoint seen as the canonical decoder; weights are read when asked for."""

    folder: Path
    family: Family
    config: DecoderConfig
    checkpoint: Checkpoint

    @property
    def tied_head(self) -> bool:
        """Whether the head's weight is the embedding's."""
        if self.config.tied_head is not None:
            return self.config.tied_head
        return f"{self.family.names['head']}.weight" not in self.checkpoint

    def embed(self) -> torch.Tensor:
        """Token embedding, [vocab_size, hidden_size] float32."""
        return self._read_one(f"{self.family.names['embed']}.weight")

    def final_norm(self) -> Weights:
        """Weights of the last norm: ``final_norm.weight`` [hidden_size]."""
        return {"final_norm.weight": self._read_one(f"{self.family.names['final_norm']}.weight")}

    def head(self) -> torch.Tensor:
        """Weight of the head, [vocab_size, hidden_size] float32."""
        return self.embed() if self.tied_head else self._read_one(f"{self.family.names['head']}.weight")

    def block(self, index: int) -> Weights:
        """Weights of block ``index`` by canonical name."""
        names = block_tensors(self.family, self.checkpoint, index)
        tensors = self.checkpoint.read(names.values())
        return {canonical: tensors[stored] for canonical, stored in names.items()}

    def _read_one(self, name: str) -> torch.Tensor:
        return self.checkpoint.read([name])[name]


def load_decoder(folder: Path) -> Decoder:
    """Open a Hugging Face folder and check every tensor's shape against config.json, without reading weights.

    Raises:
        EdgeAwqError: something is missing, damaged, of an unknown family, or of a shape that config.json denies.
    """
    family, config = read_config(folder)
    decoder = Decoder(folder, family, config, open_checkpoint(folder))
    checkpoint = decoder.checkpoint
    hidden = (config.hidden_size,)
    outer = {"embed": config.linear_shape("embed"), "final_norm": hidden}
    if not decoder.tied_head:
        outer["head"] = config.linear_shape("head")
    for canonical, shape in outer.items():
        _check_shape(checkpoint, f"{family.names[canonical]}.weight", shape)
    for index in range(config.num_layers):
        for canonical, stored in block_tensors(family, checkpoint, index).items():
            layer, kind = canonical.split(".")
            shape = hidden if layer in family.norms else config.linear_shape(layer)
            _check_shape(checkpoint, stored, shape if kind == "weight" else shape[:1])
    return decoder


def block_tensors(family: Family, checkpoint: Checkpoint, index: int) -> dict[str, str]:
    """Canonical tensor name -> name in the checkpoint, for block ``index``; biases only where there are any."""
    prefix = family.block["prefix"].format(i=index)
    names = {}
    for layer in (*family.norms, *family.linears):
        stored = f"{prefix}.{family.block[layer]}"
        names[f"{layer}.weight"] = f"{stored}.weight"
        if f"{stored}.bias" in checkpoint:
            names[f"{layer}.bias"] = f"{stored}.bias"
    return names


def _check_shape(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> None:
    found = checkpoint.shape(name)
    if found is None:
        raise EdgeAwqError(f"{checkpoint.folder}: tensor '{name}' is missing",
                           hint="the checkpoint is not complete, or config.json belongs to another model")
    if found != expected:
        raise EdgeAwqError(
            f"{checkpoint.folder}: tensor '{name}' has shape {list(found)}, but config.json says {list(expected)}",
            hint="config.json belongs to another model, or one of the two files is damaged",
        )


@dataclass
class KvCache:
    """Keys and values of the tokens seen so far, per layer, each [batch, kv_heads, tokens, head_size]."""

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens of one layer; returns everything it holds."""
        if layer in self.keys:
            key = torch.cat([self.keys[layer], key], dim=2)
            value = torch.cat([self.values[layer], value], dim=2)
        self.keys[layer], self.values[layer] = key, value
        return key, value


def plain_linear(name: str, x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """x [..., K] @ weight.T + bias -> [..., N]."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(config: DecoderConfig, name: str, x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """RMSNorm over the last axis (arXiv 1910.07467)."""
    return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], config.norm_eps)


def run_block(
    config: DecoderConfig,
    index: int,
    weights: Weights,
    x: torch.Tensor,
    cache: KvCache | None = None,
    linear: Linear = plain_linear,
) -> torch.Tensor:
    """One block: x [batch, tokens, hidden] -> the same shape; with a cache, x continues the cached tokens."""
    x = x + attention(config, index, weights, norm(config, "attn_norm", x, weights), cache, linear)
    return x + mlp(config, weights, norm(config, "mlp_norm", x, weights), linear)


def attention(
    config: DecoderConfig,
    index: int,
    weights: Weights,
    x: torch.Tensor,
    cache: KvCache | None = None,
    linear: Linear = plain_linear,
) -> torch.Tensor:
    """Causal attention of block ``index`` on normed x [batch, tokens, hidden], output projection included."""
    batch, tokens, _ = x.shape

    def heads(name: str) -> torch.Tensor:
        return linear(name, x, weights).view(batch, tokens, -1, config.head_size).transpose(1, 2)

    seen = cache.keys[index].shape[2] if cache is not None and index in cache.keys else 0
    cos, sin = (torch.from_numpy(table[seen:]) for table in rope_tables(config.rope, seen + tokens))
    query, key, value = rotate(heads("q"), cos, sin), rotate(heads("k"), cos, sin), heads("v")
    if cache is not None:
        key, value = cache.append(index, key, value)
    mask = attention_mask(tokens, seen + tokens, config.windows[index])
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return linear("o", mixed.transpose(1, 2).reshape(batch, tokens, config.q_size), weights)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the leading 2 * cos.shape[-1] elements of x [..., tokens, head_size]; pairs are half a rotation apart."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attention_mask(tokens: int, total: int, window: int | None) -> torch.Tensor:
    """[tokens, total] bool: each of the newest ``tokens`` positions sees itself and those before it, in the window."""
    query = torch.arange(total - tokens, total)[:, None]
    key = torch.arange(total)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def mlp(config: DecoderConfig, weights: Weights, x: torch.Tensor, linear: Linear = plain_linear) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)) on normed x [..., hidden]."""
    act = _ACTIVATIONS[config.activation]
    return linear("down", act(linear("gate", x, weights)) * linear("up", x, weights), weights)


def logits(decoder: Decoder, ids: torch.Tensor, cache: KvCache | None = None) -> torch.Tensor:
    """Logits of ids [batch, tokens] -> [batch, tokens, vocab_size], reading one block at a time."""
    x = F.embedding(ids, decoder.embed())
    for index in range(decoder.config.num_layers):
        x = run_block(decoder.config, index, decoder.block(index), x, cache)
    return F.linear(norm(decoder.config, "final_norm", x, decoder.final_norm()), decoder.head())
