"""Running a compiled bundle on a scripted TensorRT and GPU: the right tokens at the right places, and failures."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
from fake_cuda import ORIN, FakeCuda
from fake_engine import ACTIVATION_BYTES
from fake_tensorrt import VOCAB, toy_logits
from safetensors import safe_open
from toy_bundle import CHUNK, CONTEXT, MOST_ROWS, check_chat, expected_weights_sum, install, make_bundle, opened

from edge_awq.bundle import Bundle
from edge_awq.engine.trt import compile_bundle, open_engine, upload
from edge_awq.engine.trt.cuda import lost
from edge_awq.errors import EdgeAwqError

IDS = [(7 * place * place + 3) % VOCAB for place in range(2 * CHUNK + 13)]


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


@pytest.fixture(params=[("10.3.0", 16), ("8.6.2", 16), ("11.4.0", 16), ("10.3.0", 8), ("8.6.2", 8)],
                ids=lambda param: f"{param[0]}-kv{param[1]}")
def machine(request, bundle, monkeypatch):
    """An engine and the GPU that it runs on, for each kind of TensorRT and of cache."""
    yield from opened(monkeypatch, bundle, *request.param)


def expected(tokens):
    return toy_logits(tokens, expected_weights_sum())


@pytest.mark.parametrize("count", [1, MOST_ROWS, MOST_ROWS + 1, CHUNK, CHUNK + 3, len(IDS)])
def test_prompt_of_any_length(machine, count):
    engine, _ = machine
    assert np.array_equal(engine.prefill(IDS[:count]), expected(IDS[:count]))
    assert engine.length == count and engine.vocab_size == VOCAB and engine.context == CONTEXT


def test_one_graph_serves_all_steps(machine):
    engine, cuda = machine
    engine.prefill(IDS[:70])
    for place, token in enumerate(IDS[70:90], 71):
        assert np.array_equal(engine.step(token), expected(IDS[:place]))
    # The prompt's rest of 6 tokens made a graph; the first step ran as it is, made another, and 19 launched it.
    assert len(cuda.graphs) == 2 and cuda.launched == [2] * 19


def test_graphs_of_several_numbers_of_tokens_take_turns(machine):
    """Each was captured from a context that nothing changes, be it a prompt in between."""
    engine, cuda = machine
    engine.prefill(IDS[: CHUNK + 3])
    text = IDS[: CHUNK + 3]
    for count in (1, 5, 1, 5, MOST_ROWS, 1, 5, MOST_ROWS):
        text = [*text, *IDS[:count]]
        assert np.array_equal(engine.prefill(IDS[:count]), expected(text))
    engine.truncate(0)
    assert np.array_equal(engine.prefill(IDS[: CHUNK + 1]), expected(IDS[: CHUNK + 1]))
    assert len(cuda.graphs) == 4 and cuda.launched == [2, 3, 2, 3, 4, 2]


def test_an_engine_of_8_6_whose_contexts_cannot_share_a_profile_runs_without_graphs(bundle, monkeypatch):
    cuda = install(monkeypatch, version="8.6.2")
    monkeypatch.setattr("fake_tensorrt.IBuilderConfig.set_preview_feature", lambda *_: None)
    engine = open_engine(bundle)
    for place, token in enumerate(IDS[:5], 1):
        assert np.array_equal(engine.step(token), expected(IDS[:place]))
    assert not cuda.graphs


def test_what_the_driver_cannot_capture_runs_as_it_is(machine, monkeypatch):
    engine, cuda = machine
    tried = []

    def refuse(work):
        tried.append(work)
        raise lost("cuStreamEndCapture", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    monkeypatch.setattr(cuda, "capture", refuse)
    for place, token in enumerate(IDS[:5], 1):
        assert np.array_equal(engine.step(token), expected(IDS[:place]))
    assert len(tried) == 1 and not cuda.launched


def test_contexts_share_one_memory_for_activations(machine):
    engine, cuda = machine
    engine.prefill(IDS[: CHUNK + 3])
    engine.step(1)
    assert sum(len(block) == ACTIVATION_BYTES for block in cuda.memory.values()) == 1


def test_truncate_then_another_text(machine):
    engine, _ = machine
    engine.prefill(IDS[:30])
    engine.truncate(11)
    other = [5, 6, 7]
    assert np.array_equal(engine.prefill(other), expected(IDS[:11] + other))
    with pytest.raises(EdgeAwqError, match="cannot keep 15 tokens of a cache that holds 14"):
        engine.truncate(15)


@pytest.mark.parametrize("count", [1, 2, MOST_ROWS, 2 * MOST_ROWS + 3])
def test_logits_of_every_token(machine, count):
    engine, _ = machine
    engine.prefill(IDS[:20])
    for _ in range(2):  # run as it is, then as a graph
        engine.truncate(20)
        found = engine.logits(IDS[20 : 20 + count])
        assert np.array_equal(found, [expected(IDS[: 21 + row]) for row in range(count)])


def test_greedy_steps_copy_the_token_and_no_logits(machine, monkeypatch):
    engine, cuda = machine
    copied, download = [], cuda.download
    monkeypatch.setattr(cuda, "download", lambda array, at: (copied.append(array.nbytes), download(array, at)))
    text = IDS[:9]
    token = int(engine.prefill(text).argmax())
    copied.clear()
    for _ in range(20):
        text = [*text, token]
        token = engine.step_greedy(token)
        assert token == expected(text).argmax() and engine.length == len(text)
    assert copied == [8] * 21  # of each token and of the one that is under way
    assert np.array_equal(engine.step(3), expected([*text, 3]))
    engine.truncate(5)
    assert engine.step_greedy(6) == expected([*text[:5], 6]).argmax()


def greedy(engine, text, count):
    """``text`` and so many greedy tokens more, all but the last of which are in the cache."""
    for _ in range(count):
        token = engine.step_greedy(text[-1])
        assert token == expected(text).argmax() and engine.length == len(text)
        text = [*text, token]
    return text


def test_the_gpu_works_on_while_the_host_has_a_greedy_token(machine):
    engine, cuda = machine
    text = greedy(engine, [3], 2)
    for _ in range(5):
        assert cuda.queue  # of the next pass; the host has not said which token it takes
        text = greedy(engine, text, 1)
    launched = len(cuda.launched)
    text = greedy(engine, text, 5)
    assert len(cuda.launched) == launched + 5  # and none twice


def test_what_was_under_way_is_forgotten_when_something_else_comes(machine):
    engine, _ = machine
    text = greedy(engine, IDS[:1], 6)
    other = [*text[:-1], (text[-1] + 1) % VOCAB]
    assert engine.step_greedy(other[-1]) == expected(other).argmax()
    text = greedy(engine, [*other, 5], 3)
    assert np.array_equal(engine.step(text[-1]), expected(text))
    text = greedy(engine, [*text, 9], 2)
    assert np.array_equal(engine.prefill(IDS[: CHUNK + 2]), expected([*text[:-1], *IDS[: CHUNK + 2]]))
    engine.truncate(4)
    text = greedy(engine, [*other[:4], 8], 3)
    last = text[-1]
    engine.truncate(engine.length - 1)  # the token that comes is the one expected, but at another place
    assert engine.step_greedy(last) == expected([*text[:-2], last]).argmax()


def test_greedy_steps_up_to_the_end_of_the_context(bundle, monkeypatch):
    install(monkeypatch)
    engine = open_engine(bundle, context=7)
    text = greedy(engine, [3], 7)
    with pytest.raises(EdgeAwqError, match="do not fit into the context of 7"):
        engine.step_greedy(text[-1])
    engine.truncate(2)
    greedy(engine, [*text[:2], 1], 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_greedy_steps_see_logits_that_are_not_finite(machine, monkeypatch, value):
    engine, _ = machine
    token = engine.step_greedy(3)
    logits = toy_logits
    with monkeypatch.context() as broken:
        broken.setattr("fake_engine.toy_logits", lambda *given: np.full_like(logits(*given), value))
        for _ in range(2):
            with pytest.raises(EdgeAwqError, match="not finite"):
                engine.step_greedy(token)
        engine.truncate(1)
    assert engine.step_greedy(4) == expected([3, 4]).argmax()


def test_a_gpu_that_is_lost_while_a_greedy_pass_is_under_way(bundle, monkeypatch):
    cuda = install(monkeypatch)
    engine = open_engine(bundle)
    token = engine.step_greedy(3)
    cuda.failure = "an illegal memory access was encountered"
    with pytest.raises(EdgeAwqError, match="the GPU failed: work on the GPU: an illegal memory access"):
        engine.step_greedy(token)
    engine.close()


def test_guesses_and_turns_of_a_chat_over_the_cache(machine):
    check_chat(machine[0], expected, [IDS[:20], IDS[5:17], IDS[:20]])


def test_prompt_without_a_prefill_engine(bundle, monkeypatch):
    install(monkeypatch, script={"prefill": "64 tokens are too many"})
    engine = open_engine(bundle)
    assert np.array_equal(engine.prefill(IDS), expected(IDS))


def test_weights_are_uploaded_once_and_in_pieces(bundle, monkeypatch):
    monkeypatch.setattr(upload, "PIECE_BYTES", 32)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: dropped.append((size, advice)))
    cuda = install(monkeypatch)
    engine = open_engine(bundle)
    assert np.array_equal(engine.prefill(IDS[:5]), expected(IDS[:5]))
    layout_bytes = 200 + 80 + 24 + 12  # gain, table, q, k: shared by both passes
    assert sum(size for size, _ in dropped) == layout_bytes and max(size for size, _ in dropped) == 32
    assert {advice for _, advice in dropped} == {os.POSIX_FADV_DONTNEED}
    assert sum(len(block) == 36 for block in cuda.memory.values()) == 1  # q and k side by side


def test_page_cache_is_left_alone_beside_memory_of_its_own(bundle, monkeypatch):
    import dataclasses

    monkeypatch.setattr(os, "posix_fadvise", lambda *_: pytest.fail("dropped"))
    install(monkeypatch, FakeCuda(dataclasses.replace(ORIN, integrated=False)))
    open_engine(bundle).close()


def test_self_contained_engine_runs_where_there_is_no_other(bundle, monkeypatch):
    cuda = install(monkeypatch)
    compile_bundle(bundle.path, weights_inside=True)
    engine = open_engine(bundle)
    assert list(engine.provenance["passes"]) == ["decode"]
    assert np.array_equal(engine.prefill(IDS[:30]), toy_logits(IDS[:30], 0))
    assert not any(len(block) == 36 for block in cuda.memory.values())  # q and k are not uploaded
    engine.close()
    compile_bundle(bundle.path)
    assert list(open_engine(bundle).provenance["passes"]) == ["decode", "prefill"]


def test_run_log_names_the_engine(machine, bundle):
    engine, _ = machine
    told = engine.provenance
    with safe_open(bundle.path / told["file"], "numpy") as file:
        plans = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118, no mapping
    assert told["passes"] == {
        name: {"most_tokens": rows, "sha256": hashlib.sha256(plans[name]).hexdigest()}
        for name, rows in (("decode", MOST_ROWS), ("prefill", CHUNK))}
    assert told["file"].startswith(f"engines/tensorrt-{told['runtime_version']}-")
    json.dumps(told)


def test_smaller_context(bundle, monkeypatch):
    install(monkeypatch)
    engine = open_engine(bundle, context=10)
    assert np.array_equal(engine.prefill(IDS[:10]), expected(IDS[:10]))
    with pytest.raises(EdgeAwqError, match="do not fit into the context of 10"):
        engine.step(1)


def test_close_gives_everything_back(bundle, monkeypatch):
    cuda = install(monkeypatch)
    engine = open_engine(bundle)
    engine.step(3)
    engine.close()
    assert cuda.is_closed and cuda.destroyed == [1] and not cuda.memory


def refusal(bundle, cuda, **options):
    with pytest.raises(EdgeAwqError) as caught:
        open_engine(bundle, **options)
    assert caught.value.hint and cuda.is_closed
    Bundle.open(bundle.path)
    return f"{caught.value.message} | {caught.value.hint}"


@pytest.mark.parametrize(("options", "said"), [
    ({"context": CONTEXT + 1}, "built for 1 to 256 tokens"), ({"context": 0}, "context = 0"),
    ({"threads": 4}, "leave the threads out"),
])
def test_impossible_arguments(bundle, monkeypatch, options, said):
    cuda = install(monkeypatch)
    with pytest.raises(EdgeAwqError) as caught:
        open_engine(bundle, **options)
    assert said in f"{caught.value.message} | {caught.value.hint}" and not cuda.graphs


def test_context_that_does_not_fit_says_what_does(bundle, monkeypatch):
    monkeypatch.setattr("edge_awq.engine.trt.runtime.PIECE_BYTES", 0)
    weights, logits, a_token = 100 + 80 + 36 + ACTIVATION_BYTES, MOST_ROWS * VOCAB * 4, 4 * 8 * 2
    cuda = install(monkeypatch, FakeCuda(memory_bytes=weights + logits + a_token * (CONTEXT - 1)))
    assert "a context of 256 tokens" in (text := refusal(bundle, cuda))
    assert "--context 128 fits; with --kv-bits 8" in text
    cuda = install(monkeypatch, FakeCuda(memory_bytes=weights + logits + a_token * 100))
    assert "the weights alone need" in refusal(bundle, cuda)


def test_a_cache_of_bytes_takes_its_scales_into_account(bundle, monkeypatch):
    """Two layers of keys and values of 8 bytes and a scale a token."""
    monkeypatch.setattr("edge_awq.engine.trt.runtime.PIECE_BYTES", 0)
    fixed, a_token = 100 + 80 + 36 + ACTIVATION_BYTES + MOST_ROWS * VOCAB * 4, 4 * (8 + 4)
    cuda = install(monkeypatch, FakeCuda(memory_bytes=fixed + a_token * (CONTEXT - 1)))
    assert "--context 128 fits |" in refusal(bundle, cuda, kv_bits=8) + " |"
    install(monkeypatch, FakeCuda(memory_bytes=fixed + a_token * CONTEXT + 1000))
    engine = open_engine(bundle, kv_bits=8)
    assert np.array_equal(engine.prefill(IDS[:9]), expected(IDS[:9]))
    sizes = [len(engine._cuda.memory[address]) for address in engine._caches.values()]
    assert sorted(sizes) == [4 * CONTEXT] * 4 + [8 * CONTEXT] * 4


def test_an_engine_for_each_cache(bundle, monkeypatch):
    install(monkeypatch)
    files = {bits: open_engine(bundle, kv_bits=bits).provenance["file"] for bits in (None, 8, 16)}
    assert files[None] == files[16] != files[8] and "-kv8-" in files[8]
    assert [open_engine(bundle, kv_bits=bits).provenance["kv_bits"] for bits in (8, None)] == [8, 16]
    assert len(list((bundle.path / "engines").glob("*.engine"))) == 2


def test_what_is_said_to_fit_does(bundle, monkeypatch):
    monkeypatch.setattr("edge_awq.engine.trt.runtime.PIECE_BYTES", 0)
    install(monkeypatch, FakeCuda(memory_bytes=216 + ACTIVATION_BYTES + MOST_ROWS * VOCAB * 4 + 64 * (CONTEXT - 1)))
    assert np.array_equal(open_engine(bundle, context=128).prefill(IDS[:9]), expected(IDS[:9]))


@pytest.mark.parametrize(("script", "said"), [
    ({"engine": "Version tag does not match"}, "cannot load the engine (Version tag does not match)"),
    ({"context": "out of memory"}, "cannot make room for the engine's activations (out of memory)"),
])
def test_engine_that_does_not_load(bundle, monkeypatch, script, said):
    assert said in refusal(bundle, install(monkeypatch, script=script))


def test_memory_that_runs_out_while_weights_are_uploaded(bundle, monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda, "free_bytes", iter([1 << 30, 1 << 30, *[10] * 9]).__next__)
    assert "out of GPU memory" in refusal(bundle, install(monkeypatch, cuda))


def test_gpu_lost_mid_run(bundle, monkeypatch):
    cuda = install(monkeypatch)
    engine = open_engine(bundle)
    engine.prefill(IDS[:5])
    cuda.failure = "cuStreamSynchronize failed: unspecified launch failure"
    with pytest.raises(EdgeAwqError, match="the GPU failed: work on the GPU: cuStreamSynchronize failed") as caught:
        engine.step(1)
    assert "dmesg" in caught.value.hint
    engine.close()  # says nothing more
    Bundle.open(bundle.path)


def test_plugin_that_fails_mid_run(bundle, monkeypatch):
    script = {}
    install(monkeypatch, script=script)
    engine = open_engine(bundle)
    script["execute"] = "Int4MatMul: launch failed"
    with pytest.raises(EdgeAwqError, match="Int4MatMul: launch failed"):
        engine.step(1)


@pytest.mark.parametrize("ids", [[], [-1], [VOCAB], list(range(20)) * 20])
def test_impossible_tokens(machine, ids):
    engine, _ = machine
    with pytest.raises(EdgeAwqError):
        engine.prefill(ids)
    with pytest.raises(EdgeAwqError):
        engine.logits(ids)
    if len(ids) == 1:
        with pytest.raises(EdgeAwqError):
            engine.step_greedy(ids[0])
    assert engine.length == 0
