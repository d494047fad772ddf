"""What is measured, and what the repeats amount to: protocols, median and deviation, and when a run does not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edge_awq.bench.results import FIGURE_PROTOCOL
from edge_awq.bench.worker import Sample
from edge_awq.errors import EdgeAwqError
from edge_awq.power.energy import MIN_SAMPLES, TOO_SHORT, PhaseEnergy

REALISTIC_PROTOCOL = "realistic"
BUSY = 0.5  # runnable threads of others, on average, that a measurement bears


@dataclass(frozen=True)
class Case:
    """One prompt length: the first of ``generated_tokens`` comes from the prefill, each other one is a step."""

    prompt_tokens: int
    generated_tokens: int

    @property
    def context(self) -> int:
        """Tokens that the KV cache must hold."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def steps(self) -> int:
        """Of decoding."""
        return self.generated_tokens - 1


@dataclass(frozen=True)
class Protocol:
    """median_step: a repeat's rate is 1 / the median latency of a step, as in the AWQ paper's figure; otherwise it is
    steps / the seconds that they take together.
    """

    name: str
    cases: tuple[Case, ...]
    median_step: bool

    def decode_tok_s(self, sample: Sample) -> float:
        """The rate of one repeat."""
        return 1 / median(sample.steps_s) if self.median_step else sample.tokens / sample.wall_s


PROTOCOLS = {
    FIGURE_PROTOCOL: Protocol(FIGURE_PROTOCOL, (Case(4, 200),), median_step=True),
    REALISTIC_PROTOCOL: Protocol(REALISTIC_PROTOCOL, tuple(Case(prompt, 128) for prompt in (512, 1024, 2048, 4096)),
                                 median_step=False),
}


def find_protocol(name: str) -> Protocol:
    """The protocol called ``name``; an unknown one is an error that lists those that exist."""
    if name not in PROTOCOLS:
        raise EdgeAwqError(f"protocol '{name}' is not known", hint=f"known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def fitting(protocol: Protocol, context: int) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases that a KV cache of ``context`` tokens holds, and why the others are left out."""
    fits = tuple(case for case in protocol.cases if case.context <= context)
    reasons = tuple(f"{protocol.name} {case.prompt_tokens} + {case.generated_tokens}: needs a context of "
                    f"{case.context}, there are {context}" for case in protocol.cases if case not in fits)
    return fits, reasons


def deviation(values: Sequence[float]) -> float | None:
    """Median absolute deviation; None for fewer than two values, which show no spread."""
    return median(abs(value - median(values)) for value in values) if len(values) > 1 else None


def per_token(energy_j: float | None, tokens: int) -> float | None:
    """Joules per token of ``tokens`` in all repetitions of a phase; None where it was not measured."""
    return None if energy_j is None else energy_j / tokens


@dataclass(frozen=True)
class Conditions:
    """What else decides whether a run counts.

    Attributes:
        changes: of the board, in words.
        throttled: a sample of the meter saw the clocks held down; None: it cannot tell.
        load_before: the machine's load average before the first engine was started; None: not known.
        meter: its name; None without one.
    """

    changes: tuple[str, ...] = ()
    throttled: bool | None = None
    load_before: float | None = None
    meter: str | None = None


def invalid_reasons(conditions: Conditions, decode: PhaseEnergy) -> tuple[str, ...]:
    """Why a run does not count; empty for one that does."""
    reasons = list(conditions.changes)
    if conditions.throttled and not any("throttle" in change for change in reasons):
        reasons.append("the meter saw the clocks held down (throttled)")
    if conditions.load_before is not None and conditions.load_before > BUSY:
        reasons.append(f"the machine was busy: load average {conditions.load_before:.2f} before the start, "
                       f"{BUSY} at most")
    if conditions.meter is not None and decode.problem is not None:
        short = f": {MIN_SAMPLES} are needed, so more --repeats or a shorter --meter-interval"
        reasons.append(f"decode: {decode.samples} samples by {conditions.meter}, no energy ({decode.problem}"
                       f"{short if decode.problem == TOO_SHORT else ''})")
    return tuple(reasons)
