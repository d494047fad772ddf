"""A KV cache of 8 bits in lowered graphs of tiny models, on the reference: how far logits move, which tokens come."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import CHUNKS, ReferenceEngine, build_tiny, canonical, random_ids, relative_l2, run_lowered

from edge_awq.engine.trt import reference_ops
from edge_awq.engine.trt.lower import LoweringOptions, lower
from edge_awq.runner.generate import GenerationSettings, Start, generate
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.prefix import PrefixEngine
from edge_awq.runner.sampling import SamplingSettings
from tokenizers_made_here import train_byte_level

BYTES = LoweringOptions(kv_bits=8)
GREEDY = GenerationSettings(max_tokens=16, sampling=SamplingSettings(temperature=0))
TOKENIZER = train_byte_level()


@pytest.fixture(scope="module", params=["llama2", "mpt", "falcon", "falcon-71-heads"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build_tiny(folder, request.param)
    return folder


def noisy(seed):
    """What the cache keeps, had each number an error of its own, evenly spread over one step of the 8 bits."""
    random = np.random.default_rng(seed)
    return lambda rows, is_bytes: [rows + random.uniform(-0.5, 0.5, rows.shape) * np.abs(rows).max(-1)[..., None] / 127]


def test_logits_move_as_far_as_noise_moves_them(folder, monkeypatch):
    """Rounding is an error of up to half a step that knows of no other. The length of the logits' error, over some 2000
    of them but mostly from one error a head and token, lies within a factor of two of what eight such noises make."""
    lowered = {bits: lower(canonical(folder), LoweringOptions(kv_bits=bits)) for bits in (16, 8)}
    expected = run_lowered(lowered[16], folder, exact=True)
    moved = relative_l2(run_lowered(lowered[8], folder, exact=True), expected)
    in_halves = relative_l2(run_lowered(lowered[8], folder), run_lowered(lowered[16], folder))
    noises = []
    for seed in range(8):
        monkeypatch.setattr(reference_ops, "_as_cached", noisy(seed))
        noises.append(relative_l2(run_lowered(lowered[16], folder, exact=True), expected))
    usual = np.sqrt(np.mean(np.square(noises)))
    print(f"int8 {moved:.2e}, rounded {in_halves:.2e}, noise {usual:.2e}")  # shown by pytest -rP
    assert usual / 2 < moved < 2 * usual
    assert usual / 2 < in_halves < 2 * usual
    assert moved < 0.02


def answers(engine, prompts):
    """Token ids after each prompt, which begins with the one before and its answer."""
    session, text, found = PrefixEngine(engine), [], []
    for prompt in prompts:
        text += prompt
        reused = session.keep(text)
        found.append([token.token_id for token in generate(session, TOKENIZER, text, GREEDY, start=Start(reused))])
        text += found[-1]
    return found


def test_turns_of_a_chat_are_answered_from_the_cache(folder):
    """With the tokens of an engine that runs each prompt from the start, whatever is in the rows behind."""
    prompts = [CHUNKS[0], CHUNKS[3], CHUNKS[1]]
    engine = ReferenceEngine(folder, BYTES)
    found, text = answers(engine, prompts), []
    assert engine.ran == sum(map(len, prompts)) + 3 * GREEDY.max_tokens - 1
    for prompt, answer in zip(prompts, found, strict=True):
        text += prompt
        fresh = ReferenceEngine(folder, BYTES)
        assert answer == [token.token_id for token in generate(fresh, TOKENIZER, text, GREEDY)]
        text += answer


def test_lookup_gives_the_tokens_of_plain_greedy(folder):
    prompt = [*random_ids(9), *random_ids(9)]
    looked_up = LookupEngine(ReferenceEngine(folder, BYTES), 3)
    found = [token.token_id for token in generate(looked_up, TOKENIZER, prompt, GREEDY)]
    plain = ReferenceEngine(folder, BYTES)
    assert found == [token.token_id for token in generate(plain, TOKENIZER, prompt, GREEDY)]
    assert looked_up.guessed > 0


def test_guesses_that_were_wrong_leave_nothing(folder):
    """Their keys, values and scales are overwritten."""
    engine, fresh = ReferenceEngine(folder, BYTES), ReferenceEngine(folder, BYTES)
    engine.prefill(CHUNKS[0])
    engine.logits([1, 2, 3, 4])
    engine.truncate(len(CHUNKS[0]) + 1)
    expected = fresh.logits([*CHUNKS[0], 1, *CHUNKS[3]])
    np.testing.assert_array_equal(engine.logits(CHUNKS[3]), expected[-len(CHUNKS[3]) :])
