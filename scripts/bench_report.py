"""What the benchmark's samples mean: medians, ratios inside each turn, and the table that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from edge_awq.bench.worker import Sample

# One turn: every engine once, in shuffled order, doing the same work at nearly the same moment.
Turn = Mapping[str, Sample]


@dataclass(frozen=True)
class PhaseSummary:
    """One engine in one phase (prefill or decode).

    Attributes:
        tok_s: median over turns.
        best_tenth_tok_s: 90th percentile, the nearest to a quiet machine; the fastest turn if there are few.
        cpu_ms_per_token: median CPU time; others that use the machine hardly change it.
        ratio: speed over that of the base engine in the same turn, median over turns; 1 for the base itself.
        ratio_quartiles: the middle half of these ratios.
        cpu_ratio: the base's CPU time over this engine's in the same turn, median.
    """

    tok_s: float
    best_tenth_tok_s: float
    cpu_ms_per_token: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    cpu_ratio: float
    turns: int


def summarize(turns: Sequence[Turn], base: str) -> dict[str, PhaseSummary]:
    """A summary for every engine; ``base`` is the one that the others are held against."""
    return {engine: _summarize_one(turns, engine, base) for engine in turns[0]}


def _summarize_one(turns: Sequence[Turn], engine: str, base: str) -> PhaseSummary:
    speeds = [turn[engine].tokens / turn[engine].wall_s for turn in turns]
    ratios = [turn[base].wall_s / turn[engine].wall_s for turn in turns]
    low, high = _between(ratios, 25), _between(ratios, 75)
    return PhaseSummary(
        tok_s=median(speeds),
        best_tenth_tok_s=_between(speeds, 90),
        cpu_ms_per_token=median(turn[engine].cpu_s / turn[engine].tokens for turn in turns) * 1e3,
        ratio=median(ratios),
        ratio_quartiles=(low, high),
        cpu_ratio=median(turn[base].cpu_s / turn[engine].cpu_s for turn in turns),
        turns=len(turns),
    )


def _between(values: Sequence[float], percent: int) -> float:
    """The given percentile, never beyond what was seen."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class EngineRow:
    """Everything about one engine at one number of threads."""

    engine: str
    prefill: PhaseSummary
    decode: PhaseSummary
    load_s: float
    peak_rss_bytes: int


HEADER = ("engine", "decode tok/s", "best tenth", "CPU ms/token", "x {base}", "x by CPU time",
          "prefill({prompt}) tok/s", "x {base}", "x by CPU time", "load s", "peak RSS GB")


def markdown_table(rows: Sequence[EngineRow], base: str, prompt: int) -> str:
    """One line for each engine; ratios with the middle half of the turns in brackets."""
    titles = [title.format(base=base, prompt=prompt) for title in HEADER]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for row in rows:
        lines.append([
            row.engine, f"{row.decode.tok_s:.1f}", f"{row.decode.best_tenth_tok_s:.1f}",
            f"{row.decode.cpu_ms_per_token:.1f}", _ratio(row.decode), f"{row.decode.cpu_ratio:.2f}",
            f"{row.prefill.tok_s:.1f}", _ratio(row.prefill), f"{row.prefill.cpu_ratio:.2f}",
            f"{row.load_s:.2f}", f"{row.peak_rss_bytes / 1e9:.2f}",
        ])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(phase: PhaseSummary) -> str:
    low, high = phase.ratio_quartiles
    return f"{phase.ratio:.2f} ({low:.2f} to {high:.2f})"
