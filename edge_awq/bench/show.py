"""The benchmark's results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_awq.bench.compare import Comparison
from edge_awq.bench.measure import Outcome
from edge_awq.bench.results import Result
from edge_awq.bench.tables import number
from edge_awq.tables import render

HEAD = ("engine", "precision", "tokens", "tok/s", "MAD", "prefill tok/s", "J/token", "load s", "peak RSS GB", "valid")
COMPARE_HEAD = ("engine", "precision", "tokens", "old tok/s", "new tok/s", "noise", "old J/token", "new J/token",
                "noise J", "verdict")


def show_results(outcome: Outcome) -> Iterator[str]:
    """What was measured where and by which meter, one row a result, then what was not and why."""
    results, first = outcome.results, outcome.results[0]
    mode = f", {first.provenance.power_mode}" if first.provenance.power_mode else ""
    yield f"{first.model} on {first.device}{mode}: protocol {first.protocol}, {first.repeats} repeats"
    yield ""
    yield from render(HEAD, map(_row, results), HEAD[2:-1])
    if first.provenance.meter is not None:
        yield _describe_meter(first)
    for result in results:
        for reason in result.invalid_reasons:
            yield f"invalid: {_words(result)}: {reason}"
    for reason in outcome.left_out:
        yield f"left out: {reason}"
    for warning in outcome.meter_warnings:
        yield f"meter: {warning}"


def show_comparison(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """One row a pair; the noise is what a change must exceed."""
    yield ""
    yield from render(COMPARE_HEAD, map(_compare_row, comparisons), COMPARE_HEAD[2:-1])


def _describe_meter(result: Result) -> str:
    """What the joules are joules of; totals of different scopes cannot be compared."""
    where = result.provenance
    total = f"{where.power_scope or 'unknown'}: {' + '.join(where.power_rails) or 'no rails'}"
    idle = "" if result.idle_w is None else f", idle {number(result.idle_w)} W included"
    return f"J/token by {where.meter}, every {where.meter_interval_s:g} s, total = {total}{idle}"


def _words(result: Result) -> str:
    return f"{result.engine} {result.form} {_tokens(result)}"


def _tokens(result: Result) -> str:
    return f"{result.prompt_tokens} + {result.generated_tokens}"


def _rate(result: Result | None) -> str:
    return "-" if result is None else "OOM" if result.oom else number(result.tok_s_median)


def _row(result: Result) -> tuple[str, ...]:
    peak_gb = None if result.peak_rss_bytes is None else result.peak_rss_bytes / 1e9
    return (result.engine, result.form, _tokens(result), _rate(result), number(result.tok_s_mad),
            number(result.prefill_tok_s_median), number(result.j_per_token) or result.j_per_token_problem or "",
            number(result.load_s), number(peak_gb), "yes" if result.valid else "no")


def _compare_row(one: Comparison) -> tuple[str, ...]:
    verdict = f"{one.verdict}: {one.reason}" if one.reason else one.verdict
    return (one.new.engine, one.new.form, _tokens(one.new), _rate(one.old), _rate(one.new),
            number(one.noise_tok_s), *(number(result.j_per_token if result else None) for result in (one.old, one.new)),
            number(one.noise_j), verdict)
