"""What is measured and logged of an answer, also of one that was broken off."""

import json
from contextlib import closing

import pytest
from test_session import bundle, opened  # noqa: F401

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.answer import Answer, Observers
from edge_awq.runner.session import load


def events(log):
    """Of each run below ``log``, in no order."""
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in log.glob("*/run.jsonl")]


def test_an_answer_is_its_tokens_and_its_numbers(bundle, opened):  # noqa: F811
    with load(bundle) as session:
        answer = Answer(session, [1, 2], session.settings(max_tokens=2, temperature=0))
        assert answer.tokens == [] and answer.summary is None
        seen = list(answer)
    assert seen == answer.tokens and len(seen) == 2
    assert (answer.summary.tokens, answer.summary.prompt_tokens) == (2, 2)
    assert answer.summary.text == "".join(token.text for token in seen)
    assert answer.energy.meter is None


def test_every_answer_of_a_session_has_a_log_of_its_own_and_only_the_first_has_the_loading(tmp_path, bundle, opened):  # noqa: F811
    observers = Observers(log=tmp_path / "runs", log_text=True)
    with load(bundle) as session:
        settings = session.settings(max_tokens=3, temperature=0, ignore_eos=True)
        for prompt in ([1, 2, 3], [1, 2, 3, 9]):
            list(Answer(session, prompt, settings, observers, f"{len(prompt)} words"))
    first, second = sorted(events(tmp_path / "runs"), key=lambda run: run[-1]["prompt_tokens"])
    assert [event.get("name") for event in first if event["event"] == "phase"] == ["load", "prefill", "decode"]
    assert [event.get("name") for event in second if event["event"] == "phase"] == ["prefill", "decode"]
    assert (first[-1]["reused_tokens"], second[-1]["reused_tokens"]) == (0, 3)
    assert [event["prompt"] for event in (*first, *second) if event["event"] == "text"] == ["3 words", "4 words"]
    assert all(0 <= event["t_ns"] < 60e9 for event in second)


def test_an_answer_that_is_broken_off_keeps_what_came_and_its_log_has_no_summary(tmp_path, bundle, opened):  # noqa: F811
    with load(bundle) as session:
        settings = session.settings(max_tokens=9, temperature=0)
        answer = Answer(session, [1, 2], settings, Observers(log=tmp_path / "runs"))
        with closing(iter(answer)) as tokens:
            next(tokens), next(tokens)
    assert len(answer.tokens) == answer.summary.tokens == 2 and answer.tokens[-1].finish_reason is None
    (run,) = events(tmp_path / "runs")
    assert run[-1]["event"] == "request" and run[-1]["n_gen"] == 2 and run[-1]["finish_reason"] is None


def test_a_prompt_that_is_too_long_is_refused_before_a_log_begins(tmp_path, bundle, opened):  # noqa: F811
    with load(bundle) as session, pytest.raises(EdgeAwqError, match="room for 64"):
        Answer(session, [1] * 65, session.settings(), Observers(log=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
