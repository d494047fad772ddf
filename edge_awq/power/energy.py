"""The energy of phases: trapezoids over instant samples, or the steps of an energy counter; never a guess.

A phase has a value only when it was measured from its first to its last nanosecond: with a sample before its start and
one after its end, no hole longer than ``hole_s``, and enough samples. Anything else is None with the reason, because a
number that is too small would look like a good one.

Power jumps where a phase begins and ends, because work does. So a phase is made of the samples that were begun and done
inside it, the first and the last held to its ends. Lines to the samples outside would lose step * gap / 6 per end on
average: 6 % of a 0.4 s prefill at 0.1 s. So would lines between a counter's values: its rise is that from the first
sample inside to the last, carried on to the ends at its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_awq.power.base import Reading, Source

Span = tuple[int, int]  # start and end, ns of CLOCK_MONOTONIC

MIN_SAMPLES = 10  # with 4 samples, a 0.4 s phase at 0.1 s, single runs were off by 8 %
_HOLE_INTERVALS, _HOLE_MIN_S = 5, 1.0  # a busy machine delays samples by tenths of a second
NO_SOURCE, LOST, TOO_SHORT, NOT_COVERED = "no_power_source", "sampler_lost", "phase_too_short", "not_covered"
COUNTER, TRAPEZOID = "counter", "trapezoid"


@dataclass(frozen=True)
class PhaseEnergy:
    """One phase, or all repetitions of it together; None is "not measured".

    Attributes:
        energy_j: gross joules of the total; above_idle_j: the part above idle power.
        mean_w, max_w, min_w: of the total.
        rails_j: joules of each rail.
        method: "trapezoid" over samples or "counter".
        samples: that fell into the phase.
        duration_s: of the phase.
        coverage: share of the phase that lies between samples with no hole.
        max_gap_s: the longest time between two samples that touch the phase.
        problem: None, or why there is no value: "no_power_source", "sampler_lost" the meter gave out, "phase_too_short"
            fewer than MIN_SAMPLES samples, "not_covered" the phase began before the meter.
    """

    energy_j: float | None = None
    above_idle_j: float | None = None
    mean_w: float | None = None
    max_w: float | None = None
    min_w: float | None = None
    rails_j: dict[str, float | None] = field(default_factory=dict)
    method: str | None = None
    samples: int = 0
    duration_s: float = 0.0
    coverage: float = 0.0
    max_gap_s: float | None = None
    problem: str | None = NO_SOURCE


def hole_s(source: Source) -> float:
    """The longest time between samples that still counts as measured."""
    return max(_HOLE_INTERVALS * source.interval_s, _HOLE_MIN_S)


def phase_energy(source: Source, readings: Sequence[Reading], spans: Sequence[Span],
                 idle_w: float | None = None) -> PhaseEnergy:
    """The energy of the stretches ``spans`` of one phase, all together.

    Args:
        readings: every sample so far, in order of time.
        idle_w: power to subtract for ``above_idle_j``.
    """
    whole_s = sum(end - start for start, end in spans) / 1e9
    by_counter = source.counter_min_s is not None and spans and min(
        end - start for start, end in spans) / 1e9 >= source.counter_min_s
    total = _Curve.of(readings, [source.total_w(reading) for reading in readings])
    counter = _Curve.of(readings, [reading.counter_j for reading in readings], instant=True)
    decisive = counter if by_counter else total
    samples = sum(decisive.count(span) for span in spans)
    covered_s = sum(decisive.covered_s(span, hole_s(source)) for span in spans)
    gaps_s = [gap for span in spans if (gap := decisive.max_gap_s(span)) is not None]
    facts = {"samples": samples, "duration_s": whole_s, "max_gap_s": max(gaps_s, default=None),
             "coverage": covered_s / whole_s if whole_s else 0.0}
    problem = _problem(decisive, spans, samples, whole_s - covered_s)
    if problem is not None:
        return PhaseEnergy(**facts, problem=problem)
    energy_j = sum(counter.rise(span) if by_counter else total.area(span) for span in spans)
    rails = {rail: _Curve.of(readings, [None if reading.rails_mw[index] is None else reading.rails_mw[index] / 1e3
                                        for reading in readings]) for index, rail in enumerate(source.rails)}
    inside_w = np.concatenate([total.inside(span) for span in spans])
    return PhaseEnergy(
        energy_j=energy_j,
        above_idle_j=None if idle_w is None else energy_j - idle_w * whole_s,
        mean_w=energy_j / whole_s,
        max_w=float(inside_w.max()) if inside_w.size else None,
        min_w=float(inside_w.min()) if inside_w.size else None,
        rails_j={rail: _rail_j(curve, spans, hole_s(source)) for rail, curve in rails.items()},
        method=COUNTER if by_counter else TRAPEZOID,
        problem=None,
        **facts,
    )


def _problem(curve: _Curve, spans: Sequence[Span], samples: int, missing_s: float) -> str | None:
    if not spans or not curve.t_ns.size:
        return LOST
    if min(start for start, _ in spans) < curve.t_ns[0]:
        return NOT_COVERED
    if missing_s > 1e-9:
        return LOST
    return TOO_SHORT if samples < MIN_SAMPLES else None


def _rail_j(curve: _Curve, spans: Sequence[Span], longest_s: float) -> float | None:
    whole = all(abs(curve.covered_s(span, longest_s) - (span[1] - span[0]) / 1e9) <= 1e-9 for span in spans)
    return sum(curve.area(span) for span in spans) if whole else None


@dataclass(frozen=True)
class _Curve:
    """Values at times, straight between them. t_ns, began_ns: int64 [N]; values: float64 [N]."""

    t_ns: np.ndarray
    began_ns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, readings: Sequence[Reading], values: Sequence[float | None], instant: bool = False) -> _Curve:
        """``instant``: values hold for the time of their reading, not for the stretch that it took."""
        known = [(reading.t_ns, reading.t_ns if instant else reading.began_ns, value)
                 for reading, value in zip(readings, values, strict=True) if value is not None]
        t_ns, began_ns, kept = zip(*known, strict=True) if known else ((), (), ())
        return cls(np.array(t_ns, np.int64), np.array(began_ns, np.int64), np.array(kept, np.float64))

    def _bounds(self, span: Span) -> tuple[int, int]:
        """Of the samples inside, first and behind the last."""
        first = max(np.searchsorted(self.t_ns, span[0], "right"), np.searchsorted(self.began_ns, span[0]))
        return int(first), int(np.searchsorted(self.t_ns, span[1]))

    def count(self, span: Span) -> int:
        first, behind = self._bounds(span)
        return max(behind - first, 0)

    def inside(self, span: Span) -> np.ndarray:
        first, behind = self._bounds(span)
        return self.values[first:behind]

    def max_gap_s(self, span: Span) -> float | None:
        """Among the samples inside and the one on either side."""
        first, behind = self._bounds(span)
        steps = np.diff(self.t_ns[max(first - 1, 0) : behind + 1])
        return float(steps.max()) / 1e9 if steps.size else None

    def covered_s(self, span: Span, longest_s: float) -> float:
        """Seconds of the span that lie between two samples at most ``longest_s`` apart."""
        before, after = self.t_ns[:-1], self.t_ns[1:]
        shared = np.minimum(after, span[1]) - np.maximum(before, span[0])
        return float(shared[(shared > 0) & (after - before <= longest_s * 1e9)].sum()) / 1e9

    def area(self, span: Span) -> float:
        """Integral over the span in value * seconds: trapezoids, first and last value inside held to the ends."""
        first, behind = self._bounds(span)
        if first >= behind:  # none inside: the line between the two around it
            return self._at((span[0] + span[1]) // 2) * (span[1] - span[0]) / 1e9
        values = self.values[[first, *range(first, behind), behind - 1]]
        # Seconds from the span's start: float64 holds them exactly, which it does not for nanoseconds since boot.
        t_s = (np.concatenate([[span[0]], self.t_ns[first:behind], [span[1]]]) - span[0]) / 1e9
        return float((np.diff(t_s) * (values[1:] + values[:-1])).sum() / 2)

    def rise(self, span: Span) -> float:
        """How much a counter rises over the span."""
        first, behind = self._bounds(span)
        if behind - first < 2:
            return self._at(span[1]) - self._at(span[0])
        seen = self.values[behind - 1] - self.values[first]
        return float(seen * (span[1] - span[0]) / (self.t_ns[behind - 1] - self.t_ns[first]))

    def _at(self, t_ns: int) -> float:
        return float(np.interp(0.0, (self.t_ns - t_ns) / 1e9, self.values))
