"""Prompt lookup over an engine whose logits are a function of all tokens so far: nothing but the work may change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_awq.engine.base import AllLogitsEngine
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.lookup import History, LookupEngine

VOCAB, CONTEXT = 5, 64


class HashingEngine:
    """Logits that depend on every token in the cache, and a count of passes."""

    def __init__(self, period=None):
        self.context, self.vocab_size, self.length = CONTEXT, VOCAB, 0
        self.passes, self.cache, self.is_closed, self.period = 0, [], False, period

    def prefill(self, ids):
        return self.logits(ids)[-1]

    def step(self, token_id):
        return self.logits([token_id])[-1]

    def logits(self, ids):
        if any(not 0 <= token < VOCAB for token in ids) or len(self.cache) + len(ids) > CONTEXT:
            raise EdgeAwqError("not possible", hint="x")
        self.passes += 1
        rows = []
        for token in ids:
            self.cache.append(token)
            rows.append(self._after())
        self.length = len(self.cache)
        return np.array(rows)

    def _after(self):
        if self.period:  # a text that repeats itself
            return np.eye(VOCAB, dtype=np.float32)[len(self.cache) % self.period % VOCAB]
        return np.random.default_rng(self.cache).random(VOCAB, np.float32)

    def truncate(self, length):
        assert length <= self.length
        self.length, self.cache = length, self.cache[:length]

    def close(self):
        self.is_closed = True


def greedy(engine: AllLogitsEngine, prompt, count):
    """(tokens, logits) one by one."""
    start, logits = engine.length, [engine.prefill(prompt).copy()]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < count:
        logits.append(engine.step(tokens[-1]).copy())
        tokens.append(int(logits[-1].argmax()))
        assert engine.length == start + len(prompt) + len(tokens) - 1
    return tokens, np.array(logits)


@settings(max_examples=60, deadline=None)
@given(prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), guesses=st.integers(1, 7),
       period=st.sampled_from([None, 3, 4]))
def test_tokens_and_logits_are_those_of_one_by_one(prompt, guesses, period):
    plain = greedy(HashingEngine(period), prompt, 30)
    looked_up = greedy(LookupEngine(HashingEngine(period), guesses), prompt, 30)
    assert looked_up[0] == plain[0] and np.array_equal(looked_up[1], plain[1])


def test_repeated_text_takes_fewer_passes():
    inner = HashingEngine(period=4)
    engine = LookupEngine(inner, 7)
    greedy(engine, [0], 41)
    assert engine.right >= 28 and inner.passes <= 13  # a prompt, a period to learn, then eight tokens a pass
    assert engine.right <= engine.guessed


def test_the_context_is_filled_and_not_passed():
    engine = LookupEngine(HashingEngine(period=3), 7)
    tokens, _ = greedy(engine, [1], CONTEXT)
    assert len(tokens) == CONTEXT and engine.length == CONTEXT
    with pytest.raises(EdgeAwqError):
        engine.step(1)


def test_another_continuation_after_truncate():
    engine, plain = LookupEngine(HashingEngine(), 3), HashingEngine()
    greedy(engine, [1, 2, 3, 1, 2, 3, 1, 2], 6)
    engine.truncate(5)
    plain.prefill([1, 2, 3, 1, 2])
    assert np.array_equal(engine.prefill([4, 4]), plain.prefill([4, 4])) and engine.length == 7
    assert np.array_equal(engine.step(2), plain.step(2))


@pytest.mark.parametrize("broken", ["logits", "truncate"])
def test_a_call_that_is_broken_off_leaves_what_had_run(broken, monkeypatch):
    """After a pass over guesses, and between the engine's truncate and ours."""
    inner = HashingEngine(period=4)
    engine = LookupEngine(inner, 3)
    text = [0, *greedy(engine, [0], 12)[0][:-1]]
    engine.truncate(len(text))  # no guesses are ahead
    original = getattr(inner, broken)

    def break_off(argument):
        original(argument)
        raise KeyboardInterrupt

    monkeypatch.setattr(inner, broken, break_off)
    with pytest.raises(KeyboardInterrupt):
        engine.truncate(5) if broken == "truncate" else [engine.step(1) for _ in range(4)]
    monkeypatch.setattr(inner, broken, original)
    length = engine.length
    assert length == 5 if broken == "truncate" else len(text) <= length < len(text) + 4
    cache = [*text, *[1] * 4][:length]
    plain = HashingEngine(period=4)
    plain.prefill(cache)
    assert greedy(engine, [2, 3], 20)[0] == greedy(plain, [2, 3], 20)[0]
    assert engine.right > 0


def test_refused_token_changes_nothing():
    engine = LookupEngine(HashingEngine(), 3)
    engine.prefill([1, 2, 1])
    for action in (lambda: engine.step(VOCAB), lambda: engine.prefill([VOCAB])):
        with pytest.raises(EdgeAwqError):
            action()
        assert engine.length == 3


def test_close():
    inner = HashingEngine()
    LookupEngine(inner, 1).close()
    assert inner.is_closed


@pytest.mark.parametrize(("tokens", "following", "expected"), [
    ([1, 2, 3, 4, 1, 2], 3, [4, 1, 2, 3]),        # a triple that was there
    ([7, 2, 3, 4, 5, 9, 2], 3, [4, 5, 9, 2]),     # a pair alone
    ([1, 2, 3, 8, 0, 2, 3, 9, 1, 2], 3, [8, 0, 2, 3]),  # a triple goes before a newer pair
    ([2, 3, 8, 2, 3, 9, 0, 2], 3, [9, 0, 2, 3]),  # the newest of two
    ([1, 2, 1], 2, [1, 2, 1, 2]),                 # a period that reaches the end goes round
    ([1, 2, 3], 4, []), ([], 4, []), ([4], 4, []),
])
def test_guesses(tokens, following, expected):
    history = History()
    history.push(tokens)
    assert history.guess(following, 4) == expected
    assert history.guess(following, 0) == []
    history.push([5, 5, 5])
    history.truncate(len(tokens))
    assert history.guess(following, 4) == expected and len(history) == len(tokens)
