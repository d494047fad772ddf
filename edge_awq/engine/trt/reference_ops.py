"""What every plugin computes, as ops of onnx's ReferenceEvaluator: float64 numpy, rounded where the kernels round.

Float64 inputs ask for exact results: nothing is rounded then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference.op_run import OpRun

from edge_awq.engine.trt.names import DOMAIN, EXTRAS, GELU, GELU_TANH, INT4_MATMUL, RELU, SILU
from edge_awq.engine.trt.reference_sample import draw
from edge_awq.errors import EdgeAwqError


def _check_types(op: str, inputs: Sequence[np.ndarray], wanted: Sequence[str]) -> bool:
    """Whether all is float64; otherwise every input has the type that the plugin takes.

    Raises:
        EdgeAwqError: one has not.
    """
    if inputs[0].dtype == np.float64:
        return True
    for index, (array, want) in enumerate(zip(inputs, wanted, strict=True)):
        if array.dtype != want:
            raise EdgeAwqError(f"{op}: input {index} is {array.dtype}, not {want}", hint="this is a fault of a rule")
    return False


def _stored(array: np.ndarray, exact: bool, dtype: str = "float16") -> np.ndarray:
    """What memory keeps of float64 values."""
    return array if exact else array.astype(dtype)


def _rounded(array: np.ndarray, exact: bool) -> np.ndarray:
    """Rounded to float16, computed with further."""
    return array if exact else array.astype(np.float16).astype(np.float64)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """int8 [N, bytes], two values a byte, low nibble first -> float64 [N, columns]."""
    words = packed.view(np.uint8)
    return np.stack([words & 15, words >> 4], axis=-1).reshape(len(words), -1)[:, :columns].astype(np.float64)


def dequantize(qweight: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, width: int, bits: int) -> np.ndarray:
    """W [N, width] float64, (q - z) * s; tensors as plugins/README.md lays them out."""
    groups = scales.shape[1]
    q, zeros = ((unpack(each, count) if bits == 4 else each.view(np.uint8).astype(np.float64))
                for each, count in ((qweight, width), (zero_points, groups)))
    size = width // groups
    return (q - np.repeat(zeros, size, axis=1)) * np.repeat(scales.astype(np.float64), size, axis=1)


def activate(code: int, z: np.ndarray) -> np.ndarray:
    """The activation that a matmul's attribute asks for."""
    if code == RELU:
        return np.maximum(z, 0.0)
    if code == GELU:
        return 0.5 * z * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
    if code == GELU_TANH:
        return 0.5 * z * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))
    return z / (1.0 + np.exp(-z)) if code == SILU else z


