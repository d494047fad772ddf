"""What is slower by more than the noise, and what cannot be compared."""

from pathlib import Path

import pytest
from made_results import AGX
from made_results import result as made

from edge_awq.bench.compare import (
    FASTER,
    NOT_COMPARED,
    REGRESSION,
    SAME,
    check_any_compared,
    compare_one,
    compare_with,
)
from edge_awq.bench.results import Provenance, write_results
from edge_awq.errors import EdgeAwqError


def result(**changes):
    return made(**{**AGX, **changes})


@pytest.mark.parametrize(("tok_s", "mad", "expected"), [
    (39.3, 0.0, SAME), (39.1, 0.0, REGRESSION), (40.9, 0.0, FASTER),  # 2 % of 40 at least
    (36.0, 1.0, SAME), (35.0, 1.0, REGRESSION),  # 3 * 1.4826 * 1.0 = 4.45
    (39.1, None, REGRESSION),
])
def test_noise(tok_s, mad, expected):
    old = result(tok_s_median=40.0, tok_s_mad=0.0)
    assert compare_one(result(tok_s_median=tok_s, tok_s_mad=mad), old).verdict == expected


def test_both_deviations_count():
    old, new = result(tok_s_median=40.0, tok_s_mad=3.0), result(tok_s_median=30.0, tok_s_mad=4.0)
    assert compare_one(new, old).noise_tok_s == pytest.approx(3 * 1.4826 * 5)
    assert compare_one(new, old).verdict == SAME


def test_out_of_memory_where_it_ran_before():
    assert compare_one(result(oom=True), result()).verdict == REGRESSION
    assert compare_one(result(), result(oom=True)).verdict == FASTER
    assert compare_one(result(oom=True), result(oom=True)).verdict == SAME


def test_invalid_runs_are_no_ground_for_a_verdict():
    bad = result(tok_s_median=1.0, valid=False, invalid_reasons=("throttled",))
    for new, old in ((bad, result()), (result(), bad)):
        assert compare_one(new, old).verdict == NOT_COMPARED
    assert compare_one(bad, result()).reason == "the new run is invalid: throttled"


def measured(j_per_token, tok_s=40.0, scope="module"):
    where = Provenance("2026-01-01T00:00:00Z", "0.1.0", power_mode="MAXN", power_scope=scope, power_rails=("VDD_IN",))
    return result(tok_s_median=tok_s, tok_s_mad=0.0, j_per_token=j_per_token, provenance=where)


@pytest.mark.parametrize(("new", "expected"), [
    (measured(0.519), SAME), (measured(0.521), REGRESSION),  # 2 % of the rate and 2 % of two meters: 0.5 + 0.02
    (measured(0.521, tok_s=60.0), REGRESSION), (measured(0.4), SAME), (measured(0.4, tok_s=60.0), FASTER),
    (measured(0.9, scope="gpu-board"), SAME), (measured(None), SAME),
])
def test_more_joules_per_token_are_a_regression_where_they_are_of_the_same_rails(new, expected):
    found = compare_one(new, measured(0.5))
    assert found.verdict == expected
    assert (found.reason == "more joules per token") == (expected == REGRESSION)
    assert (found.noise_j is None) == (new.j_per_token is None or new.provenance.power_scope != "module")


def test_forms_of_our_engine_are_compared_each_with_its_own(tmp_path):
    old = [result(tok_s_median=40.0), result(tok_s_median=50.0, variant="kv-bits 8")]
    write_results(tmp_path / "old.json", old)
    (found,) = compare_with(tmp_path / "old.json", [result(tok_s_median=41.0, variant="kv-bits 8")])
    assert (found.old.tok_s_median, found.verdict) == (50.0, REGRESSION)


def test_no_verdict_at_all_is_no_pass():
    bad = result(valid=False, invalid_reasons=("throttled",))
    with pytest.raises(EdgeAwqError, match=r"a\.json: nothing could be compared: the new run is invalid: throttled"):
        check_any_compared(Path("a.json"), [compare_one(bad, result())])
    check_any_compared(Path("a.json"), [compare_one(bad, result()), compare_one(result(), result())])


def test_pairs_are_of_the_same_work(tmp_path):
    write_results(tmp_path / "old.json", [result(), result(precision="fp16", tok_s_median=10.0)])
    news = [result(tok_s_median=30.0), result(engine="transformers", precision="fp16")]
    found = compare_with(tmp_path / "old.json", news)
    assert [one.verdict for one in found] == [REGRESSION, NOT_COMPARED]


@pytest.mark.parametrize(("changes", "words"), [
    ({"device": "laptop"}, "its device is laptop, now it is Jetson AGX Orin 64GB"),
    ({"power_mode": "15W"}, "its power mode is 15W, now it is MAXN"),
    ({"protocol": "realistic"}, "its protocol is realistic, now it is figure"),
    ({"model": "mpt-7b"}, "none of its results is of the same model"),
])
def test_what_cannot_be_compared_says_why(tmp_path, changes, words):
    write_results(tmp_path / "old.json", [result(**changes)])
    with pytest.raises(EdgeAwqError) as raised:
        compare_with(tmp_path / "old.json", [result()])
    assert words in raised.value.message and raised.value.hint
