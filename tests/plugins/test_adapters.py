"""Both plugin interfaces, called as TensorRT calls them; the work itself is done on fibers."""

from __future__ import annotations

import numpy as np
import pytest
import vtable
from attention_harness import Heads, Result, quantized, random_step
from attention_harness import reference as attention_reference
from kernel_harness import guarded, poisoned
from matmul_harness import activations, assert_product, pack, random_matrix
from vtable import CHW2, FLOAT, HALF, INT8, INT32, INT64, LINEAR

from edge_awq.export import ops

MATMUL = {"K": 192, "N": 19, "group_size": 128}
MATMUL_TYPES = [HALF, INT8, HALF, INT8, HALF]  # x, qweight, scales, zero_points; y
HEADS = Heads(kv=2, share=2, size=64, rotary=64)
ATTENTION = {"num_heads": 4, "kv_num_heads": 2, "head_size": 64, "scale": HEADS.scale, "window": 0, "softcap": 0.0}
ATTENTION_TYPES = [HALF, HALF, HALF, HALF, HALF, INT64, FLOAT, FLOAT, FLOAT, HALF, HALF, HALF]
BYTES_TYPES = [HALF, HALF, HALF, INT8, INT8, FLOAT, FLOAT, INT64, FLOAT, FLOAT, HALF, INT8, INT8, FLOAT, FLOAT]
ROUNDINGS = 400


@pytest.fixture(params=[10, 8], ids=["IPluginV3", "IPluginV2DynamicExt"])
def generation(request):
    return request.param


def creators(device, generation):
    made = {10: vtable.Creator10, 8: vtable.Creator8}[generation]
    function = {10: "getCreators", 8: "getPluginCreators"}[generation]
    found = [made(address) for address in vtable.creators(device.library, function)]
    return {each.identity()[-3]: each for each in found}


def desc(generation, shape, kind, layout=LINEAR):
    """A tensor as this generation describes it; 8.6 has two INT32 for each INT64."""
    if generation == 8 and kind == INT64:
        shape, kind = (*shape, 2), INT32
    dims, made = (vtable.Dims10, vtable.Desc10) if generation == 10 else (vtable.Dims8, vtable.Desc8)
    return made(dims.of(*shape), kind, layout, 1.0)


def ranged(generation, smallest, largest, kind):
    """A tensor whose sizes may lie between two shapes."""
    open_shape = [low if low == high else -1 for low, high in zip(smallest, largest, strict=True)]
    given, low, high = (desc(generation, shape, kind) for shape in (open_shape, smallest, largest))
    if generation == 10:
        return vtable.DynamicDesc10(given, low.dims, high.dims, low.dims)
    return vtable.DynamicDesc8(given, low.dims, high.dims)


def descs(generation, arrays, types):
    return [desc(generation, array.shape, kind) for array, kind in zip(arrays, types, strict=False)]


def addresses(arrays):
    return [array.ctypes.data for array in arrays]


def matmul(rng, rows=3):
    """(matrix, x, inputs) of an Int4MatMul with the attributes MATMUL."""
    matrix, x = random_matrix(rng, 19, 192, 128), activations(rng, rows, 192)
    return matrix, x, [guarded(each) for each in (x[None], pack(matrix.q), matrix.scales, pack(matrix.zeros))]


# ---- creators ----


def test_creators_are_the_ops_with_the_contract_version(device, generation):
    found = creators(device, generation)
    assert {op.name for op in ops.OPS} <= set(found)
    for name, creator in found.items():
        assert creator.identity()[-3:] == (name, str(ops.CONTRACT_VERSION), "edge.awq")
        assert creator.field_types()["contract_version"] == 5
    for op in ops.OPS:
        assert set(op.attributes) <= set(found[op.name].field_types())
    assert found["CachedAttention"].field_types()["scale"] == 1


@pytest.mark.parametrize(("attributes", "text"), [
    (MATMUL | {"K": 100}, "Int4MatMul 'layer': K = 100 is not a multiple of 64"),
    ({"K": 128}, "Int4MatMul 'layer': attribute N is missing"),
    (MATMUL | {"colour": 1}, "Int4MatMul 'layer': unknown attribute colour"),
    (MATMUL | {"contract_version": 7}, "built for contract version 7, this library has 2: build the engine again"),
], ids=["value", "missing", "unknown", "contract"])
def test_bad_fields_give_no_plugin_and_a_reason(device, generation, attributes, text):
    assert creators(device, generation)["Int4MatMul"].create(**attributes) is None
    assert text in device.library.edge_awq_last_error().decode()


# ---- what a plugin says of itself ----


