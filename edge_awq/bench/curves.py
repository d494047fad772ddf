"""Tokens/s and J/token against context: what was measured, or, where nothing was, what is predicted for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_awq.bench.results import StoredResult
from edge_awq.bench.tables import joules_of
from edge_awq.plan.counts import counts_of_shape
from edge_awq.plan.figure import read_figure
from edge_awq.plan.sizes import sizes_of
from edge_awq.plan.speed import pick_mode, speed_at
from edge_awq.shapes import find_shape
from edge_awq.target import find_target

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
EXAMPLE = "llama-2-7b"  # predicted where nothing was measured

Point = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        kind: "measured", "predicted" or "limit".
        points: (context in tokens, tokens/s, J/token), by context.
    """

    label: str
    kind: str
    points: tuple[Point, ...]


def context_curves(stored: Sequence[StoredResult]) -> list[Curve]:
    """A line for every device, power mode, model, engine and form; contexts are those half way through a run.

    Single points are left out where there are lines.
    """
    lines: dict[str, list[Point]] = {}
    for result in (one.result for one in stored):
        if not result.valid or result.oom:
            continue
        mode = f" {result.provenance.power_mode}" if result.provenance.power_mode else ""
        joules = f" (joules of {joules_of(result)})" if joules_of(result) else ""
        label = f"{result.device}{mode}: {result.model}, {result.engine} {result.form}{joules}"
        context = result.prompt_tokens + result.generated_tokens / 2
        lines.setdefault(label, []).append((context, result.tok_s_median, result.j_per_token))
    several = {label: points for label, points in lines.items() if len({point[0] for point in points}) > 1}
    measured = [Curve(label, "measured", tuple(sorted(points))) for label, points in (several or lines).items()]
    return measured or _predicted()


def _predicted() -> list[Curve]:
    curves = []
    for name in dict.fromkeys(seed.target for seed in read_figure()):
        target = find_target(name)
        sizes = sizes_of(counts_of_shape(find_shape(EXAMPLE)), "w4a16", target.quant, max(CONTEXTS))
        speeds = [speed_at(context, sizes, target, pick_mode(target, None)[1]) for context in CONTEXTS]
        label = f"{name}: {EXAMPLE} w4a16"
        curves.append(Curve(label, "predicted", tuple((s.context, s.predicted_tok_s, s.j_per_token) for s in speeds)))
        curves.append(Curve(label, "limit", tuple((s.context, s.limit_tok_s, None) for s in speeds)))
    return curves
