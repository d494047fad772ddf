"""The arithmetic of energy on samples with known integrals; no clock runs."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_awq.power.base import Reading, Source, Total
from edge_awq.power.energy import MIN_SAMPLES, phase_energy

S = 1_000_000_000
BOOT = 9_000_000 * S  # a machine that has been up for 104 days: nanoseconds beyond what float64 counts one by one
SOURCE = Source("test", None, ("A", "B"), Total("module-est", ("A", "B")), 0.1)
COUNTER = Source("test", None, ("A",), Total("gpu-board", ("A",)), 0.1, counter_min_s=1.0)


def sampled(power_w, until_s, interval_s=0.1, offset_s=0.0):
    """Both rails carry half of ``power_w(t)``."""
    count = math.floor((until_s - offset_s) / interval_s + 1e-9) + 1
    times_s = [offset_s + index * interval_s for index in range(count)]
    return [Reading(BOOT + round(t * S), BOOT + round(t * S), (power_w(t) * 500,) * 2) for t in times_s]


def span(start_s, end_s):
    return BOOT + round(start_s * S), BOOT + round(end_s * S)


def test_constant_power_is_exact():
    energy = phase_energy(SOURCE, sampled(lambda t: 12, 5), [span(1.03, 4.07)], idle_w=5)
    assert energy.problem is None and energy.method == "trapezoid"
    assert energy.energy_j == pytest.approx(12 * 3.04, rel=1e-9)
    assert energy.above_idle_j == pytest.approx(7 * 3.04, rel=1e-9)
    assert (energy.mean_w, energy.max_w, energy.min_w) == pytest.approx((12, 12, 12))
    assert energy.rails_j == pytest.approx({"A": 6 * 3.04, "B": 6 * 3.04})
    assert (energy.samples, energy.coverage) == (30, pytest.approx(1))
    assert energy.max_gap_s == pytest.approx(0.1)


def test_a_ramp_is_off_by_its_ends_only():
    """2 W/s: holding a value over a stretch of 0.03 s and 0.07 s costs slope * stretch**2 / 2."""
    energy = phase_energy(SOURCE, sampled(lambda t: 2 * t, 5), [span(1.07, 4.07)])
    assert energy.energy_j == pytest.approx(4.07**2 - 1.07**2 + 0.03**2 - 0.07**2, rel=1e-9)
    assert energy.above_idle_j is None


@given(st.floats(0.0, 0.099), st.floats(1.1, 3.0), st.floats(1.0, 40.0))
def test_power_that_jumps_with_the_phase_is_exact(offset_s, length_s, step_w):
    def power_w(t):
        return 5 + step_w * (1 <= t < 1 + length_s)

    energy = phase_energy(SOURCE, sampled(power_w, 6, offset_s=offset_s), [span(1, 1 + length_s)])
    assert energy.energy_j == pytest.approx((5 + step_w) * length_s, rel=1e-6)


@given(st.floats(0.0, 0.099), st.floats(0.4, 3.0), st.floats(1.0, 40.0))
def test_a_step_is_off_by_half_an_interval_of_it_at_most(offset_s, length_s, step_w):
    """5 W, then ``step_w`` more for ``length_s``: each edge is a straight line that is at most one interval wide."""
    def power_w(t):
        return 5 + step_w * (1 <= t < 1 + length_s)

    energy = phase_energy(SOURCE, sampled(power_w, 6, offset_s=offset_s), [span(0.5, 5.5)])
    assert abs(energy.energy_j - (5 * 5 + step_w * length_s)) <= 2 * 0.1 / 2 * step_w + 1e-6


@given(st.lists(st.floats(0.5, 4.5), min_size=1, max_size=6))
def test_phases_add_up_to_the_whole(cuts_s):
    """Each cut puts a jump in place of a line between two samples: half a gap of what 15 W/s changes in one."""
    readings = sampled(lambda t: 8 + 5 * math.sin(3 * t), 5)
    edges_s = sorted({0.2, *(round(cut, 3) for cut in cuts_s), 4.8})
    whole = phase_energy(SOURCE, readings, [span(0.2, 4.8)])
    together = phase_energy(SOURCE, readings, [span(*pair) for pair in itertools.pairwise(edges_s)])
    assert abs(together.energy_j - whole.energy_j) <= len(cuts_s) * 15 * 0.1 * 0.1 / 2
    assert together.duration_s == pytest.approx(4.6)


def test_a_sample_that_was_begun_before_the_phase_is_none_of_it():
    """The service reads the sensors up to 60 ms before a sample arrives; here the power jumps in between."""
    readings = [Reading(reading.t_ns + S // 16, reading.began_ns, reading.rails_mw)
                for reading in sampled(lambda t: 20 if t >= 1.03 else 5, 5, offset_s=0.02)]
    energy = phase_energy(SOURCE, readings, [span(1.03, 3.03)])
    assert energy.energy_j == pytest.approx(40) and energy.min_w == 20


def test_few_samples_give_no_value_and_repetitions_do():
    readings = sampled(lambda t: 12, 20)
    once = phase_energy(SOURCE, readings, [span(1.05, 1.45)])
    assert (once.samples, once.energy_j, once.problem) == (4, None, "phase_too_short")
    spans = [span(start + 0.05, start + 0.45) for start in range(1, 4)]
    thrice = phase_energy(SOURCE, readings, spans)
    assert thrice.samples == 12 >= MIN_SAMPLES
    assert thrice.energy_j == pytest.approx(12 * 1.2)


@pytest.mark.parametrize("missing_s, problem", [
    ((3.0, 99.0), "sampler_lost"),  # never came back
    ((2.0, 3.5), "sampler_lost"),  # a hole
    ((0.0, 1.5), "not_covered"),  # began after the phase
])
def test_a_meter_that_is_missing_gives_null_and_never_less(missing_s, problem):
    readings = [reading for reading in sampled(lambda t: 12, 6)
                if not missing_s[0] <= (reading.t_ns - BOOT) / S < missing_s[1]]
    energy = phase_energy(SOURCE, readings, [span(1, 5)])
    assert (energy.energy_j, energy.above_idle_j, energy.mean_w, energy.problem) == (None, None, None, problem)
    assert 0 < energy.coverage < 1


def test_a_hole_in_one_repetition_spoils_all():
    readings = [reading for reading in sampled(lambda t: 12, 9) if not 6 <= (reading.t_ns - BOOT) / S < 7.5]
    assert phase_energy(SOURCE, readings, [span(1, 3), span(6, 8)]).problem == "sampler_lost"


def test_samples_a_busy_machine_delays_are_no_hole():
    readings = [reading for reading in sampled(lambda t: 12, 6) if not 2 < (reading.t_ns - BOOT) / S < 2.85]
    energy = phase_energy(SOURCE, readings, [span(1, 5)])
    assert energy.energy_j == pytest.approx(48) and energy.max_gap_s == pytest.approx(0.9)


def test_a_rail_without_a_value_takes_the_total_with_it():
    readings = [Reading(reading.t_ns, reading.began_ns, (6000, None)) for reading in sampled(lambda t: 12, 5)]
    energy = phase_energy(SOURCE, readings, [span(1, 4)])
    assert (energy.energy_j, energy.problem) == (None, "sampler_lost")


def test_a_rail_beside_the_total_may_lack_values():
    source = Source("test", None, ("A", "B"), Total("module", ("A",)), 0.1)
    readings = [Reading(reading.t_ns, reading.began_ns, (6000, None)) for reading in sampled(lambda t: 12, 5)]
    energy = phase_energy(source, readings, [span(1, 4)])
    assert energy.energy_j == pytest.approx(18) and energy.rails_j == {"A": pytest.approx(18), "B": None}


def test_no_sample_at_all():
    assert phase_energy(SOURCE, [], [span(1, 4)]).problem == "sampler_lost"


def counted(until_s, interval_s=0.1):
    """A counter at 40 W whose power readings are a running mean that lags: 1 W."""
    times_s = [index * interval_s for index in range(round(until_s / interval_s) + 1)]
    return [Reading(*span(t, t), (1000,), counter_j=7e5 + 40 * t) for t in times_s]


def test_an_energy_counter_decides_phases_that_are_long_enough():
    energy = phase_energy(COUNTER, counted(6), [span(1.03, 4.53)])
    assert energy.method == "counter" and energy.energy_j == pytest.approx(40 * 3.5)
    short = phase_energy(COUNTER, counted(6), [span(1.01, 1.99)] * 2)
    assert short.method == "trapezoid" and short.energy_j == pytest.approx(2 * 0.98)


@given(st.floats(0.0, 0.099), st.floats(1.2, 3.0), st.floats(1.0, 40.0))
def test_a_counter_is_exact_where_power_jumps_with_the_phase(offset_s, length_s, step_w):
    def joules(t):
        return 5 * t + step_w * min(max(t - 1, 0), length_s)

    times_s = [offset_s + index * 0.1 for index in range(60)]
    readings = [Reading(*span(t, t), (1000,), counter_j=joules(t)) for t in times_s]
    energy = phase_energy(COUNTER, readings, [span(1, 1 + length_s)])
    assert energy.method == "counter" and energy.energy_j == pytest.approx((5 + step_w) * length_s, rel=1e-6)


def test_source_and_reading_travel_as_json():
    import dataclasses
    import json

    source = Source("jtop", "1", ("A", "VIN"), Total("module", ("A",)), 0.1, (Total("board", ("VIN",)),), 1.0, ("n",))
    reading = Reading(5, 4, (1.0, None), 2.0, throttled=False)
    for value in (source, reading):
        assert type(value).from_json(json.loads(json.dumps(dataclasses.asdict(value)))) == value