def test_interfaces_are_those_tensorrt_10_3_knows(device):
    plugin = creators(device, 10)["Int4MatMul"].create(**MATMUL)
    assert plugin.info() == (b"PLUGIN", 1, 0)
    assert plugin.info(vtable.CORE) == (b"PLUGIN_V3ONE_CORE", 1, 0)
    assert plugin.info(vtable.BUILD) == (b"PLUGIN_V3ONE_BUILD", 2, 0)
    assert plugin.info(vtable.RUNTIME) == (b"PLUGIN_V3ONE_RUNTIME", 1, 0)
    assert plugin.identity() == ("Int4MatMul", str(ops.CONTRACT_VERSION), "edge.awq")
    assert plugin.defaults() == (0, None, 100, None)
    plugin.destroy()


def test_the_interface_is_that_of_tensorrt_8_6(device):
    creator = creators(device, 8)["Int4MatMul"]
    plugin = creator.create(**MATMUL)
    assert creator.identity()[0] == 8600 and plugin.identity()[0] == 3 << 24 | 8600
    assert plugin.identity()[1:] == ("Int4MatMul", str(ops.CONTRACT_VERSION), "edge.awq")
    assert plugin.obsolete() == (-1, False, 0, 1, False, True)
    plugin.set_namespace("other")
    assert plugin.identity()[3] == plugin.clone().identity()[3] == "other"
    creator.set_namespace("another")
    assert creator.identity()[3] == creator.create(**MATMUL).identity()[3] == "another"
    creator.set_namespace("edge.awq")
    plugin.destroy()


def test_formats_are_asked_tensor_by_tensor(device, generation):
    plugin = creators(device, generation)["Int4MatMul"].create(**MATMUL)
    shapes = [(1, 3, 192), (19, 96), (19, 2), (19, 1), (1, 3, 19)]
    for position, right in enumerate(MATMUL_TYPES):
        for kind in (FLOAT, HALF, INT8, INT32):
            for layout in (LINEAR, CHW2):
                types = [*MATMUL_TYPES[:position], kind, *MATMUL_TYPES[position + 1:]]
                tensors = [desc(generation, *each) for each in zip(shapes, types, strict=True)]
                tensors[position].format = layout
                if generation == 10:
                    tensors = [vtable.DynamicDesc10(each) for each in tensors]
                assert plugin.supports(position, tensors, 4) == (kind == right and layout == LINEAR)


def test_64_bit_integers_travel_as_two_words_in_8_6(device):
    plugin = creators(device, 8)["CachedAttention"].create(**ATTENTION)
    types = [INT32 if kind == INT64 else kind for kind in ATTENTION_TYPES]
    assert all(plugin.supports(i, [desc(8, (1,), kind) for kind in types], 9) for i in range(12))
    choice = creators(device, 8)["GreedyToken"].create()
    assert choice.output_type(0) == INT32 and choice.output_shape(0, [[51, 52]]) == [51, 1002]
    drawn = creators(device, 8)["SampleToken"].create()
    assert all(drawn.supports(i, [desc(8, (1,), kind) for kind in (FLOAT, FLOAT, INT32, INT32, INT32)], 4)
               for i in range(5))
    assert drawn.output_shape(0, [[51, 52], [4], [1, 2], [1, 2]]) == [51, 1002]
    assert creators(device, 10)["GreedyToken"].create().output_types([FLOAT], 1) == [INT64]
    assert creators(device, 10)["GreedyToken"].create().output_shapes([[51, 52]], 1) == [[51]]


def test_types_and_shapes_of_outputs(device, generation):
    product = creators(device, generation)["Int4MatMul"].create(**MATMUL, fp32_output=1)
    attention = creators(device, generation)["CachedAttention"].create(**ATTENTION)
    inputs = [[11, 12, 13], [21, 22], [31, 32], [41, 42]]
    attended = [[11, 12, 13], [14, 15, 16], [17, 18, 19], [21, 22, 23, 24], [25, 26, 27, 28], [31], [41, 42],
                [51, 52], [61]]
    present = [attended[0], attended[3], attended[4]]
    if generation == 10:
        assert product.output_count() == 1 and attention.output_count() == 3
        assert product.output_types(MATMUL_TYPES[:4], 1) == [FLOAT]
        assert attention.output_types(ATTENTION_TYPES[:9], 3) == [HALF] * 3
        assert product.output_shapes(inputs, 1) == [[11, 12, 1019]]
        assert attention.output_shapes(attended, 3) == present
        assert [attention.aliased_input(i) for i in range(4)] == [-1, 3, 4, -1]
        assert product.aliased_input(0) == -1
        assert product.output_shapes(inputs[:3], 1) is None and product.output_types([HALF], 1) is None
    else:
        assert product.output_count() == 1 and attention.output_count() == 3
        assert product.output_type(0) == FLOAT and [attention.output_type(i) for i in range(3)] == [HALF] * 3
        assert product.output_shape(0, inputs) == [11, 12, 1019]
        assert [attention.output_shape(i, attended) for i in range(3)] == present
        assert product.output_shape(1, inputs) is product.output_shape(0, inputs[:3]) is None


