"""Attention through the library: which kernels a prompt and the token after it take, results, what is refused."""

import dataclasses

import numpy as np
import pytest
from attention_harness import Heads, Result, check_result, quantized, random_step
from attention_harness import reference as attention_reference
from kernel_harness import KernelError, guarded, poisoned


def attention_op(device, heads, packed=0, **changes):
    """With the attributes of these heads; has_slopes is left out unless it is among the changes."""
    given = {"num_heads": heads.kv * heads.share, "kv_num_heads": heads.kv, "head_size": heads.size,
             "scale": heads.scale, "window": heads.window, "softcap": heads.softcap, "packed_qkv": packed}
    return device.create("CachedAttention", **given | changes)


def attention_tensors(step, packed=0, has_slopes=1):
    """(inputs, caches), the caches among the inputs."""
    new = [np.concatenate([step.q, step.k, step.v], axis=1)] if packed else [step.q, step.k, step.v]
    caches = cache_tensors(step)
    tables = [np.array([step.past]), step.cosines, step.sines, *[step.heads.op_slopes] * has_slopes]
    return [*(guarded(each[None]) for each in new), *caches, *map(guarded, tables)], caches


def cache_tensors(step):
    """Keys and values, and their scales if there are any; bytes travel as INT8."""
    each = [step.key_cache, step.value_cache, step.key_scales, step.value_scales]
    return [guarded(array.view(np.int8)[None] if array.dtype == np.uint8 else array[None])
            for array in each if array is not None]


def result_of(y, caches):
    """What check_result() takes."""
    first = [cache[0].view(np.uint8) if cache.dtype == np.int8 else cache[0] for cache in caches]
    return Result(y[0], *first)


# (what differs from plain heads, has_slopes, which kernel runs)
KINDS = {"plain": ({}, 0, ""), "zeros": ({}, 1, "_adjusted"), "alibi": ({"rotary": 0, "alibi": True}, 1, "_adjusted"),
         "softcap": ({"softcap": 2.0}, 0, "_adjusted")}


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "packed"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_attention_over_several_splits(device, rng, tokens, packed, kind, kv_bits):
    changes, has_slopes, suffix = KINDS[kind]
    heads = Heads(**{"kv": 2, "share": 3, "size": 64, "rotary": 32, "window": 200} | changes)
    step = random_step(rng, heads, past=260, tokens=tokens, capacity=320)
    step = quantized(step) if kv_bits == 8 else step
    defaults = {"has_slopes": 1, "kv_bits": 16}
    given = {"has_slopes": has_slopes, "kv_bits": kv_bits}
    op = attention_op(device, heads, packed, **{name: given[name] for name in given if given[name] != defaults[name]})
    inputs, caches = attention_tensors(step, packed, has_slopes)
    for _ in range(2):  # counters are zero again after the first; the second appends the same rows in the same places
        y = poisoned(1, *step.q.shape)
        op.run(inputs, [y, *caches])
        exact, bound = attention_reference(step, result_of(y, caches))
        assert (np.abs(y[0] - exact) <= bound).all()
    # 320 rows: 4 warps with 16 each; 4 warps for 2 tiles, where merging counts, and more where rows are bytes.
    splits = {1: 5, 3: 8 if kv_bits == 16 else 5}[tokens]
    suffix += "" if kv_bits == 16 else "_kv8"
    assert [line.split()[:2] for line in device.calls("cuLaunchKernel")] == 2 * [
        [f"decode_attention_64{suffix}", str(2 * splits)]]


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("kind", ["plain", "alibi", "softcap"])
@pytest.mark.parametrize(("tokens", "packed"), [(9, 0), (9, 1), (70, 1)])
def test_attention_of_a_prompt_and_of_the_token_after_it(device, rng, tokens, packed, kind, kv_bits):
    changes, has_slopes, suffix = KINDS[kind]
    stored, of_bytes = (quantized, "_kv8") if kv_bits == 8 else (lambda step: step, "")
    heads = Heads(**{"kv": 2, "share": 3, "size": 64, "rotary": 32, "window": 60} | changes)
    op = attention_op(device, heads, packed, has_slopes=has_slopes, kv_bits=kv_bits)
    prompt = stored(random_step(rng, heads, past=21, tokens=tokens, capacity=100))
    inputs, caches = attention_tensors(prompt, packed, has_slopes)
    run_attention_step(op, prompt, inputs, caches)
    rows = -(-3 * tokens // 64)
    assert [line.split()[:2] for line in device.calls("cuLaunchKernel")] == [
        ["append_kv" + "8" * (kv_bits == 8), str(tokens)], [f"prefill_attention_64{of_bytes}", str(2 * rows)]]
    token = stored(random_step(rng, heads, past=21 + tokens, capacity=100))
    after = result_of([None], caches)
    token = dataclasses.replace(token, **{name: getattr(after, name) for name in (
        "key_cache", "value_cache", "key_scales", "value_scales")})
    run_attention_step(op, token, *attention_tensors(token, packed, has_slopes))
    assert device.calls("cuLaunchKernel")[2].split()[0] == f"decode_attention_64{suffix}{of_bytes}"


def run_attention_step(op, step, inputs, caches):
    """Run it, and compare with float64."""
    y = poisoned(1, *step.q.shape)
    op.run(inputs, [y, *caches])
    check_result(step, result_of(y, caches))


def test_memory_for_prompts_is_memory_for_decoding(device):
    """The most for any number of tokens up to that: engines ask once, for their largest shapes."""
    op = attention_op(device, Heads(kv=2, share=5, size=256), packed=1)
    cache, table = np.empty((1, 2, 512, 256), np.float16), np.empty((512, 32), np.float32)
    others = [cache, cache, np.zeros(1, np.int64), table, table, np.empty(10, np.float32)]
    wanted = [op.workspace_bytes(np.empty((1, tokens, 14 * 256), np.float16), *others)
              for tokens in (1, 2, 4, 8, 9, 500)]
    assert 0 < wanted[0] < wanted[3] and wanted == sorted(wanted) and len(set(wanted[3:])) == 1


@pytest.mark.parametrize(("function", "size", "kernel"), [
    ("cuLaunchKernel", 64, "append_kv, 9 blocks of 256"),
    ("cuFuncSetAttribute", 256, "prefill_attention_256, 2 blocks of 128")], ids=["first", "second"])
def test_either_launch_of_a_prompt_may_fail(device, rng, function, size, kernel):
    step = random_step(rng, Heads(size=size), past=3, tokens=9)
    op = attention_op(device, step.heads)
    inputs, caches = attention_tensors(step)
    device.fail(function, 1)
    with pytest.raises(KernelError, match=f"CachedAttention: {function}: CUDA_ERROR_INVALID_VALUE.*{kernel}"):
        op.run(inputs, [poisoned(1, *step.q.shape), *caches])
    assert [line.split()[0] for line in device.calls("cuLaunchKernel")] == ["append_kv"]


def test_a_prompt_that_is_refused_leaves_the_cache_alone(device, rng):
    step = random_step(rng, Heads(), past=3, tokens=9)
    op = attention_op(device, step.heads)
    inputs, caches = attention_tensors(step)
    odd = poisoned(9 * 128 + 1)[:-1].reshape(1, 9, 128)
    with pytest.raises(KernelError, match=r"CachedAttention: y at 0x\w+ is not aligned to 16 bytes"):
        op.run(inputs, [odd, *caches])
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("tokens", "capacity", "rotary", "text"), [
    (13, 12, 64, "capacity = 12, less than tokens = 13"), (4, 3, 64, "capacity = 3, less than tokens = 4"),
    (9, 12, 66, "rotary_size = 66, not an even number up to head_size = 64")])
