"""The benchmark in one power mode after the other. Not yet verified on device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_awq.bench.bench import Prepared, measure_prepared
from edge_awq.bench.results import Result
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Progress
from edge_awq.runner.board import BoardState, clocks
from edge_awq.tune.nvpmodel import ModeRefused, ModeSwitch
from edge_awq.tune.setters import PowerMode

SETTLE_S = 5.0
_LONGEST_SETTLE_S = 30.0


@dataclass
class Tuning:
    """Results, whose provenance names the mode, what was left out and why, and what the meter warned of."""

    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    meter_warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bounds:
    """What a mode must keep; None: no bound."""

    min_tok_s: float | None = None
    max_c: float | None = None

    def broken_by(self, result: Result) -> str | None:
        """Why ``result`` is no choice; None for one that is."""
        if result.oom or not result.valid or result.j_per_token is None:
            return _unusable(result)
        if self.min_tok_s is not None and result.tok_s_median < self.min_tok_s:
            return f"{result.tok_s_median:.4g} tok/s, {self.min_tok_s:g} at least"
        if self.max_c is not None and result.temp_max_c is None:
            return "its temperature is not known"
        if self.max_c is not None and result.temp_max_c > self.max_c:
            return f"{result.temp_max_c:.1f} C, {self.max_c:g} at most"
        return None


def _unusable(result: Result) -> str:
    if result.oom:
        return "out of memory"
    if not result.valid:
        return f"invalid: {result.invalid_reasons[0]}"
    return f"no energy ({result.j_per_token_problem})"


def best_result(results: Iterable[Result], bounds: Bounds) -> Result | None:
    """The result with the most tokens per joule within the bounds; the first of equals, None where none is within."""
    within = [result for result in results if bounds.broken_by(result) is None]
    return min(within, key=lambda result: result.j_per_token, default=None)


def tune(prepared: Prepared, switch: ModeSwitch, modes: Sequence[PowerMode], progress: Progress,
         keep: Callable[[Tuning], None], settle_s: float = SETTLE_S) -> Tuning:
    """Measure in every mode; the original one is set again, whatever happens.

    Args:
        keep: called after every mode with all that is known so far.
        settle_s: seconds that clocks and temperature have after a mode was set.

    Raises:
        EdgeAwqError: nothing could be measured in any mode, or the original mode cannot be set back.
    """
    root, tuning = prepared.settings.root, Tuning()
    before = BoardState.now(root)
    with switch.restored():
        for mode in modes:
            progress.note(f"power mode {mode.name}")
            try:
                switch.set(mode)
                settle(root, settle_s)
                outcome = measure_prepared(prepared, progress)
            except ModeRefused as refused:
                tuning.left_out.append(f"{mode.name}: {refused.reason}")
            except EdgeAwqError as error:
                if not tuning.results:
                    raise  # it would fail in every mode
                tuning.left_out.append(f"{mode.name}: {error.message}")
            else:
                tuning.results += outcome.results
                tuning.left_out += [f"{mode.name}: {reason}" for reason in outcome.left_out]
                known = tuning.meter_warnings  # the same meter says the same in every mode
                known += [warning for warning in outcome.meter_warnings if warning not in known]
            if tuning.results:
                keep(tuning)
    for _, text in BoardState.now(root).changed_since(before):
        progress.note(f"after {switch.original.name} was set again, {text}; jetson_clocks may have been on before")
    if not tuning.results:
        raise EdgeAwqError(f"no power mode was measured: {'; '.join(tuning.left_out)}",
                           hint="choose others with --modes, or see what 'sudo nvpmodel -m NUMBER' says")
    return tuning


def settle(root: Path, seconds: float) -> None:
    """Wait so long, and then until the clocks' limits stay the same for a second."""
    pause_s = min(1.0, seconds)
    time.sleep(seconds)
    before, deadline_s = _limits(root), time.monotonic() + _LONGEST_SETTLE_S
    while time.monotonic() < deadline_s:
        time.sleep(pause_s)
        now = _limits(root)
        if now == before:
            return
        before = now


def _limits(root: Path) -> dict[str, object]:
    return {name: value for name, value in clocks(root).items() if name.endswith("max_mhz")}