def test_a_cache_of_bytes_has_scales(device, generation):
    """Two more inputs and outputs, each output the memory of its input; no slopes here."""
    plugin = creators(device, generation)["CachedAttention"].create(**ATTENTION, kv_bits=8, has_slopes=0)
    inputs = [[11, 12, 13], [14, 15, 16], [17, 18, 19], [21, 22, 23, 24], [25, 26, 27, 28], [21, 22, 23], [25, 26, 27],
              [31], [41, 42], [51, 52]]
    present = [inputs[0], *inputs[3:7]]
    described = [desc(generation, (1,), kind) for kind in BYTES_TYPES]
    if generation == 10:
        assert plugin.output_count() == 5 and plugin.output_types(BYTES_TYPES[:10], 5) == BYTES_TYPES[10:]
        assert plugin.output_shapes(inputs, 5) == present
        assert [plugin.aliased_input(i) for i in range(6)] == [-1, 3, 4, 5, 6, -1]
        described = [vtable.DynamicDesc10(each) for each in described]
    else:
        assert plugin.output_count() == 5 and [plugin.output_type(i) for i in range(5)] == BYTES_TYPES[10:]
        assert [plugin.output_shape(i, inputs) for i in range(5)] == present
    assert all(plugin.supports(i, described, 10) for i in range(15))
    assert not plugin.supports(3, [*described[:3], described[0], *described[4:]], 10)


def test_configure_refuses_what_no_kernel_takes(device, generation):
    plugin = creators(device, generation)["Int4MatMul"].create(**MATMUL)
    weights = [ranged(generation, shape, shape, kind) for shape, kind in
               zip([(19, 96), (19, 2), (19, 1)], MATMUL_TYPES[1:4], strict=True)]
    y = [ranged(generation, (1, 1, 19), (1, 8, 19), HALF)]
    for wrong, text in (((1, 8, 128), "x has shape [1, -1, 128], not [.., 192]"), ((1, 8, 192), "")):
        device.reset()
        failed = plugin.configure([ranged(generation, (1, 1, wrong[2]), wrong, HALF), *weights], y)
        assert failed in ((1 if text else 0), None)
        if text:
            assert text in device.library.edge_awq_last_error().decode()
    if generation == 10:
        assert plugin.configure(weights, y) == 1
        assert b"3 inputs and 1 outputs, not 4 and 1" in device.library.edge_awq_last_error()


# ---- copies ----


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_clones_and_engines_keep_the_attributes(device, generation, kv_bits):
    creator = creators(device, generation)["CachedAttention"]
    plugin = creator.create(**ATTENTION, **({} if kv_bits == 16 else {"kv_bits": kv_bits}))
    expected = ATTENTION | {"packed_qkv": 0, "has_slopes": 1, "kv_bits": kv_bits}
    if generation == 10:
        for each in (plugin, plugin.clone(), plugin.attach()):
            kept = each.serialized()
            assert kept == expected | {"contract_version": ops.CONTRACT_VERSION}
            assert creator.create(phase=1, **kept).serialized() == kept
    else:
        kept = plugin.serialized()
        assert plugin.clone().serialized() == creator.deserialize(kept).serialized() == kept
        assert np.frombuffer(kept[16:]).tolist() == list(expected.values())


@pytest.mark.parametrize(("damage", "text"), [
    (lambda data: data[:-8], "are damaged"), (lambda data: data + b"12345678", "are damaged"),
    (lambda data: b"x" + data[1:], "are not this plugin's"), (lambda data: b"", "are not this plugin's"),
    (lambda data: data[:8] + b"\7" + data[9:], "built for contract version 7"),
], ids=["short", "long", "other", "empty", "contract"])
def test_damaged_engines_are_refused_in_8_6(device, damage, text):
    creator = creators(device, 8)["Int4MatMul"]
    assert creator.deserialize(damage(creator.create(**MATMUL).serialized())) is None
    assert text in device.library.edge_awq_last_error().decode()


# ---- work ----


