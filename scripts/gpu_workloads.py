"""What the GPU benchmark runs: matrices, attentions and whole layers of given models, with random weights.

Speed does not depend on the values. Everything a workload reads lies in memory once per copy, and copies together are
several times the L2 cache, so each launch finds its weights in memory and not in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from device_ops import Device, Op, Tensor
from edge_awq.toml import load_toml

MODELS_FILE = Path(__file__).resolve().parent / "figure_models.toml"
BLOCK_BYTES = 1 << 24  # of random bytes that weights are filled with
CHECKED_OUTPUTS = 64
PAST = 2048


@dataclass(frozen=True)
class Model:
    """A decoder's shape; see figure_models.toml."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    gated: bool
    group_size: int
    vocabulary: int
    alibi: bool = False

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(N, K) of a layer's matrices, in the order in which they run."""
        query, cache = self.heads * self.head_size, self.kv_heads * self.head_size
        return {"qkv": (query + 2 * cache, self.hidden), "o": (self.hidden, query),
                "up": ((1 + self.gated) * self.mlp, self.hidden), "down": (self.hidden, self.mlp)}


def read_models(path: Path = MODELS_FILE) -> list[Model]:
    """All models of the file."""
    return [Model(name, **values) for name, values in load_toml(path).items()]


@dataclass
class Maker:
    """Makes tensors on the device."""

    device: Device
    rng: np.random.Generator

    @cached_property
    def _bytes(self) -> np.ndarray:
        return self.rng.integers(0, 256, BLOCK_BYTES, dtype=np.uint8)

    @cached_property
    def _scales(self) -> np.ndarray:
        return self.rng.uniform(1e-3, 1e-2, BLOCK_BYTES // 2).astype(np.float16).view(np.uint8)

    def _filled(self, shape: tuple[int, ...], dtype: type, block: np.ndarray) -> Tensor:
        tensor = self.device.empty(shape, dtype)
        for start in range(0, tensor.nbytes, BLOCK_BYTES):
            self.device.gpu.write(tensor.address + start, block[: min(BLOCK_BYTES, tensor.nbytes - start)])
        return tensor

    def normal(self, *shape: int) -> Tensor:
        """fp16, normal."""
        return self.device.put(self.rng.standard_normal(shape).astype(np.float16))

    def small(self, *shape: int) -> Tensor:
        """fp16 between 0.001 and 0.01, quickly: large caches and matrices."""
        return self._filled(shape, np.float16, self._scales)

    def any_bytes(self, *shape: int) -> Tensor:
        """Any bytes."""
        return self._filled(shape, np.int8, self._bytes)

    def quantized(self, N: int, K: int, group_size: int, bits: int = 4) -> list[Tensor]:
        """qweight, scales and zero points."""
        groups = -(-K // group_size)
        return [self._filled((N, K * bits // 8), np.int8, self._bytes), self.small(N, groups),
                self._filled((N, -(-groups * bits // 8)), np.int8, self._bytes[1:])]


@dataclass
class Workload:
    """Launches of one kind.

    Attributes:
        launches: each on memory of its own; a graph holds them all, one after another.
        bytes_each: what one launch reads and writes at least.
        flops_each: of one launch.
        check: compares what the launches left behind with float64, raises AssertionError.
    """

    name: str
    bytes_each: int
    launches: list[Callable[[], None]]
    flops_each: int = 0
    check: Callable[[], None] = lambda: None
    details: dict[str, object] = field(default_factory=dict)


def copies_for(device: Device, size: int, least: int = 2) -> int:
    """How many tensors of ``size`` bytes are four times the L2 cache."""
    return max(least, math.ceil(4 * device.gpu.l2_bytes / size))


# What a kind of matrix is: bits of its weights, its op, and attributes beside the shape.
KINDS: dict[str, tuple[int, str, dict[str, int]]] = {
    "int4": (4, "Int4MatMul", {}), "int4 dequantized": (4, "Int4MatMul", {"dequantize_from": 9}),
    "int8": (8, "Int8MatMul", {}), "fp16": (16, "Fp16MatMul", {})}


def matmul(maker: Maker, shape: tuple[int, int], group_size: int, rows: int = 1, kind: str = "int4") -> Workload:
    """y = x @ W.T for ``rows`` tokens; kind is one of KINDS."""
    (N, K), device = shape, maker.device
    groups, (bits, name, attributes) = -(-K // group_size), KINDS[kind]
    weight_bytes = N * K * bits // 8 + (0 if bits == 16 else N * (2 * groups + -(-groups * bits // 8)))
    attributes = {"K": K, "N": N} | ({} if bits == 16 else {"group_size": group_size}) | attributes
    op = device.op(name, **attributes)
    x = maker.normal(rows, K)
    calls = []
    for _ in range(copies_for(device, weight_bytes)):
        weight = [maker.small(N, K)] if bits == 16 else maker.quantized(N, K, group_size, bits)
        calls.append(([x, *weight], device.poisoned((rows, N))))
    workspace = op.workspace(calls[0][0])
    launches = [lambda inputs=inputs, y=y: op.launch(inputs, [y], workspace) for inputs, y in calls]
    name = f"{kind} {N}x{K}" + (f" g{group_size}" if bits < 16 else "") + f" M={rows}"
    return Workload(name, weight_bytes + 2 * rows * (N + K), launches, 2 * rows * N * K,
                    lambda: [check_matmul(device, *call, bits, group_size) for call in calls[:1]],
                    {"N": N, "K": K, "rows": rows, "kind": kind, "copies": len(calls)})


def check_matmul(device: Device, inputs: list[Tensor], y: Tensor, bits: int, group_size: int) -> None:
    """The first outputs are right, to 1e-3 of their size: more than rounding to fp16, less than a wrong weight."""
    count = min(CHECKED_OUTPUTS, y.shape[1])
    first = [device.get(Tensor(each.address, (count, *each.shape[1:]), each.dtype)) for each in inputs[1:]]
    K = inputs[0].shape[1]
    if bits == 16:
        weight = first[0].astype(np.float64)
    else:
        q, zeros = (unpacked(each.view(np.uint8), bits) for each in (first[0], first[2]))
        scales, zeros = (np.repeat(each[:, : first[1].shape[1]].astype(np.float64), group_size, 1)[:, :K]
                         for each in (first[1], zeros))
        weight = (q - zeros) * scales
    exact = device.get(inputs[0]).astype(np.float64) @ weight.T
    off = np.linalg.norm(device.get(y)[:, :count] - exact) / np.linalg.norm(exact)
    if not off <= 1e-3:
        raise AssertionError(f"outputs are off by {off:.2g} of their size")


def unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """uint8 values, the low nibble first where there are two a byte."""
    return stored if bits == 8 else np.stack([stored & 15, stored >> 4], 2).reshape(len(stored), -1)


def cache_bytes(model: Model, positions: int, kv_bits: int = 16) -> int:
    """Of keys and values of so many positions; 8 bits have a scale of 4 bytes for each head and position."""
    return 2 * model.kv_heads * positions * (model.head_size * kv_bits // 8 + (4 if kv_bits == 8 else 0))


def attention_bytes(model: Model, past: int, tokens: int = 1, kv_bits: int = 16) -> int:
    """What attention reads and writes at least: the cache with its new rows once, and every other tensor once.

    What splits of the cache leave for each other is not counted: it need not leave the L2 cache.
    """
    query, cache = model.heads * model.head_size, model.kv_heads * model.head_size
    read = cache_bytes(model, past + tokens, kv_bits) + 2 * tokens * (query + 2 * cache) + 8  # and q, k, v; past_length
    tables = 4 * model.heads if model.alibi else 2 * 4 * tokens * (model.head_size // 2)
    written = cache_bytes(model, tokens, kv_bits) + 2 * tokens * query  # the cache's new rows, y
    return read + tables + written


@dataclass(frozen=True)
class AttentionCalls:
    """An attention op with the tables that all layers share."""

    op: Op
    tables: list[Tensor]  # past_length, cos, sin; slopes where there is ALiBi
    kv_bits: int

    @classmethod
    def make(cls, maker: Maker, model: Model, past: int, tokens: int = 1, kv_bits: int = 16) -> AttentionCalls:
        """For ``past`` positions in the cache, and room for the new tokens."""
        op = maker.device.op("CachedAttention", num_heads=model.heads, kv_num_heads=model.kv_heads,
                             head_size=model.head_size, scale=float(model.head_size**-0.5), window=0,
                             softcap=0.0, packed_qkv=1, has_slopes=int(model.alibi), kv_bits=kv_bits)
        angles = maker.rng.uniform(0, 6, (past + tokens, 1 if model.alibi else model.head_size // 2))
        if model.alibi:
            angles[:] = 0  # nothing is rotated
        tables = [np.array([past]), np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
        if model.alibi:
            tables.append(np.exp2(np.linspace(-1, -8, model.heads)).astype(np.float32))
        return cls(op, [maker.device.put(each) for each in tables], kv_bits)

    def cache(self, maker: Maker, model: Model) -> list[Tensor]:
        """A layer's keys and values, and their scales where they are bytes."""
        rows = (1, model.kv_heads, self.tables[1].shape[0])
        if self.kv_bits == 16:
            return [maker.small(*rows, model.head_size) for _ in range(2)]
        return [*(maker.any_bytes(*rows, model.head_size) for _ in range(2)),
                *(maker.device.put(maker.rng.uniform(1e-3, 1e-2, rows).astype(np.float32)) for _ in range(2))]


def attention(maker: Maker, model: Model, past: int = PAST, tokens: int = 1, kv_bits: int = 16) -> Workload:
    """New tokens over ``past`` cached ones; more than 8 are a prompt."""
    device, calls = maker.device, AttentionCalls.make(maker, model, past, tokens, kv_bits)
    size = attention_bytes(model, past, tokens, kv_bits)
    qkv = maker.normal(1, tokens, model.matrices["qkv"][0])
    y = device.poisoned((1, tokens, model.heads * model.head_size))
    caches = [calls.cache(maker, model) for _ in range(copies_for(device, size))]
    workspace = calls.op.workspace([qkv, *caches[0], *calls.tables])
    launches = [lambda cache=cache: calls.op.launch([qkv, *cache, *calls.tables], [y, *cache], workspace)
                for cache in caches]

    def check() -> None:
        if not np.isfinite(device.get(y)).all():
            raise AssertionError("attention left a number that is not finite")

    seen = tokens * past + tokens * (tokens + 1) // 2  # keys, by all tokens of a head
    name = f"attention {model.heads}:{model.kv_heads}x{model.head_size} past={past}"
    name += (f" M={tokens}" if tokens > 1 else "") + (" kv8" if kv_bits == 8 else "")
    return Workload(name, size, launches,
                    4 * model.heads * model.head_size * seen, check,
                    {"past": past, "tokens": tokens, "kv_bits": kv_bits, "copies": len(caches)})


RMS_NORM, GELU, SILU = 1, 2, 4  # as common/linear.h counts norms and activations


def layers(maker: Maker, model: Model, count: int, matrices_only: bool, past: int = PAST) -> Workload:
    """``count`` distinct layers in a row, for one token: five launches each, or the four of the matrices alone."""
    device, shapes = maker.device, model.matrices
    hidden, calls = device.put(np.ones((1, 1, model.hidden), np.float16)), AttentionCalls.make(maker, model, past)
    gains = device.put(np.ones(model.hidden, np.float32))
    around = {"qkv": {"norm": RMS_NORM}, "o": {"has_residual": 1}, "down": {"has_residual": 1},
              "up": {"norm": RMS_NORM, "gated": int(model.gated), "activation": SILU if model.gated else GELU}}
    ops = {name: device.op("Int4MatMul", K=K, N=N, group_size=model.group_size, **around[name])
           for name, (N, K) in shapes.items()}
    qkv, inner, attended = (device.put(np.ones((1, 1, size), np.float16))
                            for size in (shapes["qkv"][0], model.mlp, shapes["o"][1]))
    sources = {"qkv": (hidden, gains, qkv), "o": (attended, hidden, hidden), "up": (hidden, gains, inner),
               "down": (inner, hidden, hidden)}  # x, what follows the weights, y
    nothing = device.empty((1,), np.uint8)
    steps: list[Callable[[], None]] = []
    size = 0
    for _ in range(count):
        weights = {name: maker.quantized(N, K, model.group_size) for name, (N, K) in shapes.items()}
        cache = [] if matrices_only else calls.cache(maker, model)
        size += sum(each.nbytes for tensors in (*weights.values(), cache) for each in tensors)
        layer = [lambda name=name, tensors=tensors: ops[name].launch(
            [sources[name][0], *tensors, sources[name][1]], [sources[name][2]], nothing)
            for name, tensors in weights.items()]
        if cache:
            inputs = [qkv, *cache, *calls.tables]
            workspace = calls.op.workspace(inputs)
            layer.insert(1, lambda inputs=inputs, cache=cache, workspace=workspace: calls.op.launch(
                inputs, [attended, *cache], workspace))
        steps += layer
    launch_all = lambda: [step() for step in steps] and None  # noqa: E731
    what = "matrices" if matrices_only else "layers"
    return Workload(f"{model.name}: {count} {what}", size, [launch_all],
                    details={"layers": count, "launches_per_layer": len(steps) // count, "past": past})
