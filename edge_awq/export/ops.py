"""The op contract: edge-awq's own ONNX ops, each with a function body of standard ops that is its meaning.

A body is written in ONNX's text syntax (https://onnx.ai/onnx/repo-docs/Syntax.html) and computes in float32. A graph
runs as it stands wherever ONNX runs; a lowering replaces the nodes by kernels that compute the same, faster.
Attributes repeat what the shapes say, for builders that see a node before its tensors.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

DOMAIN = "edge_awq"
CONTRACT_VERSION = 2  # opset version of DOMAIN; grows with every change of an op's signature or meaning
OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11  # what came with opset 23


@dataclass(frozen=True)
class Op:
    """One op: ``doc`` gives its equation and shapes, ``body`` computes it, in ONNX text over the signature's names."""

    name: str
    doc: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str


# Rows of 4-bit zero points are padded to whole bytes; the padding is cut off after the cast.
_MATMUL = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    rest = Constant <value_ints = [-1]> ()
    row_shape = Shape (qweight)                                  # [N, K]
    groups = Shape <start = 1> (scales)                          # K / group_size
    group_shape = Concat <axis = 0> (zero, groups, rest)         # [N, groups, group_size]
    q = Cast <to = 1> (qweight)
    q_groups = Reshape (q, group_shape)
    z_padded = Cast <to = 1> (zero_points)
    z = Slice (z_padded, zero, groups, one)
    z_groups = Unsqueeze (z, two)                                # [N, groups, 1]
    s = Cast <to = 1> (scales)
    s_groups = Unsqueeze (s, two)
    centred = Sub (q_groups, z_groups)
    w_groups = Mul (centred, s_groups)
    w = Reshape (w_groups, row_shape)
    w_columns = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, w_columns)
"""

# Heads have the shape [1, kv_heads, share, tokens, head_size], where ``share`` query heads use one KV head; keys and
# values have share 1 and are broadcast. Only the first past_length rows of the past are read.
_ATTENTION = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    rest = Constant <value_ints = [-1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()

    tokens = Shape <start = 1, end = 2> (q)
    total = Add (past_length, tokens)
    kv_heads = Shape <start = 1, end = 2> (past_key)
    head_size = Shape <start = 3> (past_key)
    head_shape = Concat <axis = 0> (zero, zero, kv_heads, rest, head_size)
    q_split = Reshape (q, head_shape)
    k_split = Reshape (k, head_shape)
    v_split = Reshape (v, head_shape)

    # rotary positions, of queries and keys together: (a, b) -> (a cos - b sin, b cos + a sin)
    qk_split = Concat <axis = 3> (q_split, k_split)
    qk = Transpose <perm = [0, 2, 3, 1, 4]> (qk_split)           # [1, kv_heads, share + 1, tokens, head_size]
    cosine = Slice (cos, past_length, total, zero)               # [tokens, half]
    sine = Slice (sin, past_length, total, zero)
    half = Shape <start = 1> (cos)
    rotated_size = Add (half, half)
    kept_size = Sub (head_size, rotated_size)
    part_sizes = Concat <axis = 0> (half, half, kept_size)
    a, b, kept = Split <axis = 4> (qk, part_sizes)
    a_cos = Mul (a, cosine)
    b_sin = Mul (b, sine)
    b_cos = Mul (b, cosine)
    a_sin = Mul (a, sine)
    a_rotated = Sub (a_cos, b_sin)
    b_rotated = Add (b_cos, a_sin)
    qk_rotated = Concat <axis = 4> (a_rotated, b_rotated, kept)
    queries = Slice (qk_rotated, zero, rest, two)
    new_keys = Slice (qk_rotated, rest, end, two)
    new_values = Transpose <perm = [0, 2, 3, 1, 4]> (v_split)

    # the cache: rows [past_length, total) become those of the new tokens
    cache_key = Unsqueeze (past_key, two)
    cache_value = Unsqueeze (past_value, two)
    old_keys = Slice (cache_key, zero, past_length, three)
    old_values = Slice (cache_value, zero, past_length, three)
    unused_keys = Slice (cache_key, total, end, three)
    unused_values = Slice (cache_value, total, end, three)
    keys = Concat <axis = 3> (old_keys, new_keys)                # [1, kv_heads, 1, total, head_size]
    values = Concat <axis = 3> (old_values, new_values)
    next_keys = Concat <axis = 3> (keys, unused_keys)
    next_values = Concat <axis = 3> (values, unused_values)
    present_key = Squeeze (next_keys, two)
    present_value = Squeeze (next_values, two)

    # a query sees itself and what is before it, up to ``window`` positions in all
    first = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    window_size = Constant <value_int: int = @window> ()
    total_count = Squeeze (total)
    key_position = Range (first, total_count, step)              # [total]
    new_position = Slice (key_position, past_length, total, zero)
    query_position = Unsqueeze (new_position, one)               # [tokens, 1]
    distance = Sub (query_position, key_position)                # [tokens, total]
    has_window = Greater (window_size, first)
    reach = Where (has_window, window_size, total_count)
    is_past = GreaterOrEqual (distance, first)
    is_near = Less (distance, reach)
    visible = And (is_past, is_near)

    # scores = softcap(scale * queries @ keys.T) - slope * distance
    factor = Constant <value_float: float = @scale> ()
    key_columns = Transpose <perm = [0, 1, 2, 4, 3]> (keys)
    products = MatMul (queries, key_columns)
    scaled = Mul (products, factor)                              # [1, kv_heads, share, tokens, total]
    cap = Constant <value_float: float = @softcap> ()
    no_cap = Constant <value_float = 0.0> ()
    any_cap = Constant <value_float = 1.0> ()
    has_cap = Greater (cap, no_cap)
    safe_cap = Where (has_cap, cap, any_cap)
    ratio = Div (scaled, safe_cap)
    bounded = Tanh (ratio)
    capped = Mul (bounded, safe_cap)
    bare = Where (has_cap, capped, scaled)
    slope_shape = Concat <axis = 0> (kv_heads, rest, one, one)
    head_slopes = Reshape (slopes, slope_shape)                  # [kv_heads, share, 1, 1]
    float_distance = Cast <to = 1> (distance)
    penalty = Mul (head_slopes, float_distance)                  # [kv_heads, share, tokens, total]
    biased = Sub (bare, penalty)

    # softmax(scores) @ values over what is visible
    hidden_score = Constant <value_float = -3.4028234e38> ()
    scores = Where (visible, biased, hidden_score)
    weights = Softmax <axis = -1> (scores)
    mixed_heads = MatMul (weights, values)
    mixed = Transpose <perm = [0, 3, 1, 2, 4]> (mixed_heads)
    y_shape = Shape (q)
    y = Reshape (mixed, y_shape)
"""

