"""Which of the modes is the best, within bounds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from made_results import AGX, result

from edge_awq.tune.show import show_tuning
from edge_awq.tune.tune import Bounds, Tuning, best_result

VALUES = {"MAXN": (50.0, 1.0, 80.0), "30W": (40.0, 0.5, 60.0), "15W": (20.0, 0.25, 45.0)}  # tok/s, J/token, C


def made(mode, **changes):
    tok_s, j_per_token, temp_c = VALUES[mode]
    return result(mode, **{**AGX, "tok_s_median": tok_s, "j_per_token": j_per_token, "temp_max_c": temp_c, **changes})


@pytest.mark.parametrize(("bounds", "expected"), [
    (Bounds(), "15W"), (Bounds(min_tok_s=20.0), "15W"), (Bounds(min_tok_s=20.1), "30W"), (Bounds(min_tok_s=41), "MAXN"),
    (Bounds(min_tok_s=51), None), (Bounds(max_c=45.0), "15W"), (Bounds(max_c=44.9), None), (Bounds(30, 60), "30W"),
    (Bounds(45, 60), None),
])
def test_most_tokens_per_joule_within_the_bounds(bounds, expected):
    best = best_result(map(made, VALUES), bounds)
    assert (best.provenance.power_mode if best else None) == expected


@pytest.mark.parametrize(("changes", "words"), [
    ({"valid": False, "invalid_reasons": ("it throttled",)}, "invalid: it throttled"), ({"oom": True}, "out of memory"),
    ({"j_per_token": None, "j_per_token_problem": "sampler_lost"}, "no energy (sampler_lost)"),
    ({"temp_max_c": None}, "temperature is not known"),
])
def test_what_was_not_measured_is_no_choice(changes, words):
    results, bounds = [made("15W", **changes), made("30W")], Bounds(max_c=70)
    assert best_result(results, bounds).provenance.power_mode == "30W"
    text = "\n".join(show_tuning(Tuning(results[:1]), bounds, "MAXN"))
    assert "best for 4 + 200: none (15W: " in text and words in text


def test_the_table_has_one_row_a_mode_and_blanks_for_what_is_not_known():
    results = [made("15W", mean_w=5.0, throttled=False), made("30W", mean_w=20.0, throttled=True)]
    tuning = Tuning(results, ["7W: reboot"])
    lines = list(show_tuning(tuning, Bounds(), "MAXN"))
    rows = [line.split() for line in lines[2:6]]
    assert rows[2] == ["15W", "4", "+", "200", "20", "5", "0.25", "4", "45", "no", "yes"]
    assert rows[3] == ["30W", "4", "+", "200", "40", "20", "0.5", "2", "60", "yes", "yes"]
    assert "left out: 7W: reboot" in lines and "best for 4 + 200: 15W, 4 tok/J at 20 tok/s" in lines
