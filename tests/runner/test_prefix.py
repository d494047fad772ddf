"""Prefix reuse over an engine whose logits are a function of all tokens so far: nothing but the work may change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lookup import CONTEXT, VOCAB, HashingEngine

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.prefix import PrefixEngine


class BreakingEngine(HashingEngine):
    """Runs one token after another, and is broken off after ``breaks_after`` of a call's; counts what it ran."""

    breaks_after = None

    def __init__(self):
        super().__init__()
        self.ran = 0

    def logits(self, ids):
        rows = []
        for count, token in enumerate(ids):
            if count == self.breaks_after:
                self.breaks_after = None
                raise KeyboardInterrupt
            rows.append(super().logits([token])[0])
            self.ran += 1
        return np.array(rows)


def answer(engine, prompt, count):
    """(tokens reused, tokens, logits), from a prompt on; the last token is not in the cache."""
    kept = engine.keep(prompt)
    found = [engine.prefill(prompt[kept:]).copy()]
    tokens = [int(found[0].argmax())]
    while len(tokens) < count:
        found.append(engine.step(tokens[-1]).copy())
        tokens.append(int(found[-1].argmax()))
    return kept, tokens, np.array(found)


def fresh(prompt, count):
    return answer(PrefixEngine(HashingEngine()), prompt, count)


tokens = st.integers(0, VOCAB - 1)
turns = st.lists(st.tuples(st.integers(0, 12), st.lists(tokens, min_size=1, max_size=6), st.integers(1, 5),
                           st.one_of(st.none(), st.integers(0, 4))), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(turns=turns, guesses=st.sampled_from([0, 3]))
def test_any_turns_give_what_a_fresh_engine_gives(turns, guesses):
    """Each keeps some of the text so far, appends to it, and some are broken off anywhere."""
    inner = BreakingEngine()
    engine = PrefixEngine(LookupEngine(inner, guesses) if guesses else inner)
    text = []
    for kept, more, count, breaks_after in turns:
        text = [*text[:kept], *more]
        inner.breaks_after = breaks_after
        try:
            _, found, logits = answer(engine, text, count)
        except KeyboardInterrupt:
            continue
        _, expected, expected_logits = fresh(text, count)
        assert found == expected and np.array_equal(logits, expected_logits)
        assert engine.length == len(text) + count - 1
        text += found


def test_only_what_differs_is_run():
    inner = BreakingEngine()
    engine = PrefixEngine(inner)
    first = answer(engine, [1, 2, 3, 4], 5)[1]
    assert (inner.ran, engine.length) == (8, 8)
    second = [1, 2, 3, 4, *first, 2, 2]
    assert answer(engine, second, 1)[0] == 8 and inner.ran == 8 + 3  # the last token of the answer was not run yet
    assert answer(engine, second, 1)[0] == 10 and inner.ran == 8 + 3 + 1  # the same again: one must give logits
    assert answer(engine, [1, 2, 0], 1)[0] == 2 and engine.length == 3
    assert engine.keep([]) == 0 == engine.length


def test_greedy_steps_are_offered_where_the_engine_has_them():
    inner = HashingEngine()
    inner.step_greedy = lambda token: int(inner.step(token).argmax())
    engine = PrefixEngine(inner)
    assert (engine.prefill([1]) is not None, engine.step_greedy(2)) == (True, fresh([1, 2], 1)[1][0])
    assert engine.keep([1, 2, 3]) == 2
    assert not hasattr(PrefixEngine(HashingEngine()), "step_greedy")


def test_drawn_steps_are_offered_where_the_engine_has_them():
    inner, begun = HashingEngine(), []
    inner.begin_sampling, inner.step_sampled = begun.append, lambda token: int(inner.step(token).argmax())
    engine = PrefixEngine(inner)
    engine.begin_sampling("settings")
    assert (engine.prefill([1]) is not None, engine.step_sampled(2)) == (True, fresh([1, 2], 1)[1][0])
    assert engine.keep([1, 2, 3]) == 2 and begun == ["settings"]
    assert not hasattr(PrefixEngine(HashingEngine()), "step_sampled")


def test_other_ways_into_the_cache_are_seen():
    engine = PrefixEngine(HashingEngine())
    engine.prefill([1, 2])
    engine.step(3)
    engine.logits([4, 0])
    assert engine.keep([1, 2, 3, 4, 0, 1]) == 5
    engine.truncate(2)
    engine.logits([2])
    assert engine.keep([1, 2, 3, 4]) == 2
    assert not hasattr(PrefixEngine(LookupEngine(HashingEngine(), 1)), "logits")


def test_what_is_refused_leaves_the_cache_as_it_is():
    engine = PrefixEngine(HashingEngine())
    engine.prefill([1, 2, 3])
    for action in (lambda: engine.step(VOCAB), lambda: engine.prefill([1] * CONTEXT)):
        with pytest.raises(EdgeAwqError):
            action()
        assert engine.length == 3
    assert engine.keep([1, 2, 3, 4]) == 3
