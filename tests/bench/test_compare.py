"""What is slower by more than the noise, and what cannot be compared."""

import pytest
from made_results import AGX
from made_results import result as made

from edge_awq.bench.compare import FASTER, NOT_COMPARED, REGRESSION, SAME, compare_one, compare_with
from edge_awq.bench.results import write_results
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
