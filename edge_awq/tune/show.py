"""What every power mode gave, as a table on the terminal, and the mode to choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_awq.bench.results import Result
from edge_awq.bench.tables import number
from edge_awq.tables import render
from edge_awq.tune.tune import Bounds, Tuning, best_result

HEAD = ("power mode", "tokens", "tok/s", "W", "J/token", "tok/s per W", "max C", "throttled", "valid")
_KNOWN = {True: "yes", False: "no", None: ""}


def show_tuning(tuning: Tuning, bounds: Bounds, original: str) -> Iterator[str]:
    """One row a mode and prompt, what is invalid or left out, and the best mode for every prompt."""
    first = tuning.results[0]
    yield f"{first.model} {first.precision} on {first.device}: protocol {first.protocol}, {first.repeats} repeats"
    yield ""
    yield from render(HEAD, map(_row, tuning.results), HEAD[2:-2])
    for result in tuning.results:
        for reason in result.invalid_reasons:
            yield f"invalid: {_mode(result)} {_tokens(result)}: {reason}"
    for reason in tuning.left_out:
        yield f"left out: {reason}"
    for warning in tuning.meter_warnings:
        yield f"meter: {warning}"
    for tokens in dict.fromkeys(map(_tokens, tuning.results)):
        yield _verdict(tokens, [result for result in tuning.results if _tokens(result) == tokens], bounds)
    yield f"The power mode is {original} again."


def _verdict(tokens: str, results: Sequence[Result], bounds: Bounds) -> str:
    best = best_result(results, bounds)
    if best is None:
        reasons = "; ".join(f"{_mode(result)}: {bounds.broken_by(result)}" for result in results)
        return f"best for {tokens}: none ({reasons})"
    return (f"best for {tokens}: {_mode(best)}, {number(1 / best.j_per_token)} tok/J at "
            f"{number(best.tok_s_median)} tok/s")


def _mode(result: Result) -> str:
    return result.provenance.power_mode or "unknown"


def _tokens(result: Result) -> str:
    return f"{result.prompt_tokens} + {result.generated_tokens}"


def _row(result: Result) -> tuple[str, ...]:
    per_j = 1 / result.j_per_token if result.j_per_token else None
    return (_mode(result), _tokens(result), "OOM" if result.oom else number(result.tok_s_median),
            number(result.mean_w), number(result.j_per_token) or result.j_per_token_problem or "", number(per_j),
            number(result.temp_max_c), _KNOWN[result.throttled], "yes" if result.valid else "no")