def test_matmul_runs(device, generation, rng):
    plugin = creators(device, generation)["Int4MatMul"].create(**MATMUL)
    matrix, x, inputs = matmul(rng)
    y = poisoned(1, 3, 19)
    shapes = descs(generation, inputs, MATMUL_TYPES)
    if generation == 10:
        plugin = plugin.attach()
        assert plugin.on_shape_change(shapes, descs(10, [y], [HALF])) == 0
    else:
        assert plugin.initialize() == 0
    device.driver.fake_forget()
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y]), 0, stream=9) == 0
    assert_product(y[0], matrix, x, ROUNDINGS)
    assert device.driver.fake_calls().decode() == (
        "cuFuncSetAttribute int4_gemv_g128 8 1536\ncuLaunchKernel int4_gemv_g128 2 1 1 256 1 1 1536 9\n")


@pytest.mark.parametrize(("tokens", "changes", "kernels"), [
    (2, {"has_slopes": 0}, ["decode_attention_64"]), (2, {}, ["decode_attention_64_adjusted"]),
    (2, {"has_slopes": 0, "kv_bits": 8}, ["decode_attention_64_kv8"]),
    (11, {"has_slopes": 0}, ["append_kv", "prefill_attention_64"]),
    (11, {"kv_bits": 8}, ["append_kv8", "prefill_attention_64_kv8"])],
    ids=["plain", "slopes", "bytes", "prompt", "prompt-bytes"])
def test_attention_runs_in_place(device, generation, rng, tokens, changes, kernels):
    made = creators(device, generation)["CachedAttention"].create(**ATTENTION, **changes)
    plugin, has_slopes, is_bytes = made.clone(), changes.get("has_slopes", 1), "kv_bits" in changes
    step = random_step(rng, HEADS, past=150, tokens=tokens, capacity=200)
    step = quantized(step) if is_bytes else step
    arrays = [step.key_cache, step.value_cache, step.key_scales, step.value_scales][:4 if is_bytes else 2]
    caches, types = [guarded(each[None]) for each in arrays], BYTES_TYPES if is_bytes else ATTENTION_TYPES
    types = [*types[:10], FLOAT] if is_bytes else types
    inputs = [*(guarded(each[None]) for each in (step.q, step.k, step.v)), *caches,
              *map(guarded, (np.array([step.past]), step.cosines, step.sines, *[HEADS.op_slopes] * has_slopes))]
    y = poisoned(1, *step.q.shape)
    shapes = descs(generation, inputs, types)
    largest = [ranged(10, each.shape, each.shape, kind) for each, kind in zip(inputs, types, strict=False)]
    workspace = np.full(plugin.workspace_bytes(largest if generation == 10 else shapes), 0xFF, np.uint8)
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y, *caches]), workspace.ctypes.data) == 0
    exact, bound = attention_reference(step, Result(y[0], *(each[0] for each in caches)))
    assert (np.abs(y[0] - exact) <= bound).all()
    assert [line.split()[0] for line in device.calls("cuLaunchKernel")] == kernels


def test_embedding_adds_a_dimension(device, generation, rng):
    """In 8.6 it takes the place of the tokens' two words."""
    plugin = creators(device, generation)["TokenEmbedding"].create(vocabulary=9, size=64)
    table, tokens, y = activations(rng, 9, 64), np.array([[3, 8, 0]]), poisoned(1, 3, 64)
    shapes = [[11, 12], [21, 22]]
    found = (plugin.output_shapes(shapes, 1)[0] if generation == 10 else
             plugin.output_shape(0, [[*shapes[0], 13], shapes[1]]))
    assert found == [11, 12, 1064]
    if generation == 10:
        assert plugin.output_shapes([[1] * 8, [21, 22]], 1) is plugin.output_shapes([[], [21, 22]], 1) is None
        assert b"TokenEmbedding: input 0 has 0 dimensions" in device.library.edge_awq_last_error()
    inputs = [guarded(tokens), guarded(table)]
    assert plugin.enqueue(descs(generation, inputs, [INT64, HALF]), addresses(inputs), addresses([y]), 0) == 0
    np.testing.assert_array_equal(y, table[tokens])


def test_refusals_of_the_work_return_a_failure(device, generation, rng):
    plugin = creators(device, generation)["Int4MatMul"].create(**MATMUL)
    inputs = matmul(rng, rows=2)[2]
    y = np.zeros((1, 2, 19), np.float16)
    shapes = descs(generation, inputs, MATMUL_TYPES)
    shapes[0].dims.sizes[2] = 64
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y]), 0) == 1
    shapes[0].dims.sizes[2] = 192
    device.fail("cuLaunchKernel", 1)
    assert plugin.enqueue(shapes, addresses(inputs), addresses([y]), 0) == 1
    device.fail("cuModuleLoadData", 1)
    device.driver.fake_set(b"context_id", 10_000 + generation)
    assert (plugin.initialize() if generation == 8 else plugin.on_shape_change(shapes, descs(10, [y], [HALF]))) == 1
    assert not y.any()
