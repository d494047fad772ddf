"""The report's pictures, by matplotlib (extra ``plot``). Colours are Okabe and Ito's, safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_awq.bench.curves import Curve
from edge_awq.bench.panels import Panel, Slot
from edge_awq.bench.runs import Run, known
from edge_awq.lazy import require
from edge_awq.plan.figure import BARS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"hf_fp16": "#999999", "own_fp16": "#56B4E9", "awq_w4a16": "#D55E00"}
PHASES = {"load": "#AAAAAA", "idle": "#009E73", "warmup": "#F0E442", "prefill": "#56B4E9", "decode": "#E69F00",
          "cooldown": "#CCBBDD"}
LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = "osD^vPX*"
INK, LIMIT_INK = "#222222", "#000000"
MEASURED_OOM, PAPER_OOM = {"color": "#882255", "weight": "bold"}, {"color": INK}
BAR, OUTLINE = 0.27, 0.17  # widths, where a group of three takes 3 * BAR of 1
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.spines.top": False,
         "axes.spines.right": False, "hatch.linewidth": 0.6, "svg.hashsalt": "edge-awq"}


def plotting() -> Any:
    """matplotlib.pyplot on a canvas that needs no screen.

    Raises:
        EdgeAwqError: matplotlib is not installed.
    """
    require("matplotlib", "plot").use("Agg")
    pyplot = require("matplotlib.pyplot", "plot")
    pyplot.rcParams.update(STYLE)
    return pyplot


def draw_figure(panels: Sequence[Panel]) -> Figure:
    """Grouped bars, one panel below the other."""
    figure, axes = plotting().subplots(len(panels), 1, figsize=(9.5, 0.8 + 2.9 * len(panels)), squeeze=False,
                                       layout="constrained")
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        _draw_panel(axis, panel)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _draw_panel(axis: Axes, panel: Panel) -> None:
    values = [value for slots in panel.groups.values() for slot in slots for value in _values(slot)]
    top = max(values, default=1.0) * 1.16
    for number, slots in enumerate(panel.groups.values()):
        for position, slot in enumerate(slots):
            _draw_slot(axis, number + (position - 1) * (BAR + 0.02), slot, top)
    axis.set_title(panel.title, loc="left")
    axis.set_xticks(range(len(panel.groups)), list(panel.groups))
    axis.set_xlim(-0.6, max(len(panel.groups), 5) - 0.4)
    axis.set_ylim(0, top)
    axis.set_ylabel("tokens/s")
    axis.tick_params(axis="x", length=0)


def _values(slot: Slot) -> list[float]:
    measured = slot.measured.tok_s_median if slot.measured else None
    return known([measured, slot.paper.tok_s if slot.paper else None, slot.limit_tok_s, slot.predicted_tok_s])


def _draw_slot(axis: Axes, x: float, slot: Slot, top: float) -> None:
    """Measured filled, predicted hatched, the paper's as an outline with its value inside, the limit as a tick."""
    color = COLORS[slot.bar]
    if slot.measured is not None and slot.measured.tok_s_median is not None:
        axis.bar(x, slot.measured.tok_s_median, BAR, color=color, yerr=slot.measured.tok_s_mad,
                 error_kw={"lw": 1, "capsize": 2})
    elif slot.predicted_tok_s is not None:
        axis.bar(x, slot.predicted_tok_s, BAR, facecolor="white", edgecolor=color, hatch="////", linewidth=0.8)
    if slot.paper is not None and slot.paper.tok_s is not None:
        axis.bar(x, slot.paper.tok_s, OUTLINE, facecolor="none", edgecolor=INK, linewidth=1.3, zorder=3)
        axis.text(x, 0.015 * top, f"{slot.paper.tok_s:g}", ha="center", va="bottom", fontsize=7.5, zorder=4,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    if slot.limit_tok_s is not None:
        axis.hlines(slot.limit_tok_s, x - BAR / 2, x + BAR / 2, color=LIMIT_INK, linewidth=2, zorder=3)
    y = _label(axis, x, slot, top)
    if slot.is_oom:
        axis.text(x, y, "OOM", ha="center", va="bottom", rotation=90, fontsize=8, zorder=4,
                  **(MEASURED_OOM if slot.measured else PAPER_OOM))


def _label(axis: Axes, x: float, slot: Slot, top: float) -> float:
    """The measured value in bold, or the predicted one, marked as about, where bar and limit leave room.

    Returns the height from which on the slot is free.
    """
    gap, height = 0.015 * top, 0.06 * top
    if slot.measured is not None and slot.measured.tok_s_median is not None:
        text, style = _short(slot.measured.tok_s_median), {"weight": "bold"}
        bar = slot.measured.tok_s_median + (slot.measured.tok_s_mad or 0)
    elif slot.predicted_tok_s is not None:
        text, style, bar = f"~{_short(slot.predicted_tok_s)}", {"style": "italic"}, slot.predicted_tok_s
    else:
        return (slot.limit_tok_s or 0) + gap
    bar = max(bar, slot.paper.tok_s or 0) if slot.paper else bar
    limit = slot.limit_tok_s or 0
    y = bar + gap if limit < bar or limit - bar > gap + height else limit + gap
    axis.text(x, y, text, ha="center", va="bottom", fontsize=7.5, **style)
    return max(y + height, limit + gap)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _legend() -> list[Any]:
    patches, lines = require("matplotlib.patches", "plot"), require("matplotlib.lines", "plot")
    handles = [patches.Patch(color=COLORS[bar], label=f"{words}, measured") for bar, (words, _) in BARS.items()]
    return [
        *handles,
        patches.Patch(facecolor="white", edgecolor=INK, linewidth=1.3, label="AWQ paper (own: TinyChat)"),
        patches.Patch(facecolor="white", edgecolor=INK, hatch="////", label="predicted, in the bar's colour"),
        lines.Line2D([], [], color=LIMIT_INK, linewidth=2, label="memory limit, own format"),
        *(lines.Line2D([], [], color="none", marker=f"${text}$", markersize=20, markerfacecolor=look["color"],
                       markeredgecolor="none", label=f"out of memory, {where}")
          for text, look, where in ((r"\mathbf{OOM}", MEASURED_OOM, "measured"), ("OOM", PAPER_OOM, "AWQ paper"))),
    ]


def draw_power(run: Run) -> Figure:
    """Power over time, the phases behind it, a mark for every token."""
    figure, axis = plotting().subplots(figsize=(9.5, 3.6), layout="constrained")
    for name in dict.fromkeys(phase.name for phase in run.phases):
        spans = [phase for phase in run.phases if phase.name == name]
        for number, phase in enumerate(spans):
            axis.axvspan(phase.start_s, phase.end_s, color=PHASES.get(name, "#EEEEEE"), alpha=0.35, linewidth=0,
                         label=name if number == 0 else None)
    axis.plot(run.power_s, [value if value is not None else float("nan") for value in run.power_w], color=INK,
              linewidth=1.5, label=f"total ({run.power_scope})" if run.power_scope else "total")
    styles = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
    beside = {rail: watts for rail, watts in run.rails_w.items() if not _same(watts, run.power_w)}
    for style, (rail, watts) in zip(styles, beside.items(), strict=False):
        axis.plot(run.power_s, [value if value is not None else float("nan") for value in watts], color="#0072B2",
                  linewidth=1, linestyle=style, label=rail)
    top = max(known(value for series in (run.power_w, *run.rails_w.values()) for value in series), default=1.0) * 1.1
    axis.vlines(run.token_s, -0.045 * top, -0.01 * top, color=COLORS["awq_w4a16"], linewidth=0.6, label="tokens")
    axis.set_ylim(-0.06 * top, top)
    axis.set_xlabel("seconds since the start of the run")
    axis.set_ylabel("W")
    axis.set_title(f"Power, {run.path.name}", loc="left")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def _same(watts: Sequence[float | None], total_w: Sequence[float | None]) -> bool:
    """Whether a rail is the total, which is drawn already."""
    pairs = zip(watts, total_w, strict=True)
    return all(one == other if None in (one, other) else math.isclose(one, other) for one, other in pairs)


def draw_context(curves: Sequence[Curve]) -> Figure:
    """Tokens/s and J/token against context; what is predicted is broken, limits are dotted."""
    figure, (speed, energy) = plotting().subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for curve in curves:
        number = labels.index(curve.label)
        line = {"measured": "-", "predicted": "--", "limit": ":"}[curve.kind]
        look = {"color": LINES[number % len(LINES)], "linestyle": line, "markersize": 4,
                "marker": MARKERS[number % len(MARKERS)] if curve.kind == "measured" else None}
        speed.plot(*_known_points(curve, 1), label=f"{curve.label}, {curve.kind}", **look)
        energy.plot(*_known_points(curve, 2), **look)
    if all(point[2] is None for curve in curves for point in curve.points):
        energy.text(0.5, 0.5, "not measured", transform=energy.transAxes, ha="center", color=INK)
    at_most = " (the power budget / predicted tok/s)" if any(curve.kind == "predicted" for curve in curves) else ""
    for axis, words in ((speed, "tokens/s"), (energy, f"J/token{at_most}")):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(require("matplotlib.ticker", "plot").ScalarFormatter())
        axis.set_xlabel("tokens of context")
        axis.set_ylabel(words)
        axis.set_ylim(bottom=0)
    _spread(speed, [point[1] for curve in curves for point in curve.points if point[1]])
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _spread(axis: Axes, rates: Sequence[float]) -> None:
    """A logarithmic scale where the fastest device would press the slowest onto the axis."""
    if not rates or max(rates) <= 8 * min(rates):
        return
    ticker = require("matplotlib.ticker", "plot")
    axis.set_ylim(0.8 * min(rates), 1.25 * max(rates))
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def _known_points(curve: Curve, column: int) -> tuple[list[float], list[float]]:
    points = [(point[0], point[column]) for point in curve.points if point[column] is not None]
    return [context for context, _ in points], [value for _, value in points]
