"""The one decoder: every family's forward pass, driven by Family and DecoderConfig values, one block at a time.

Weights are plain tables of float32 tensors by canonical name (``q.weight`` [N, K], ``q.bias`` [N],
``attn_norm.weight`` [hidden], ``act_scale.weight`` [inner] where AWQ put one), so quantization can replace any of them
and read any input of a linear through the ``linear`` argument, with nothing stored on a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from edge_awq.interop.checkpoint import open_checkpoint
from edge_awq.model.alibi import alibi_slopes
from edge_awq.model.checkpoint import Checkpoint
from edge_awq.model.config import DecoderConfig, read_config
from edge_awq.model.family import Family
from edge_awq.model.naming import block_tensors, check_block, check_shape, final_shape, final_vectors, split_fused
from edge_awq.model.rope import rope_tables

Weights = dict[str, torch.Tensor]
# linear(name, x, weights) -> y: how a block applies the canonical linear ``name`` to x [..., K].
Linear = Callable[[str, torch.Tensor, Weights], torch.Tensor]

Norm = Callable[[str, torch.Tensor], torch.Tensor]  # name, x -> y
Layer = Callable[[torch.Tensor], torch.Tensor]  # x, normed or not -> what is added to the residual stream
Activation = Callable[[torch.Tensor], torch.Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
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

    def positions(self) -> torch.Tensor:
        """Learned positions, [max_positions, hidden_size] float32; what is stored before position 0 is left out."""
        return self._read_one(f"{self.family.names['positions']}.weight")[self.config.position_offset :]

    def embedding(self) -> Weights:
        """What ``embed_tokens`` needs: ``embed.weight``, and ``positions.weight`` where positions are learned."""
        tables = {"embed.weight": self.embed()}
        return tables | {"positions.weight": self.positions()} if "positions" in self.family.names else tables

    def final_vectors(self) -> Weights:
        """``final_norm.weight`` [hidden_size], and where there are any its bias and ``head.bias`` [vocab_size].

        A factor on the logits is in them: the head is linear.
        """
        weights = self._read(final_vectors(self.family, self.checkpoint))
        return {name: tensor * self.config.logit_scale for name, tensor in weights.items()}

    def head(self) -> torch.Tensor:
        """Weight of the head, [vocab_size, hidden_size] float32."""
        return self.embed() if self.tied_head else self._read_one(f"{self.family.names['head']}.weight")

    def block(self, index: int) -> Weights:
        """Weights of block ``index`` by canonical name; what the checkpoint fuses is split."""
        weights = self._read(block_tensors(self.family, self.checkpoint, index))
        return {name: split_fused(self.family, self.config, name.partition(".")[0], tensor)
                for name, tensor in weights.items()}

    def _read(self, names: dict[str, str]) -> Weights:
        """Tensors by canonical name, gains of norms as they are multiplied."""
        tensors = self.checkpoint.read(dict.fromkeys(names.values()))
        return {
            canonical: tensors[stored] + self.family.norm_offset if canonical.endswith("_norm.weight")
            else tensors[stored]
            for canonical, stored in names.items()
        }

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
    outer = {"embed": config.linear_shape("embed")}
    if "positions" in family.names:
        outer["positions"] = (config.max_positions + config.position_offset, config.hidden_size)
    if not decoder.tied_head:
        outer["head"] = config.linear_shape("head")
    for canonical, shape in outer.items():
        check_shape(checkpoint, f"{family.names[canonical]}.weight", shape)
    for canonical, stored in final_vectors(family, checkpoint).items():
        check_shape(checkpoint, stored, final_shape(config, canonical))
    for index in range(config.num_layers):
        check_block(family, config, checkpoint, index)
    return decoder


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
    """The norm ``name`` over the last axis, of the kind that the family uses."""
    return _NORMS[config.norm](x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), config.norm_eps)


def _rms_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467), which has no bias."""
    return F.rms_norm(x, x.shape[-1:], gain, eps)


def _layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """LayerNorm (arXiv 1607.06450)."""
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps)


def embed_tokens(config: DecoderConfig, tables: Weights, ids: torch.Tensor, past: int = 0) -> torch.Tensor:
    """The first block's inputs for ids [batch, tokens] that follow ``past`` others: [batch, tokens, hidden_size].

    ``tables`` are those of ``Decoder.embedding``.
    """
    x = F.embedding(ids, tables["embed.weight"]) * config.embed_scale
    positions = tables.get("positions.weight")
    return x if positions is None else x + positions[past : past + ids.shape[1]]


def run_block(
    config: DecoderConfig,
    index: int,
    weights: Weights,
    x: torch.Tensor,
    cache: KvCache | None = None,
    linear: Linear = plain_linear,
) -> torch.Tensor:
    """One block: x [batch, tokens, hidden] -> the same shape; with a cache, x continues the cached tokens."""

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return norm(config, name, x, weights)

    def mix(x: torch.Tensor) -> torch.Tensor:
        return attention(config, index, weights, x, cache, linear)

    def feed(x: torch.Tensor) -> torch.Tensor:
        return mlp(config, weights, x, linear)

    return _RESIDUALS[config.residual](x, normed, mix, feed)


def _sequential(x: torch.Tensor, normed: Norm, mix: Layer, feed: Layer) -> torch.Tensor:
    x = x + mix(normed("attn_norm", x))
    return x + feed(normed("mlp_norm", x))


def _parallel(x: torch.Tensor, normed: Norm, mix: Layer, feed: Layer) -> torch.Tensor:
    y = normed("attn_norm", x)
    return x + mix(y) + feed(y)


