"""A prompt's matmul in two launches, its weights made halves first: the same numbers, the workspace, and when."""

import numpy as np
import pytest
from kernel_harness import HALF_ROUNDOFF, KernelError, guarded, poisoned
from matmul_harness import Fp16Matrix, activations, assert_product, pack, random_matrix
from test_adapters import addresses, creators, descs, ranged
from vtable import HALF, INT8

TYPES = [HALF, INT8, HALF, INT8, HALF]
ROUNDINGS = 400


def stored(matrix):
    packed = pack if matrix.bits == 4 else np.asarray
    return [guarded(each) for each in (packed(matrix.q), matrix.scales, packed(matrix.zeros))]


def kernels(device):
    return [line.split()[0] for kind in ("cuLaunchKernel", "cuLaunchKernelEx") for line in device.calls(kind)]


def shapes_only(rows, N, K):
    """Inputs of a 4-bit matmul of groups of 64 with no memory behind them."""
    shapes = [(rows, K), (N, K // 2), (N, K // 64), (N, -(-K // 128))]
    return [np.broadcast_to(np.zeros((), np.float16), shape) for shape in shapes]


@pytest.mark.parametrize(("bits", "group_size", "K"), [(4, 128, 1088), (4, 64, 1088), (8, 128, 320), (8, 64, 192)])
@pytest.mark.parametrize("rows", [9, 70])
def test_computes_with_weights_in_halves(device, rng, rows, bits, group_size, K):
    matrix, x = random_matrix(rng, 40, K, group_size, bits), activations(rng, rows, K, outliers=3)
    op = device.create(f"Int{bits}MatMul", K=K, N=40, group_size=group_size, dequantize_from=9, fp32_output=1)
    halves = Fp16Matrix(matrix.weights.astype(np.float16))
    for _ in range(2):  # counters are zero again after the first
        y = poisoned(rows, 40, dtype=np.float32)
        op.run([guarded(x), *stored(matrix)], [y])
        assert_product(y, halves, x, ROUNDINGS)
    x = x.astype(np.float64)
    rounding = 1.01 * HALF_ROUNDOFF * (np.abs(x) @ np.abs(matrix.weights).T)
    assert (np.abs(y - x @ matrix.weights.T) <= rounding).all()
    assert kernels(device)[:2] == [f"embedding_int{bits}", f"fp16_matmul_{16 if rows == 9 else 128}"]


def test_what_surrounds_it(device, rng):
    matrix, x = random_matrix(rng, 2 * 21, 192, 64), activations(rng, 20, 192)
    linear = {"activation": "silu", "gated": 1, "bias": rng.standard_normal(42).astype(np.float16),
              "act_scale": np.exp(rng.standard_normal(21)).astype(np.float32),
              "residual": rng.standard_normal((20, 21)).astype(np.float16)}
    op = device.create("Int4MatMul", K=192, N=42, group_size=64, dequantize_from=9, activation=4, gated=1, has_bias=1,
                       has_act_scale=1, has_residual=1)
    y = poisoned(20, 21)
    op.run([guarded(x), *stored(matrix), *(guarded(linear[name]) for name in ("bias", "act_scale", "residual"))], [y])
    assert_product(y, Fp16Matrix(matrix.weights.astype(np.float16)), x, ROUNDINGS, **linear)


@pytest.mark.parametrize(("rows", "start", "expected"), [
    (64, 0, ["int4_matmul_64"]), (64, 65, ["int4_matmul_64"]), (64, 64, ["embedding_int4", "fp16_matmul_64"]),
    (8, 1, ["int4_gemv_g64_rows8"])])
def test_from_so_many_rows_on(device, rng, rows, start, expected):
    matrix, x = random_matrix(rng, 17, 64, 64), activations(rng, rows, 64)
    op, y = device.create("Int4MatMul", K=64, N=17, group_size=64, dequantize_from=start), poisoned(rows, 17)
    op.run([guarded(x), *stored(matrix)], [y])
    assert kernels(device) == expected


@pytest.mark.parametrize(("capability", "start"), [(80, 0), (86, 0), (87, 0), (89, 0), (90, 1485), (100, 1485)])
def test_as_predicted(device, capability, start):
    """Where the tensor cores are the bound, a few instructions more cost nothing.

    On sm_90 64 rows take 1 / 32 / 0.625 = 0.0500 cycles of these per weight and 6.2 / 128 / 0.8 = 0.0605 of
    instructions; the way through memory takes 4.5 / 18.4 = 0.2446, which 23.2 times 64 rows save.
    """
    device.reset(compute_capability=capability, run=0)
    op = device.create("Int4MatMul", K=64, N=16, group_size=64, dequantize_from=-1)
    for rows in (start - 1, start) if start else (1 << 14,):
        device.driver.fake_forget()
        x, y = np.zeros((rows, 64), np.float16), np.zeros((rows, 16), np.float16)
        op.run([x, *(np.zeros(shape, kind) for shape, kind in
                     (((16, 32), np.int8), ((16, 1), np.float16), ((16, 1), np.int8)))], [y])
        assert kernels(device)[0] == ("embedding_int4" if start and rows >= start else "int4_matmul_128")


@pytest.mark.parametrize(("start", "rows", "N", "K", "halves"), [
    (0, 4096, 4096, 4096, 0), (1000, 999, 4096, 4096, 0), (1000, 1000, 4096, 4096, 2 * 4096 * 4096),
    (1000, 4096, 4544, 4544, 2 * 4544 * 4544), (9, 4096, 65536, 8192, 1 << 30), (9, 4096, 65537, 8192, 0)])
def test_workspace_is_the_halves_and_what_splits_leave(device, start, rows, N, K, halves):
    """And no more than 1 GiB of halves: a larger matrix stays as it is."""
    op = device.create("Int4MatMul", K=K, N=N, group_size=64, dequantize_from=start)
    without = device.create("Int4MatMul", K=K, N=N, group_size=64).workspace_bytes(*shapes_only(rows, N, K))
    plain = device.create("Fp16MatMul", K=K, N=N).workspace_bytes(
        shapes_only(rows, N, K)[0], np.broadcast_to(np.zeros((), np.float16), (N, K)))
    found = op.workspace_bytes(*shapes_only(rows, N, K))
    assert (halves <= found <= max(halves + plain, without)) if halves else found == without


@pytest.mark.parametrize("generation", [10, 8], ids=["IPluginV3", "IPluginV2DynamicExt"])
def test_tensorrt_is_told_the_workspace(device, rng, generation):
    plugin = creators(device, generation)["Int4MatMul"].create(K=192, N=19, group_size=128, dequantize_from=30)
    matrix, x = random_matrix(rng, 19, 192, 128), activations(rng, 40, 192)
    inputs = [guarded(each) for each in (x[None], *stored(matrix))]
    shapes = descs(generation, inputs, TYPES)
    largest = [ranged(10, each.shape, each.shape, kind) for each, kind in zip(inputs, TYPES, strict=False)]
    size = plugin.workspace_bytes(largest if generation == 10 else shapes)
    assert size >= 2 * 19 * 192
    few = [x[None, :29], *inputs[1:]]
    smaller = descs(generation, few, TYPES) if generation == 8 else [
        ranged(10, each.shape, each.shape, kind) for each, kind in zip(few, TYPES, strict=False)]
    assert plugin.workspace_bytes(smaller) < size
    y, workspace = poisoned(1, 40, 19), guarded(np.full(size, 0xFF, np.uint8))  # nothing lies behind it
    assert workspace.ctypes.data % 16 == 0
    if generation == 10:
        plugin = plugin.attach()
        assert plugin.on_shape_change(shapes, descs(10, [y], [HALF])) == 0
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y]), workspace.ctypes.data) == 0
    assert_product(y[0], Fp16Matrix(matrix.weights.astype(np.float16)), x, ROUNDINGS)
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y]), 0) == 1
    assert b"workspace is null" in device.library.edge_awq_last_error()


