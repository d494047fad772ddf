"""Tokens that a compiled bundle draws, on a scripted TensorRT and GPU: those of the kernel, whatever ran before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import VOCAB, toy_logits
from toy_bundle import CHUNK, CONTEXT, expected_weights_sum, install, make_bundle, opened

from edge_awq.engine.trt import open_engine
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import GenerationSettings, generate
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.prefix import PrefixEngine
from edge_awq.runner.sampling import Sampler, SamplingSettings
from tokenizers_made_here import train_byte_level

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
from test_sample import run as run_kernel

IDS = [(5 * place * place + 1) % VOCAB for place in range(CHUNK + 13)]
SETTINGS = {"temperature": 15.0, "top_k": 20, "top_p": 0.95, "min_p": 0.001}  # of logits from 0 to 96
SAMPLING = SamplingSettings(**SETTINGS, seed=3)
FLAT = SamplingSettings(temperature=1e300, seed=3)  # every token is as likely: what is drawn shows the random number
TOKENIZER = train_byte_level()


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


@pytest.fixture(params=[("10.3.0", 16), ("8.6.2", 8)], ids=lambda param: f"{param[0]}-kv{param[1]}")
def machine(request, bundle, monkeypatch):
    yield from opened(monkeypatch, bundle, *request.param)


def logits_after(text):
    return toy_logits(text, expected_weights_sum())


def drawn(text, sampling=SAMPLING):
    """The token that the kernel draws behind ``text``, of which all but the last are in the cache."""
    settings = {name: getattr(sampling, name) for name in SETTINGS}
    settings["temperature"] = min(settings["temperature"], 1e38)
    seed = np.random.SeedSequence(sampling.seed).generate_state(1, np.uint64).view(np.int64)[0]
    (token,), _ = run_kernel(logits_after(text)[None], settings, seed, step=len(text) - 1)
    return token


def sampled(engine, text, count, sampling=SAMPLING):
    """``text`` and so many drawn tokens more, all but the last of which are in the cache."""
    for _ in range(count):
        token = engine.step_sampled(text[-1])
        assert token == drawn(text, sampling) and engine.length == len(text)
        text = [*text, token]
    return text


def answer(engine, prompt, sampling, count=20):
    """Tokens that a session draws."""
    settings = GenerationSettings(max_tokens=count, sampling=sampling)
    start = engine.keep(prompt)
    assert start == engine.length
    tokens = generate(engine, TOKENIZER, prompt[start:], settings)
    return [token.token_id for token in tokens]


def test_an_answer_is_what_the_kernel_draws(machine, monkeypatch):
    engine, _ = machine
    monkeypatch.setattr(engine, "step", lambda token_id: pytest.fail("the host draws"))
    first, *rest = answer(PrefixEngine(engine), IDS, SAMPLING)
    text = [*IDS, first]
    for token in rest:
        assert token == drawn(text)
        text.append(token)
    assert len(set(rest)) > 5


def test_the_gpu_works_on_while_the_host_has_a_drawn_token(machine, monkeypatch):
    engine, cuda = machine
    copied, download = [], cuda.download
    monkeypatch.setattr(cuda, "download", lambda array, at: (copied.append(array.nbytes), download(array, at)))
    engine.begin_sampling(SAMPLING)
    text = sampled(engine, [3], 2)
    for _ in range(5):
        assert cuda.queue
        text = sampled(engine, text, 1)
    launched = len(cuda.launched)
    sampled(engine, text, 5)
    assert len(cuda.launched) == launched + 5 and copied == [8] * 13


def test_the_same_seed_draws_the_same_whatever_ran_before(machine):
    engine = PrefixEngine(machine[0])
    alone = answer(engine, IDS, SAMPLING)
    assert answer(engine, IDS, SAMPLING) == alone  # only the prompt's last token is run
    assert answer(engine, IDS[:CHUNK], SamplingSettings(temperature=0)) != alone[:20]
    assert answer(engine, IDS, SAMPLING) == alone
    assert answer(engine, IDS, SamplingSettings(**SETTINGS, seed=4)) != alone
    engine.truncate(0)
    assert answer(engine, IDS, SAMPLING) == alone


def test_each_turn_of_a_chat_and_each_seed_draws_anew(machine):
    engine = PrefixEngine(machine[0])
    first = answer(engine, IDS[:9], FLAT)
    second = answer(engine, [*IDS[:9], *first, 1, 2, 3], FLAT)
    assert sum(a == b for a, b in zip(first[1:], second[1:], strict=True)) < 8  # 19 draws of 32 tokens
    assert answer(engine, IDS[:9], FLAT) == first
    unseeded = [answer(engine, IDS[:9], SamplingSettings(temperature=1e300)) for _ in range(2)]
    assert unseeded[0] != unseeded[1] and first not in unseeded


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 + 1, 10**40])
@pytest.mark.parametrize("changes", [{}, {"top_k": 10**30}, {"top_p": 0.0}, {"temperature": 1e-300}], ids=str)
def test_settings_of_any_size(bundle, monkeypatch, seed, changes):
    install(monkeypatch)
    engine, sampling = open_engine(bundle), SamplingSettings(**SETTINGS | changes, seed=seed)
    engine.begin_sampling(sampling)
    sampled(engine, IDS[:1], 4, sampling)


def test_greedy_and_drawn_steps_and_settings_take_turns(machine):
    """What is under way was chosen otherwise, though for the same token."""
    engine, _ = machine
    others = SAMPLING, FLAT, SamplingSettings(**SETTINGS, seed=11)
    text = IDS[:1]
    for turn in range(12):
        token = engine.step_greedy(text[-1])
        assert token == logits_after(text).argmax()
        text = [*text, token]
        for sampling in (others[turn % 3], others[(turn + 1) % 3]):
            engine.begin_sampling(sampling)
            text = sampled(engine, text, 1 + turn % 2, sampling)
    assert np.array_equal(engine.step(text[-1]), logits_after(text))


def test_what_was_under_way_is_forgotten_when_something_else_comes(machine):
    engine, _ = machine
    engine.begin_sampling(SAMPLING)
    text = sampled(engine, IDS[:1], 6)
    text = sampled(engine, [*text[:-1], (text[-1] + 1) % VOCAB], 3)
    assert np.array_equal(engine.step(text[-1]), logits_after(text))
    text = sampled(engine, [*text, 9], 2)
    assert np.array_equal(engine.prefill(IDS[: CHUNK + 2]), logits_after([*text[:-1], *IDS[: CHUNK + 2]]))
    engine.truncate(4)
    text = sampled(engine, [*text[:4], 8], 3)
    last = text[-1]
    engine.truncate(engine.length - 1)  # the token that comes is the one expected, but at another place
    sampled(engine, [*text[:-2], last], 2)


def test_drawn_steps_up_to_the_end_of_the_context(bundle, monkeypatch):
    install(monkeypatch)
    engine = open_engine(bundle, context=7)
    engine.begin_sampling(SAMPLING)
    text = sampled(engine, [3], 7)
    with pytest.raises(EdgeAwqError, match="do not fit into the context of 7"):
        engine.step_sampled(text[-1])
    engine.truncate(2)
    sampled(engine, [*text[:2], 1], 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_drawn_steps_see_logits_that_are_not_finite(machine, monkeypatch, value):
    engine, _ = machine
    engine.begin_sampling(SAMPLING)
    token = engine.step_sampled(3)
    logits = toy_logits
    with monkeypatch.context() as broken:
        broken.setattr("fake_engine.toy_logits", lambda *given: np.full_like(logits(*given), value))
        for _ in range(2):
            with pytest.raises(EdgeAwqError, match="not finite"):
                engine.step_sampled(token)
        engine.truncate(1)
    sampled(engine, [3, 4], 2)


def test_what_cannot_be_drawn_is_refused(machine):
    engine, _ = machine
    with pytest.raises(EdgeAwqError, match="nothing says how to draw"):
        engine.step_sampled(3)
    engine.begin_sampling(SAMPLING)
    with pytest.raises(EdgeAwqError, match=r"repetition_penalty = 1\.1 is not possible on the device"):
        engine.begin_sampling(SamplingSettings(repetition_penalty=1.1))
    for token in (-1, VOCAB):
        with pytest.raises(EdgeAwqError, match="outside the vocabulary"):
            engine.step_sampled(token)
    assert engine.length == 0
    sampled(engine, [3], 2)  # as what was begun before


def test_a_gpu_that_is_lost_while_a_drawn_pass_is_under_way(bundle, monkeypatch):
    cuda = install(monkeypatch)
    engine = open_engine(bundle)
    engine.begin_sampling(SAMPLING)
    token = engine.step_sampled(3)
    cuda.failure = "an illegal memory access was encountered"
    with pytest.raises(EdgeAwqError, match="the GPU failed: work on the GPU: an illegal memory access"):
        engine.step_sampled(token)
    engine.close()


def test_two_sessions_in_one_process(bundle, monkeypatch):
    """Each has its settings, its seed and what is under way."""
    install(monkeypatch)
    settings = SAMPLING, SamplingSettings(**SETTINGS | {"temperature": 30.0}, seed=8)
    engines = [open_engine(bundle, kv_bits=kv_bits) for kv_bits in (16, 8)]
    texts = [IDS[:1], IDS[1:2]]
    for engine, sampling in zip(engines, settings, strict=True):
        engine.begin_sampling(sampling)
    for _ in range(12):
        texts = [sampled(*each) for each in zip(engines, texts, (1, 2), settings, strict=True)]


def test_with_guesses_the_host_draws(machine, monkeypatch):
    engine, _ = machine
    monkeypatch.setattr(engine, "step_sampled", lambda token_id: pytest.fail("the device draws"))
    text, sampler = IDS[:20], Sampler(SAMPLING, VOCAB)
    for _ in range(20):
        text = [*text, sampler.draw(logits_after(text))]
    assert answer(PrefixEngine(LookupEngine(engine, 3)), IDS[:20], SAMPLING) == text[20:]


def test_an_answer_up_to_the_end_of_the_context(machine):
    engine = PrefixEngine(machine[0])
    tokens = answer(engine, IDS, SAMPLING, CONTEXT)
    assert len(tokens) == CONTEXT - len(IDS) + 1 and engine.length == CONTEXT
