"""Every layout: integers, zero points and scales come out as they went in."""

import numpy as np
import pytest
import torch
from published import FORMATS, gptq

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.autoawq import find_llm_awq
from edge_awq.interop.checkpoint import METHODS
from edge_awq.interop.gptq import Gptq
from edge_awq.interop.linear import exact_half
from stored import Quantized

# name -> (N, K, group size): one group, a row of groups that is padded, groups as in real models
SHAPES = {"one-group": (8, 64, 64), "padded": (64, 192, 64), "wide": (24, 1408, 128), "square": (128, 128, 128)}


def random_linear(rows, inputs, size, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 16, (rows, inputs), dtype=np.uint8)
    scale = rng.uniform(1e-4, 2, (rows, inputs // size)).astype(np.float16)
    return Quantized(q, scale, rng.integers(1, 16, scale.shape, dtype=np.uint8))


def as_tensors(parts):
    return {part: torch.from_numpy(array) for part, array in parts.items()}


def layout_of(kind, size, shapes):
    if (config := kind.config(size)) is not None:
        return METHODS[config["quant_method"]](config)
    return find_llm_awq(shapes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_unpacked_is_what_was_packed(name, shape):
    rows, inputs, size = SHAPES[shape]
    linear = random_linear(rows, inputs, size)
    parts = as_tensors(FORMATS[name].parts(linear))
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    layout = layout_of(FORMATS[name], size, shapes)
    assert layout.group_size == size
    assert layout.size(shapes) == (rows, inputs)
    assert {part: shape for part, shape in layout.shapes(rows, inputs).items() if part in shapes} == shapes
    found = layout.unpack("m", parts)
    assert np.array_equal(found.q.numpy(), linear.q)
    assert np.array_equal(found.scales.numpy(), linear.scale)
    assert np.array_equal(found.zero_points.numpy(), linear.zero)
    assert np.array_equal(found.value().numpy(), linear.value.astype(np.float32))


def test_zero_points_that_were_multiplied_by_tiny_scales_are_found():
    linear = random_linear(64, 128, 64)
    linear = Quantized(linear.q, (linear.scale * np.float16(2**-13)).astype(np.float16), linear.zero)
    linear.scale[0] = 0  # a group of zeros: any zero point means the same
    parts = as_tensors(FORMATS["llm-awq-v2"].parts(linear))
    layout = layout_of(FORMATS["llm-awq-v2"], 64, {part: tuple(tensor.shape) for part, tensor in parts.items()})
    assert np.array_equal(layout.unpack("m", parts).value().numpy(), linear.value.astype(np.float32))


def test_zero_points_that_are_no_whole_numbers_are_refused():
    parts = as_tensors(FORMATS["llm-awq-v2"].parts(random_linear(8, 64, 64)))
    layout = layout_of(FORMATS["llm-awq-v2"], 64, {part: tuple(tensor.shape) for part, tensor in parts.items()})
    parts["scaled_zeros"][0, 3] *= 1.05
    with pytest.raises(EdgeAwqError, match=r"'m\.scaled_zeros': 1 of 8 values"):
        layout.unpack("m", parts)


def test_act_order_sorts_columns_by_group():
    linear = random_linear(16, 256, 64)
    order = np.concatenate([np.sort(part) for part in np.random.default_rng(1).permutation(256).reshape(4, 64)])
    found = Gptq(64, False, 1).unpack("m", as_tensors(gptq(linear, order=order)))
    assert np.array_equal(found.order.numpy(), order)
    assert np.array_equal(found.q.numpy(), linear.q)
    meant = np.empty((16, 256), np.float32)
    meant[:, order] = linear.value
    assert np.array_equal(found.value().numpy(), meant)


def test_whole_groups_in_another_order_need_no_permutation():
    linear = random_linear(16, 256, 64)
    order = np.arange(256).reshape(4, 64)[[2, 0, 3, 1]].ravel()
    found = Gptq(64, False, 1).unpack("m", as_tensors(gptq(linear, order=order)))
    assert found.order is None
    meant = np.empty((16, 256), np.float32)
    meant[:, order] = linear.value
    assert np.array_equal(found.value().numpy(), meant)


@pytest.mark.parametrize("group", [-1, 2, 1])
def test_groups_of_unequal_size_are_refused(group):
    parts = as_tensors(gptq(random_linear(8, 128, 64)))
    parts["g_idx"][0] = group
    with pytest.raises(EdgeAwqError, match=r"'m\.g_idx': its 2 groups do not have 64 inputs each"):
        Gptq(64, False, 1).unpack("m", parts)


def test_zero_points_of_16_are_refused():
    parts = as_tensors(gptq(random_linear(8, 64, 64)))
    parts["qzeros"][0, 0] |= 0xF0
    with pytest.raises(EdgeAwqError, match=r"'m\.qzeros': 1 of 8 zero points are stored as 15"):
        Gptq(64, False, 1).unpack("m", parts)


def test_scales_that_float16_cannot_hold_are_refused():
    assert exact_half("s", torch.tensor([0.5, 2**-20], dtype=torch.bfloat16)).dtype == torch.float16
    with pytest.raises(EdgeAwqError, match=r"'s': 1 of 2 scales \(torch.float32\)"):
        exact_half("s", torch.tensor([0.5, 0.1]))