def normalize(kind: int, x: np.ndarray, epsilon: float, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """RMS (1) or layer (2) norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True) if kind == 2 else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight
    return y if bias is None else y + bias


class _MatMul(OpRun):
    """activation(norm(x) @ W.T + bias) [* gated part] * act_scale + residual; plugins/common/linear.h."""

    op_domain = DOMAIN
    weight_types: tuple[str, ...] = ("int8", "float16", "int8")

    def _run(self, *inputs: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        given = _attributes(self.onnx_node)
        names = [name for name in EXTRAS if given.get("norm" if name == "norm_weight" else f"has_{name}")]
        types = ["float16", *self.weight_types, *(EXTRAS[name] for name in names)]
        exact = _check_types(self.onnx_node.name, inputs, types)
        count = 1 + len(self.weight_types)
        extra = {name: array.astype(np.float64) for name, array in zip(names, inputs[count:], strict=True)}
        x = inputs[0].astype(np.float64)
        if given.get("norm"):
            x = _rounded(normalize(given["norm"], x, given["norm_epsilon"], extra["norm_weight"],
                                   extra.get("norm_bias")), exact)
        z = x @ self._matrix(inputs[1:count], given).T + extra.get("bias", 0.0)
        y = activate(given.get("activation", 0), z[..., : given["N"] // 2] if given.get("gated") else z)
        if given.get("gated"):
            y = y * z[..., given["N"] // 2 :]
        y = y * extra.get("act_scale", 1.0) + extra.get("residual", 0.0)
        return (_stored(y, exact, "float32" if given.get("fp32_output") else "float16"),)

    def _matrix(self, tensors: Sequence[np.ndarray], given: dict[str, Any]) -> np.ndarray:
        bits = 4 if self.onnx_node.op_type == INT4_MATMUL else 8
        assert tensors[1].shape == (given["N"], given["K"] // given["group_size"])
        return dequantize(*tensors, given["K"], bits)


class Int4MatMul(_MatMul):
    """As plugin."""


class Int8MatMul(_MatMul):
    """As plugin."""


class Fp16MatMul(_MatMul):
    """As plugin."""

    weight_types = ("float16",)

    def _matrix(self, tensors: Sequence[np.ndarray], given: dict[str, Any]) -> np.ndarray:
        assert tensors[0].shape == (given["N"], given["K"])
        return tensors[0].astype(np.float64)


class _Norm(OpRun):
    """y = norm(x + delta), hidden = x + delta."""

    op_domain = DOMAIN
    kind = 1

    def _run(self, *inputs: np.ndarray, **_: Any) -> tuple[np.ndarray, ...]:
        given = _attributes(self.onnx_node)
        activations = 2 if given.get("has_delta") else 1
        exact = _check_types(self.onnx_node.name, inputs,
                             ["float16"] * activations + ["float32"] * (len(inputs) - activations))
        hidden = _rounded(sum(array.astype(np.float64) for array in inputs[:activations]), exact)
        weight, *bias = (array.astype(np.float64) for array in inputs[activations:])
        y = normalize(self.kind, hidden, given["epsilon"], weight, bias[0] if bias else None)
        return tuple(_stored(each, exact) for each in ([y, hidden] if activations == 2 else [y]))


class RmsNorm(_Norm):
    """As plugin."""


class LayerNorm(_Norm):
    """As plugin."""

    kind = 2


class CachedAttention(OpRun):
    """As plugin; the cache is not overwritten but given back."""

    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray, **_: Any) -> tuple[np.ndarray, ...]:
        given = _attributes(self.onnx_node)
        size, kv_heads = given["head_size"], given["kv_num_heads"]
        new, is_bytes = 1 if given.get("packed_qkv") else 3, given.get("kv_bits") == 8
        kept = ["int8", "int8", "float32", "float32"] if is_bytes else ["float16", "float16"]
        length = new + len(kept)
        types = ["float16"] * new + kept + [inputs[length].dtype.name]
        types += ["float32"] * (2 + given.get("has_slopes", 1))
        exact = _check_types(self.onnx_node.name, inputs, types)
        rows = np.concatenate([array.astype(np.float64) for array in inputs[:new]], axis=-1)[0]
        cos, sin, *slopes = (a.astype(np.float64) for a in inputs[length + 1 :])
        past = int(inputs[length].reshape(-1)[0])  # on TensorRT 8 the low word
        tokens = len(rows)
        heads = rows.reshape(tokens, -1, size).transpose(1, 0, 2)  # those of q, k and v
        q, k, v = np.split(heads, [given["num_heads"], given["num_heads"] + kv_heads])
        places = slice(past, past + tokens)
        q, k = (_rotated(each, cos[places], sin[places]) for each in (q, k))
        present = [cache.copy() for cache in inputs[new:length]]
        for index, fresh in enumerate((k, v)):
            for cache, rows in zip(present[index::2], _as_cached(fresh, is_bytes), strict=True):
                cache[0, :, places] = rows
        q = _rounded(q, exact)
        keys, values = (np.repeat(_from_cache(present[index::2], past + tokens), len(q) // kv_heads, axis=0)
                        for index in range(2))
        mixed = _attend(q, keys, values, slopes[0] if slopes else np.zeros(len(q)), given)
        return (_stored(mixed.transpose(1, 0, 2).reshape(1, tokens, -1), exact), *present)


def _as_cached(rows: np.ndarray, is_bytes: bool) -> list[np.ndarray]:
    """Rows [heads, tokens, size] as the cache has them: as they are, or 128 + x / scale in bytes, which travel as int8,
    and scales = max |x| / 127 [heads, tokens]."""
    if not is_bytes:
        return [rows]
    scales = np.abs(rows).max(-1) / 127
    ratios = np.rint(rows / np.where(scales > 0, scales, 1)[..., None])
    return [(ratios + 128).astype(np.uint8).view(np.int8), scales]


def _from_cache(tensors: Sequence[np.ndarray], length: int) -> np.ndarray:
    """The keys or values [heads, length, size] in a cache, and its scales if there are any; float64."""
    cache, *scales = (each[0, :, :length] for each in tensors)
    if not scales:
        return cache.astype(np.float64)
    return (cache.view(np.uint8).astype(np.float64) - 128) * scales[0].astype(np.float64)[..., None]


def _rotated(heads: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """[heads, tokens, size], the leading elements turned in pairs half of them apart."""
    half = cos.shape[1]
    a, b, kept = np.split(heads, [half, 2 * half], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, kept], axis=-1)


def _attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, slopes: np.ndarray,
            given: dict[str, Any]) -> np.ndarray:
    """[heads, tokens, size] of the newest positions over [heads, total, size]."""
    total, tokens = keys.shape[1], q.shape[1]
    distance = np.arange(total - tokens, total)[:, None] - np.arange(total)
    scores = given["scale"] * q @ keys.transpose(0, 2, 1)
    if given["softcap"]:
        scores = given["softcap"] * np.tanh(scores / given["softcap"])
    scores = scores - slopes[:, None, None] * distance
    seen = (distance >= 0) & (distance < (given["window"] or total))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ values


class SampleToken(OpRun):
    """As plugin; see reference_sample.py."""

    op_domain = DOMAIN

    def _run(self, logits: np.ndarray, settings: np.ndarray, seed: np.ndarray, step: np.ndarray,
             **_: Any) -> tuple[np.ndarray]:
        first = int(step.reshape(-1)[0])  # on TensorRT 8 the low word
        (seed,) = seed.view(np.int64).reshape(-1)
        rows = logits.reshape(-1, logits.shape[-1])
        tokens = [draw(row, settings, int(seed), first + place) for place, row in enumerate(rows)]
        return (np.array(tokens, np.int64).reshape(logits.shape[:-1]),)


OPS = (Int4MatMul, Int8MatMul, Fp16MatMul, RmsNorm, LayerNorm, CachedAttention, SampleToken)
