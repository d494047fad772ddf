"""Today's results against those of an older file: what became slower, or takes more joules, by more than the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_awq.bench.results import Result, StoredResult, read_results
from edge_awq.errors import EdgeAwqError

SIGMAS = 3.0
MAD_TO_SIGMA = 1.4826  # of a normal distribution
FLOOR = 0.02  # share of the old rate; repeats of one start do not see what changes from start to start
METER_FLOOR = 0.02  # share of the old joules; each of two measurements may be off by 1 %
REGRESSION, FASTER, SAME, NOT_COMPARED = "regression", "faster", "same", "not compared"


@dataclass(frozen=True)
class Comparison:
    """One result of now, the older one of the same thing, and the verdict; ``reason`` of "not compared".

    Attributes:
        noise_tok_s: what may be chance: 3 sigma of both deviations together, at least 2 % of the old rate.
        noise_j: the same share of the old joules per token, and 2 % for two measurements by a meter; None where the
            joules cannot be compared.
    """

    new: Result
    old: Result | None
    verdict: str
    noise_tok_s: float | None = None
    noise_j: float | None = None
    reason: str | None = None


def compare_with(path: Path, results: Sequence[Result]) -> list[Comparison]:
    """Hold every result against the one of the same device, mode, model, engine and work in an older file.

    Raises:
        EdgeAwqError: the file cannot be read, or nothing in it is comparable, and why.
    """
    stored = {_work(one.result): one.result for one in read_old(path, results)}
    if not any(_work(result) in stored for result in results):
        raise EdgeAwqError(f"{path}: none of its results is of the same model, engine, precision and tokens",
                           hint="compare with a file of the same 'edge-awq bench' command")
    return [compare_one(result, stored.get(_work(result))) for result in results]


def check_any_compared(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Refuse to pass where no pair could be compared, which a script would take for "no regression".

    Raises:
        EdgeAwqError: there is no verdict at all.
    """
    if all(one.verdict == NOT_COMPARED for one in comparisons):
        raise EdgeAwqError(f"{path}: nothing could be compared: {comparisons[0].reason}",
                           hint="measure again, undisturbed and with the same engines")


def read_old(path: Path, results: Sequence[Result]) -> list[StoredResult]:
    """The results in ``path`` that are comparable by device, power mode and protocol.

    Raises:
        EdgeAwqError: there is none.
    """
    left = read_results(path)
    for what, key in (("device", _device), ("power mode", _mode), ("protocol", _protocol)):
        here = {key(result) for result in results}
        found = [one for one in left if key(one.result) in here]
        if not found:
            old = ", ".join(sorted({str(key(one.result)) for one in left}))
            new = ", ".join(sorted(map(str, here)))
            raise EdgeAwqError(f"{path}: its {what} is {old}, now it is {new}; they cannot be compared",
                               hint=f"compare with a file of the same {what}")
        left = found
    return left


def compare_one(new: Result, old: Result | None) -> Comparison:
    """The verdict on one pair."""
    if old is None:
        return Comparison(new, None, NOT_COMPARED, reason="not in the older file")
    for name, result in (("older", old), ("new", new)):
        if not result.valid:
            return Comparison(new, old, NOT_COMPARED, reason=f"the {name} run is invalid: {result.invalid_reasons[0]}")
    if new.oom or old.oom:
        verdict = SAME if new.oom and old.oom else REGRESSION if new.oom else FASTER
        return Comparison(new, old, verdict)
    noise = max(SIGMAS * MAD_TO_SIGMA * math.hypot(new.tok_s_mad or 0.0, old.tok_s_mad or 0.0),
                FLOOR * old.tok_s_median)
    change = new.tok_s_median - old.tok_s_median
    verdict = SAME if abs(change) <= noise else FASTER if change > 0 else REGRESSION
    noise_j = _noise_j(new, old, noise / old.tok_s_median)
    if noise_j is None or verdict == REGRESSION or new.j_per_token - old.j_per_token <= noise_j:
        return Comparison(new, old, verdict, noise, noise_j)
    return Comparison(new, old, REGRESSION, noise, noise_j, reason="more joules per token")


def _noise_j(new: Result, old: Result, share: float) -> float | None:
    """Joules per token that may be chance, ``share`` of them by the rate's noise."""
    scopes = {(result.provenance.power_scope, result.provenance.power_rails) for result in (new, old)}
    if None in (new.j_per_token, old.j_per_token) or len(scopes) > 1:
        return None
    return (share + METER_FLOOR) * old.j_per_token


def _work(result: Result) -> tuple[object, ...]:
    return (_device(result), _mode(result), _protocol(result), result.group, result.engine, result.form,
            result.prompt_tokens, result.generated_tokens)


def _device(result: Result) -> str:
    return result.device


def _mode(result: Result) -> str | None:
    return result.provenance.power_mode


def _protocol(result: Result) -> str:
    return result.protocol
