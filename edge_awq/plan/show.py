"""A plan in words: memory line by line, speed by context, and one row a target for the matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge_awq.plan.figure import BARS
from edge_awq.plan.plan import Plan
from edge_awq.plan.speed import INSTRUCTIONS_PER_WEIGHT
from edge_awq.tables import render

GIB = 1 << 30
_MEMORY = (("weights", "weights"), ("kv_cache", "KV cache"), ("workspace", "workspace, at most"),
           ("runtime", "runtime's context"), ("page_cache", "page cache during upload"),
           ("system", "operating system, display"))


def show_plan(plan: Plan) -> Iterator[str]:
    """Lines on one plan; speeds are predictions and say so."""
    mode = f", power mode {plan.mode}" if plan.mode else ""
    packed = f" (groups of {plan.quant.group_size}, head {plan.quant.head_bits} bits)"
    quant = "" if plan.precision == "fp16" else packed
    yield (f"{plan.model} on {plan.target.name}{mode}, {plan.precision}{quant}, KV cache of {plan.kv_bits} bits, "
           f"context {plan.context} tokens")
    yield ""
    yield from _show_memory(plan)
    yield ""
    yield from _show_speed(plan)
    yield from _show_seeds(plan)


def _show_memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    rows = [(words, f"{getattr(memory, name) / GIB:.2f}") for name, words in _MEMORY]
    rows += [("needed while running", f"{memory.run_peak / GIB:.2f}"),
             ("needed while compiling the engine", f"{memory.build_peak / GIB:.2f}")]
    if memory.available is not None:
        rows.append(("there is", f"{memory.available / GIB:.2f}"))
    yield from render(("memory", "GiB"), rows, right=("GiB",))
    yield ""
    if plan.fits is None:
        yield "fits: not known, because nothing is known about this target's memory"
    elif plan.fits:
        spare = (memory.available - memory.needed) / GIB
        yield f"fits: yes, {spare:.2f} GiB to spare; up to --context {plan.longest_context}"
    else:
        yield f"fits: NO, {(memory.needed - memory.available) / GIB:.2f} GiB too much"
        yield from (f"  it would with {change}" for change in plan.changes)
        if not plan.changes:
            yield "  no known target holds it"


def _show_speed(plan: Plan) -> Iterator[str]:
    head = ("after tokens", "GB per token", "memory limit tok/s", "predicted tok/s", "J/token at most")
    rows = [(str(speed.context), f"{speed.bytes_per_token / 1e9:.3f}", _number(speed.limit_tok_s),
             _number(speed.predicted_tok_s), _number(speed.j_per_token)) for speed in plan.speeds]
    yield from render(head, rows, right=head)
    yield ""
    forecast = plan.target.forecast
    if plan.speeds[0].limit_tok_s is None:
        yield "no limit: this target's memory bandwidth is not known; a profile of your own can give bandwidth_gb_s"
    elif forecast is None:
        yield "no prediction: this target's profile assumes no efficiency"
    else:
        bounds = {speed.bound for speed in plan.speeds}
        yield "predicted, not measured:"
        if "memory" in bounds:
            yield f"  {forecast.efficiency:.0%} of the memory limit ({forecast.source})"
        if "instructions" in bounds:
            where = "in this power mode" if bounds == {"instructions"} else "where that is less"
            yield f"  {where} instructions bound it: {INSTRUCTIONS_PER_WEIGHT:g} per weight, 128 a clock and SM"
        if plan.speeds[0].j_per_token is not None:
            yield "  J/token: the power mode's whole budget / predicted tok/s"


def _show_seeds(plan: Plan) -> Iterator[str]:
    """The figure's values for this model and device as shares of their limits, in the mode that they are taken for."""
    if not plan.seeds or plan.mode != plan.target.device.default_mode:
        return
    yield ""
    yield f"AWQ paper's figure on {plan.seeds[0].device} (4 + 200 tokens; int4 with an fp16 head):"
    for seed in plan.seeds:
        share = seed.share_of_limit()
        value = "OOM" if share is None else f"{seed.tok_s:g} tok/s, {share:.0%} of the limit {seed.limit_tok_s():.1f}"
        yield f"  {BARS[seed.bar][0]:<10} {value}"


def show_matrix(plans: Iterable[Plan]) -> Iterator[str]:
    """One row a target: does it fit, how far, how fast."""
    plans = list(plans)
    head = ("target", "mode", "fits", "needs GiB", "of GiB", "context", "longest", "limit tok/s", "predicted tok/s",
            "J/token at most")
    first = plans[0]
    bits = "/".join(map(str, sorted({plan.kv_bits for plan in plans})))
    yield (f"{first.model}, {first.precision}, KV cache of {bits} bits; speed after {first.speeds[0].context} tokens, "
           "predicted, not measured")
    yield ""
    yield from render(head, map(_matrix_row, plans), right=head[3:])
    for plan in plans:
        yield from _show_seeds(plan)


def _matrix_row(plan: Plan) -> tuple[str, ...]:
    memory, speed = plan.memory, plan.speeds[0]
    available = "-" if memory.available is None else f"{memory.available / GIB:.1f}"
    fits = {True: "yes", False: "NO", None: "?"}[plan.fits]
    fast = (speed.limit_tok_s, speed.predicted_tok_s, speed.j_per_token) if plan.fits is not False else (None,) * 3
    return (plan.target.name, plan.mode or "", fits, f"{memory.needed / GIB:.1f}", available, str(plan.context),
            str(plan.longest_context or "-"), *map(_number, fast))


def _number(value: float | None) -> str:
    """Three significant digits; a dash for what is not known."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"