def test_shapes_of_attention_are_refused(device, tokens, capacity, rotary, text):
    op = attention_op(device, Heads())
    new, cache = np.zeros((1, tokens, 128), np.float16), np.zeros((1, 2, capacity, 64), np.float16)
    table = np.zeros((capacity, rotary // 2), np.float32)
    with pytest.raises(KernelError, match=f"CachedAttention: {text}"):
        op.workspace_bytes(new, new, new, cache, cache, np.zeros(1, np.int64), table, table, np.zeros(2, np.float32))


@pytest.mark.parametrize(("has_slopes", "text"), [
    (0, "CachedAttention: 9 inputs, not 8"), (1, r"CachedAttention: slopes has shape \[3\], not \[2\]")])
def test_slopes_are_refused_where_they_do_not_belong(device, rng, has_slopes, text):
    heads = Heads()
    inputs, caches = attention_tensors(random_step(rng, heads, past=3))
    op = attention_op(device, heads, has_slopes=has_slopes)
    with pytest.raises(KernelError, match=text):
        op.run([*inputs[:-1], np.zeros(3, np.float32)], [poisoned(1, 1, 128), *caches], workspace=np.zeros(1))
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("kv_bits", "index", "name"), [
    (16, 0, "key"), (16, 1, "value"), (8, 0, "key"), (8, 2, "key_scale"), (8, 3, "value_scale")])
def test_attention_refuses_a_cache_in_two_places(device, rng, kv_bits, index, name):
    heads = Heads()
    step = random_step(rng, heads, past=3)
    op = attention_op(device, heads, kv_bits=kv_bits)
    inputs, caches = attention_tensors(quantized(step) if kv_bits == 8 else step)
    caches[index] = caches[index].copy()
    with pytest.raises(KernelError, match=f"present_{name} is not the memory of past_{name}: bind both to one address"):
        op.run(inputs, [poisoned(1, *step.q.shape), *caches])
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("index", "shape", "text"), [
    (3, (1, 2, 9, 32), r"past_key has shape \[1, 2, 9, 32\], not \[1, 2, capacity, 64\]"),
    (5, (1, 2, 8), r"past_key_scale has shape \[1, 2, 8\], not \[1, 2, 9\]"),
    (6, (1, 2, 9, 1), r"past_value_scale has shape \[1, 2, 9, 1\], not \[1, 2, 9\]"),
    (8, (8, 32), r"cos has shape \[8, 32\], not \[9 or more, rotary_size / 2\]")], ids=["key", "scale", "rank", "cos"])
def test_shapes_of_a_cache_of_bytes_are_refused(device, rng, index, shape, text):
    step = quantized(random_step(rng, Heads(), past=3, capacity=9))
    inputs, _ = attention_tensors(step)
    inputs[index] = np.zeros(shape, inputs[index].dtype)
    with pytest.raises(KernelError, match=f"CachedAttention: {text}"):
        attention_op(device, step.heads, kv_bits=8).workspace_bytes(*inputs)