def _parallel_two_norms(x: torch.Tensor, normed: Norm, mix: Layer, feed: Layer) -> torch.Tensor:
    return x + mix(normed("attn_norm", x)) + feed(normed("mlp_norm", x))


def _sandwich(x: torch.Tensor, normed: Norm, mix: Layer, feed: Layer) -> torch.Tensor:
    x = x + normed("post_attn_norm", mix(normed("attn_norm", x)))
    return x + normed("post_mlp_norm", feed(normed("mlp_norm", x)))


def _norm_after(x: torch.Tensor, normed: Norm, mix: Layer, feed: Layer) -> torch.Tensor:
    x = x + normed("post_attn_norm", mix(x))
    return x + normed("post_mlp_norm", feed(x))


def attention(
    config: DecoderConfig,
    index: int,
    weights: Weights,
    x: torch.Tensor,
    cache: KvCache | None = None,
    linear: Linear = plain_linear,
) -> torch.Tensor:
    """Causal attention of block ``index`` on x [batch, tokens, hidden], output projection included."""
    batch, tokens, _ = x.shape

    def heads(name: str) -> torch.Tensor:
        y = linear(name, x, weights)
        if config.clip_qkv is not None:
            y = y.clamp(-config.clip_qkv, config.clip_qkv)
        if f"{name}_norm.weight" in weights:
            y = norm(config, f"{name}_norm", y.unflatten(-1, (-1, config.norm_size(f"{name}_norm"))), weights)
        return y.view(batch, tokens, -1, config.head_size).transpose(1, 2)

    seen = cache.keys[index].shape[2] if cache is not None and index in cache.keys else 0
    query, key, value = heads("q"), heads("k"), heads("v")
    if (rope := config.rope_of(index)) is not None:
        cos, sin = (torch.from_numpy(table[seen:]) for table in rope_tables(rope, seen + tokens))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    if cache is not None:
        key, value = cache.append(index, key, value)
    bias = attention_bias(config, tokens, seen + tokens, config.windows[index])
    mixed = _attend(config, query, key, value, bias)
    return linear("o", mixed.transpose(1, 2).reshape(batch, tokens, config.q_size), weights)


def _attend(
    config: DecoderConfig, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """softmax(softcap(scale * q @ k.T) + bias) @ v, over [batch, heads, tokens, head_size]."""
    if config.attention_softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=config.attention_scale,
                                              enable_gqa=True)
    share = config.num_heads // config.num_kv_heads
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    scores = softcapped(config.attention_scale * query @ key.transpose(-1, -2), config.attention_softcap)
    hidden = bias if bias.dtype != torch.bool else torch.zeros(bias.shape).masked_fill_(~bias, -torch.inf)
    return (scores + hidden).softmax(-1) @ value


def softcapped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(x / cap), which stays within (-cap, cap); x itself without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


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


def attention_bias(config: DecoderConfig, tokens: int, total: int, window: int | None) -> torch.Tensor:
    """What is added to the scores: ``attention_mask``, or with ALiBi float32 [num_heads, tokens, total]."""
    mask = attention_mask(tokens, total, window)
    if config.alibi_max_bias is None:
        return mask
    slopes = torch.from_numpy(alibi_slopes(config.num_heads, config.alibi_max_bias))
    distance = torch.arange(total)[None, :] - torch.arange(total - tokens, total)[:, None]
    return (slopes[:, None, None] * distance).masked_fill_(~mask, -torch.inf)


def mlp(config: DecoderConfig, weights: Weights, x: torch.Tensor, linear: Linear = plain_linear) -> torch.Tensor:
    """The MLP of the family's kind on x [..., hidden]."""
    return _MLPS[config.mlp](_ACTIVATIONS[config.activation], x, weights, linear)


def _gated_mlp(act: Activation, x: torch.Tensor, weights: Weights, linear: Linear) -> torch.Tensor:
    """down(activation(gate(x)) * up(x))."""
    return linear("down", act(linear("gate", x, weights)) * linear("up", x, weights), weights)


def _plain_mlp(act: Activation, x: torch.Tensor, weights: Weights, linear: Linear) -> torch.Tensor:
    """down(activation(up(x)) * act_scale), without the scale where AWQ put none."""
    inner = act(linear("up", x, weights))
    scale = weights.get("act_scale.weight")
    return linear("down", inner if scale is None else inner * scale, weights)


def head_logits(config: DecoderConfig, x: torch.Tensor, vectors: Weights, head: torch.Tensor) -> torch.Tensor:
    """Logits [..., vocab_size] of the last block's outputs x [..., hidden_size]; see ``Decoder.final_vectors``."""
    product = F.linear(norm(config, "final_norm", x, vectors), head, vectors.get("head.bias"))
    return softcapped(product, config.logit_softcap)


def logits(decoder: Decoder, ids: torch.Tensor, cache: KvCache | None = None) -> torch.Tensor:
    """Logits of ids [batch, tokens] -> [batch, tokens, vocab_size], reading one block at a time."""
    config = decoder.config
    past = cache.keys[0].shape[2] if cache is not None and 0 in cache.keys else 0
    x = embed_tokens(config, decoder.embedding(), ids, past)
    for index in range(config.num_layers):
        x = run_block(config, index, decoder.block(index), x, cache)
    return head_logits(config, x, decoder.final_vectors(), decoder.head())


# Words of family files and of DecoderConfig -> what computes them.
_NORMS = {"rms": _rms_norm, "layer": _layer_norm}
_MLPS = {"gated": _gated_mlp, "plain": _plain_mlp}
_RESIDUALS = {
    "sequential": _sequential,
    "parallel": _parallel,
    "parallel_two_norms": _parallel_two_norms,
    "sandwich": _sandwich,
    "norm_after": _norm_after,
}
