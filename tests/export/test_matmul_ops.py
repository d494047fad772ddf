"""Bodies of Int4MatMul and Int8MatMul against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import FLOAT32_ROUNDING, RUNTIMES, one_op_model

from edge_awq.export import ops
from stored import Quantized, pack_nibbles


@dataclass(frozen=True)
class Case:
    """``leading``: dimensions of x before K."""

    bits: int
    features: int
    width: int
    group_size: int
    leading: tuple[int, ...]


CASES = {
    "int4-g128": Case(4, 64, 256, 128, (5,)),
    "int4-g64-batch": Case(4, 64, 256, 64, (2, 3)),
    "int4-odd-N-odd-groups": Case(4, 33, 192, 64, (4,)),
    "int4-one-group-one-row": Case(4, 31, 128, 128, (1, 1)),
    "int4-five-groups": Case(4, 16, 640, 128, (3,)),
    "int8-g128": Case(8, 64, 256, 128, (5,)),
    "int8-odd-N-odd-groups": Case(8, 33, 192, 64, (1, 4)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=RUNTIMES)
def open_model(request):
    return RUNTIMES[request.param]


def random_weight(case: Case) -> Quantized:
    """Every value of q that ``bits`` allows, in random order."""
    rng = np.random.default_rng(0)
    groups = case.width // case.group_size
    q, zero = (
        rng.permuted(np.arange(case.features * columns) % 2**case.bits).astype(np.uint8).reshape(-1, columns)
        for columns in (case.width, groups)
    )
    assert set(q.flat) == set(range(2**case.bits))
    return Quantized(q, rng.uniform(0.001, 0.1, (case.features, groups)).astype(np.float16), zero)


def matmul_model(case: Case, weight: Quantized, leading: tuple[int, ...]):
    zero, element_type, pack = weight.zero, TensorProto.UINT8, np.asarray
    if case.bits == 4:
        element_type, pack = TensorProto.UINT4, pack_nibbles
        zero = np.pad(zero, [(0, 0), (0, zero.shape[1] % 2)], constant_values=15)  # the padding must not matter
    constants = [
        helper.make_tensor("qweight", element_type, weight.q.shape, pack(weight.q).tobytes(), raw=True),
        helper.make_tensor("scales", TensorProto.FLOAT16, weight.scale.shape, weight.scale.tobytes(), raw=True),
        helper.make_tensor("zero_points", element_type, zero.shape, pack(zero).tobytes(), raw=True),
    ]
    return one_op_model(
        {4: ops.INT4_MATMUL, 8: ops.INT8_MATMUL}[case.bits],
        {"K": case.width, "N": case.features, "group_size": case.group_size},
        {"x": (TensorProto.FLOAT, (*leading, case.width))},
        {"y": (TensorProto.FLOAT, (*leading, case.features))},
        constants,
    )


def test_uses_exactly_the_stored_weight(open_model, case):
    """(q - zero) * scale has at most 9 + 11 significant bits, so float32 holds it; the identity brings it out."""
    weight = random_weight(case)
    (found,) = open_model(matmul_model(case, weight, (case.width,)))({"x": np.eye(case.width, dtype=np.float32)})
    np.testing.assert_array_equal(found.T.astype(np.float64), weight.value)


def test_rounds_only_the_sum(open_model, case):
    """Summed in any order, K products err by at most K u / (1 - K u) of their absolute sum (Higham 2002, eq. 3.5)."""
    weight = random_weight(case)
    x = np.random.default_rng(1).standard_normal((*case.leading, case.width)).astype(np.float32)
    (found,) = open_model(matmul_model(case, weight, case.leading))({"x": x})
    exact_x, roundings = x.astype(np.float64), case.width * FLOAT32_ROUNDING
    bound = roundings / (1 - roundings) * (np.abs(exact_x) @ np.abs(weight.value.T))
    assert found.dtype == np.float32
    assert found.shape == (*case.leading, case.features)
    assert np.all(np.abs(found - exact_x @ weight.value.T) <= bound)