def test_the_second_launch_waits_for_all_of_the_first(device, rng):
    """Weights are asked for before the previous kernel has ended, and here that one makes them."""
    device.reset(compute_capability=90)
    device.library.edge_awq_set_dependent_launch(1)
    matrix, x = random_matrix(rng, 17, 64, 64), activations(rng, 16, 64)
    op, y = device.create("Int4MatMul", K=64, N=17, group_size=64, dequantize_from=9), poisoned(16, 17)
    op.run([guarded(x), *stored(matrix)], [y])
    assert [device.calls(kind)[0].split()[0] for kind in ("cuLaunchKernelEx", "cuLaunchKernel")] == [
        "embedding_int4", "fp16_matmul_16"]


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuModuleGetFunction"])
def test_faults_are_reported(device, rng, function):
    matrix, x = random_matrix(rng, 17, 64, 64), activations(rng, 16, 64)
    op, y = device.create("Int4MatMul", K=64, N=17, group_size=64, dequantize_from=9), poisoned(16, 17)
    device.fail(function, 1)
    with pytest.raises(KernelError, match=f"{function}: CUDA_ERROR_INVALID_VALUE"):
        op.run([guarded(x), *stored(matrix)], [y])
    assert np.isnan(y).all()


def test_what_is_no_number_of_rows_is_refused(device):
    with pytest.raises(KernelError, match="dequantize_from = -2, not a number of rows, 0 for never or -1 as predicted"):
        device.create("Int4MatMul", K=64, N=16, group_size=64, dequantize_from=-2)
    with pytest.raises(KernelError, match="unknown attribute dequantize_from"):
        device.create("Fp16MatMul", K=64, N=16, dequantize_from=9)
