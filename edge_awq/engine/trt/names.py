"""What the plugin library calls things, and the limits of its kernels; plugins/README.md has the tables in words."""

from __future__ import annotations

from edge_awq.export.ops import CONTRACT_VERSION

DOMAIN = "edge.awq"  # of plugin nodes, and the namespace under which TensorRT's registry has their creators
PLUGIN_VERSION = str(CONTRACT_VERSION)
LOWERING_VERSION = 3  # grows when the same canonical graph is lowered to a different one

INT4_MATMUL, INT8_MATMUL, FP16_MATMUL = "Int4MatMul", "Int8MatMul", "Fp16MatMul"
ATTENTION, RMS_NORM, LAYER_NORM, SAMPLE = "CachedAttention", "RmsNorm", "LayerNorm", "SampleToken"
# Inputs and outputs of a lowered graph, besides its weights and its cache.
IDS, PAST_LENGTH, LOGITS, TOKENS = "input_ids", "past_length", "logits", "tokens"
SETTINGS, SEED = "sampling", "seed"  # how tokens are chosen
SAMPLE_SETTINGS = ("temperature", "top_k", "top_p", "min_p")  # of SETTINGS, in this order
GREEDY = "GreedyToken"  # no rule makes one: SampleToken's is the same token where nothing is drawn
EMBEDDING = "TokenEmbedding"  # nor of these: TensorRT's own gather reads tables of float16

# Weights of a matmul, after x, with their types; then come the extras that attributes ask for, in this order.
MATMUL_WEIGHTS = {
    INT4_MATMUL: ("int8", "float16", "int8"),
    INT8_MATMUL: ("int8", "float16", "int8"),
    FP16_MATMUL: ("float16",),
}
EXTRAS = {"norm_weight": "float32", "norm_bias": "float32", "bias": "float16", "act_scale": "float32",
          "residual": "float16"}
NORMS = {RMS_NORM: 1, LAYER_NORM: 2}  # values of a matmul's ``norm``; 0: none
RELU, GELU, GELU_TANH, SILU = 1, 2, 3, 4  # values of its ``activation``; 0: none

GROUP_SIZES = (64, 128)
K_STEP = 64  # a matmul's K is a multiple of it
NORM_STEP = 8  # and the size of what a norm normalizes of this
HEAD_SIZES = (64, 80, 96, 112, 128, 256)

# A norm in front of a matmul is computed in every block, of all rows of x, in shared memory.
NORMED_MOST_ROWS = 8
NORMED_MOST_BYTES = 64 * 1024
NORMED_ROW_STEP = 256  # bytes: rows in shared memory are padded to a multiple


def normed_rows(width: int) -> int:
    """Rows of ``width`` float16 elements that can be normalized in front of a matmul, 0 to NORMED_MOST_ROWS."""
    row_bytes = -(-2 * width // NORMED_ROW_STEP) * NORMED_ROW_STEP
    return min(NORMED_MOST_ROWS, NORMED_MOST_BYTES // row_bytes)


# Standard ops that may be left, all known to the parser of TensorRT 8.6 at opset 17.
OPSET = 17
IR_VERSION = 8  # what came with opset 17
STANDARD_OPS = ("Add", "Cast", "Clip", "Div", "Gather", "Mul", "Reshape", "Shape", "Sigmoid", "Slice", "Tanh")
