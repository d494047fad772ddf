"""What one request cost: its prefill and its decode, in joules and per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_awq.power.base import Reading
from edge_awq.power.energy import PhaseEnergy, Span
from edge_awq.power.monitor import Monitor
from edge_awq.runner.generate import Token
from edge_awq.runner.metrics import joules_per_token

_NO_DECODE = PhaseEnergy(problem=None)  # one token: there is no decode window


@dataclass(frozen=True)
class RequestEnergy:
    """Energy of one request; None is "not measured".

    Attributes:
        meter: its name; None without one. refusal: why there is none although one was looked for.
        total_scope, total_rails: what the joules are joules of; see edge_awq.power.base.Total.
        interval_s: seconds between samples.
        prefill_j, decode_j, total_j: gross joules until the first token, from the first to the last, and of both.
        above_idle_j: the part of ``total_j`` above idle power; None where idle power was not measured.
        mj_per_prompt_tok: millijoules of prefill / tokens of the prompt.
        mj_per_gen_tok: millijoules of decode / (tokens - 1), the tokens that fall into it.
        tok_per_j: (tokens - 1) / decode_j; it is also tokens/s per watt.
        mean_w, max_w, idle_w: of the total, prefill and decode together.
        method: "trapezoid" or "counter".
        samples_prefill, samples_decode: that fell into each.
        max_gap_s: the longest time between two samples; coverage: share of the request without a hole.
        rails_j: joules of each rail over both.
        prefill_problem, decode_problem, total_problem: why there is no value; see PhaseEnergy.problem.
    """

    meter: str | None = None
    refusal: str | None = None
    total_scope: str | None = None
    total_rails: tuple[str, ...] | None = None
    interval_s: float | None = None
    prefill_j: float | None = None
    decode_j: float | None = None
    total_j: float | None = None
    above_idle_j: float | None = None
    mj_per_prompt_tok: float | None = None
    mj_per_gen_tok: float | None = None
    tok_per_j: float | None = None
    mean_w: float | None = None
    max_w: float | None = None
    idle_w: float | None = None
    method: str | None = None
    samples_prefill: int | None = None
    samples_decode: int | None = None
    max_gap_s: float | None = None
    coverage: float | None = None
    rails_j: dict[str, float | None] | None = None
    prefill_problem: str | None = None
    decode_problem: str | None = None
    total_problem: str | None = None

    def to_dict(self) -> dict[str, Any] | None:
        """As it stands in logs and in ``--json``; None without a meter."""
        return asdict(self) if self.meter is not None else None

    def warnings(self) -> list[tuple[str, str]]:
        """Code and text for every phase that a meter was there for and did not measure."""
        phases = (("prefill", self.prefill_problem, self.samples_prefill),
                  ("decode", self.decode_problem, self.samples_decode))
        return [(problem, f"{name}: {samples} samples by {self.meter}; its energy is null")
                for name, problem, samples in phases if problem is not None]


def spans_of(started_ns: int, tokens: Sequence[Token]) -> tuple[Span, Span, Span]:
    """Prefill, decode and both, on the clock of ``started_ns``."""
    first_ns, last_ns = (started_ns + round(token.t_s * 1e9) for token in (tokens[0], tokens[-1]))
    return (started_ns, first_ns), (first_ns, last_ns), (started_ns, last_ns)


def measure_request(meter: Monitor | None, started_ns: int, tokens: Sequence[Token],
                    prompt_tokens: int) -> RequestEnergy:
    """The energy of a request that is over; waits for the sample after its end.

    Args:
        started_ns: CLOCK_MONOTONIC when prefill began.
    """
    source = meter.source if meter is not None else None
    if source is None or not tokens:
        return RequestEnergy(refusal=meter.refusal if meter is not None else None)
    prefill_span, decode_span, whole_span = spans_of(started_ns, tokens)
    prefill, whole = meter.energy([prefill_span]), meter.energy([whole_span])
    decode = meter.energy([decode_span]) if len(tokens) > 1 else _NO_DECODE
    parts_j = [prefill.energy_j, decode.energy_j]
    per_token_j = joules_per_token(decode.energy_j, len(tokens))
    return RequestEnergy(
        meter=source.backend, total_scope=source.total.scope, total_rails=source.total.rails,
        interval_s=source.interval_s,
        prefill_j=prefill.energy_j, decode_j=decode.energy_j,
        total_j=whole.energy_j if None in parts_j else sum(parts_j),
        above_idle_j=whole.above_idle_j,
        mj_per_prompt_tok=None if prefill.energy_j is None else prefill.energy_j / prompt_tokens * 1e3,
        mj_per_gen_tok=None if per_token_j is None else per_token_j * 1e3,
        tok_per_j=1 / per_token_j if per_token_j else None,
        mean_w=whole.mean_w, max_w=whole.max_w, idle_w=meter.idle_w, method=decode.method or whole.method,
        samples_prefill=prefill.samples, samples_decode=decode.samples,
        max_gap_s=whole.max_gap_s, coverage=whole.coverage, rails_j=whole.rails_j,
        prefill_problem=prefill.problem, decode_problem=decode.problem, total_problem=whole.problem,
    )


def readings_within(meter: Monitor | None, span: Span) -> list[Reading]:
    """The samples of a stretch."""
    return [reading for reading in meter.readings() if span[0] <= reading.t_ns <= span[1]] if meter else []


def highest(values: Sequence[float | None]) -> float | None:
    """The largest of the values that are known."""
    return max((value for value in values if value is not None), default=None)


def throttled(readings: Sequence[Reading]) -> bool | None:
    """Whether any sample saw the clocks held down; None where none could tell."""
    seen = {reading.throttled for reading in readings}
    return True if True in seen else False if False in seen else None