_MATMUL_SIGNATURE = (("x", "qweight", "scales", "zero_points"), ("y",), ("K", "N", "group_size"))

INT4_MATMUL = Op(
    "Int4MatMul",
    """y = x @ W.T, W[n, k] = (qweight[n, k] - zero_points[n, k // group_size]) * scales[n, k // group_size]

    x [.., K] float32; qweight [N, K] uint4, two a byte, low nibble first; scales [N, K / group_size] float16;
    zero_points uint4 [N, K / group_size rounded up to even], the padding ignored; y [.., N] float32.
    """,
    *_MATMUL_SIGNATURE,
    _MATMUL,
)

INT8_MATMUL = Op(
    "Int8MatMul",
    """y = x @ W.T, W[n, k] = (qweight[n, k] - zero_points[n, k // group_size]) * scales[n, k // group_size]

    x [.., K] float32; qweight [N, K] uint8; scales [N, K / group_size] float16; zero_points the same shape, uint8;
    y [.., N] float32.
    """,
    *_MATMUL_SIGNATURE,
    _MATMUL,
)

CACHED_ATTENTION = Op(
    "CachedAttention",
    """y = softmax(softcap(scale * q @ keys.T) + slopes * (key position - query position)) @ values, causal

    Keys and values are those of the cache and of the new tokens.

    q [1, tokens, num_heads * head_size], k and v [1, tokens, kv_num_heads * head_size] float32, not yet rotated;
    past_key, past_value float32 [1, kv_num_heads, capacity, head_size], of which past_length [1] int64 rows are valid
    and the rest is never read; past_length + tokens <= capacity; cos, sin [at least capacity, rotary_size / 2] float32.
    A token's position is its row in the cache. The leading rotary_size elements of each head of q and k are rotated,
    pairs half of it apart; rotary_size 0: none are. slopes [num_heads] float32 are ALiBi's, zeros where there is none.
    softcap(x) is softcap * tanh(x / softcap), or x for softcap 0. num_heads / kv_num_heads neighbouring query heads
    share one KV head. A query sees the ``window`` newest positions, itself included; window 0: all. y has the shape of
    q; present_key and present_value are the past with rows [past_length, past_length + tokens) replaced, which a kernel
    may do in place.
    """,
    ("q", "k", "v", "past_key", "past_value", "past_length", "cos", "sin", "slopes"),
    ("y", "present_key", "present_value"),
    ("num_heads", "kv_num_heads", "head_size", "scale", "window", "softcap"),
    _ATTENTION,
)

OPS = (INT4_MATMUL, INT8_MATMUL, CACHED_ATTENTION)


def function(op: Op) -> onnx.FunctionProto:
    """The op as an ONNX function."""
    import onnx.parser  # here, so that the contract can be read where onnx is not installed

    inputs, outputs, attributes = (", ".join(names) for names in (op.inputs, op.outputs, op.attributes))
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
    proto = onnx.parser.parse_function(f"{header} {op.name} <{attributes}> ({inputs}) => ({outputs}) {{{op.body}}}")
    proto.doc_string = inspect.cleandoc(op.doc)
    return proto
