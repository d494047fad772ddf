"""Group quantization and packing: exact round trips, half-step errors, degenerate groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_awq.errors import EdgeAwqError
from edge_awq.quantize.int4 import (
    HALF_SMALLEST_NORMAL,
    IntGrid,
    PackedLinear,
    dequantize,
    grid_for,
    pack_nibbles,
    quantize,
    rounded,
    unpack_nibbles,
)

GRIDS = [IntGrid(bits, size, symmetric) for bits in (4, 8) for size in (64, 128) for symmetric in (False, True)]
NAMES = [f"{grid.bits}bit-g{grid.group_size}-{'sym' if grid.symmetric else 'asym'}" for grid in GRIDS]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=NAMES)


def random_packed(seed: int, rows: int, num_groups: int, grid: IntGrid) -> PackedLinear:
    """Random stored tensors in which every group uses its whole range, as min-max quantization leaves it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, num_groups, grid.group_size)
    integers = torch.randint(0, grid.top + 1, shape, generator=generator)
    integers[..., 0], integers[..., 1] = 0, grid.top
    zeros = torch.randint(0, grid.top + 1, shape[:2], generator=generator)
    zeros = torch.full_like(zeros, grid.middle) if grid.symmetric else zeros
    scales = (torch.rand(shape[:2], generator=generator) * 0.1 + 1e-4).half()
    pack = pack_nibbles if grid.bits == 4 else torch.Tensor.contiguous
    return PackedLinear(pack(integers.flatten(1).byte()), scales, pack(zeros.byte()), grid.bits, grid.group_size)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 70))
def test_unpacking_undoes_packing(seed, rows, columns):
    values = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(seed)).byte()
    packed = pack_nibbles(values)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert torch.equal(unpack_nibbles(packed, columns), values)


def test_low_nibble_comes_first_and_the_pad_is_zero():
    assert pack_nibbles(torch.tensor([[1, 2, 15]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]


@every_grid
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), num_groups=st.integers(1, 5))
def test_quantizing_what_was_dequantized_gives_the_same_bytes(grid, seed, rows, num_groups):
    packed = random_packed(seed, rows, num_groups, grid)
    again, clipped = quantize("w", dequantize(packed), grid)
    assert clipped == 0
    for kind, tensor in packed.tensors("w").items():
        assert torch.equal(again.tensors("w")[kind], tensor), kind


def test_dequantize_is_the_formula_of_the_format():
    packed = PackedLinear(torch.full((1, 32), 0xF0, dtype=torch.uint8), torch.tensor([[0.5]]).half(),
                          torch.tensor([[3]], dtype=torch.uint8), 4, 64)
    assert dequantize(packed)[0, :4].tolist() == [-1.5, 6.0, -1.5, 6.0]


@every_grid
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-9, 4), offset=st.sampled_from([0.0, 3.0, -3.0]))
def test_no_weight_moves_by_more_than_a_step(grid, seed, exponent, offset):
    """Rounding costs half a step; the rounded zero point and scale cost at most half a step more at the edges."""
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed)).add(offset) * 10.0**exponent
    packed, _ = quantize("w", weight, grid)
    step = packed.scales.float().repeat_interleave(grid.group_size, dim=1)
    error = (dequantize(packed) - weight).abs()
    assert (error <= step * 1.001).all()  # 0.001: float32 division by the step
    assert float((error <= step * 0.501).float().mean()) > 0.95


@every_grid
def test_rounded_is_quantized_and_dequantized(grid):
    weight = torch.randn(5, 384, generator=torch.Generator().manual_seed(0))
    packed, _ = quantize("w", weight, grid)
    assert torch.equal(rounded(weight, grid), dequantize(packed))
    assert torch.equal(dequantize(packed.rows(slice(2, 4))), dequantize(packed)[2:4])


@every_grid
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-9, -1e-7, 3e-5, 6e4, -6e4, 1e-30])
def test_constant_groups_survive(grid, value):
    packed, _ = quantize("w", torch.full((2, 128), value), grid)
    restored = dequantize(packed)
    assert torch.isfinite(packed.scales).all() and (packed.scales > 0).all()
    # A constant lands on the end of its range, off by the rounding of the fp16 scale: 2^-11, or half a subnormal step.
    scale = float(packed.scales.max())
    limit = abs(value) * 2**-11 if scale >= HALF_SMALLEST_NORMAL else scale / 2
    assert (restored - value).abs().max() <= limit


def test_one_sided_groups_keep_their_precision():
    """llm-awq clamps the zero point of such a group; here its range includes zero."""
    weight = torch.linspace(0.5, 1.0, 64)[None]
    packed, clipped = quantize("w", weight, IntGrid(4, 64))
    assert clipped == 0
    assert (dequantize(packed) - weight).abs().max() <= 0.51 / 15


def test_symmetric_zero_points_are_the_middle():
    packed, _ = quantize("w", torch.randn(3, 192, generator=torch.Generator().manual_seed(0)), IntGrid(4, 64, True))
    assert unpack_nibbles(packed.zero_points, 3).unique().tolist() == [8]
    assert (packed.zero_points[:, 1] >> 4 == 0).all(), "the pad nibble of an odd number of groups is zero"


def test_given_ranges_are_used_and_what_they_clip_is_counted():
    weight = torch.arange(-32.0, 32.0)[None]
    ranges = torch.full((1, 1), -7.5), torch.full((1, 1), 7.5)
    packed, clipped = quantize("w", weight, IntGrid(4, 64), ranges)
    assert packed.scales.item() == 1.0
    outside = ((weight.round() + 8 < 0) | (weight.round() + 8 > 15)).sum()
    assert clipped == int(outside) > 0


def test_a_scale_beyond_fp16_is_an_error_that_names_the_linear():
    with pytest.raises(EdgeAwqError, match=r"blocks\.3\.q"):
        quantize("blocks.3.q", torch.full((1, 64), 1e7), IntGrid(4, 64))


@pytest.mark.parametrize(("inputs", "expected"), [(2048, 128), (4544, 64), (64, 64)])
def test_group_size_falls_back_to_64(inputs, expected):
    assert grid_for("q", inputs, IntGrid(4, 128)).group_size == expected


def test_inputs_that_no_group_divides_are_an_error_with_a_remedy():
    with pytest.raises(EdgeAwqError, match=r"blocks.0.down.*K = 1000") as error:
        grid_for("blocks.0.down", 1000, IntGrid(4, 128))
    assert "fp16" in error.value.hint
