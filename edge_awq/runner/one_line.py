"""A run in one line: speed, joules per token, share of the memory roof; what is missing says why."""

from __future__ import annotations

from edge_awq.power.energy import LOST, MIN_SAMPLES, TOO_SHORT
from edge_awq.runner.energy import RequestEnergy
from edge_awq.runner.metrics import RunSummary, share_of_roof


def speed_line(summary: RunSummary, energy: RequestEnergy, bandwidth_gb_s: float | None) -> str:
    """The line that ends ``edge-awq run``."""
    decode = f"{summary.decode_tok_s:.1f} tok/s" if summary.decode_tok_s else "one token"
    share = share_of_roof(summary.weight_bytes_per_token, summary.decode_tok_s, bandwidth_gb_s)
    roof = "memory roof not known" if share is None else f"{100 * share:.0f} % of the memory roof"
    prefill = "" if summary.prefill_tok_s is None else f" at {summary.prefill_tok_s:.1f} tok/s"
    reused = f", {summary.reused_tokens} of them reused" if summary.reused_tokens else ""
    return (f"[{summary.prompt_tokens} prompt tokens{reused}{prefill}, {summary.tokens} tokens at {decode}, "
            f"{_joules(energy)}, {roof}, load {summary.load_s:.2f} s, "
            f"peak memory {summary.peak_rss_bytes / 1e6:.0f} MB]")


def chat_line(summary: RunSummary, energy: RequestEnergy, context: int, finish_reason: str | None) -> str:
    """The line behind each answer of a chat; without a meter it is silent about energy.

    Args:
        context: tokens that the KV cache has room for.
        finish_reason: of the last token; None: the answer was broken off.
    """
    decode = f"{summary.tokens} tokens at {summary.decode_tok_s:.1f} tok/s" if summary.decode_tok_s else "one token"
    end = {None: ", broken off", "length": ", cut off"}.get(finish_reason, "")
    joules = f", {_joules(energy)}" if energy.meter is not None else ""
    used = min(summary.prompt_tokens + summary.tokens, context)
    return f"[{decode}{end}, first after {summary.ttft_s:.2f} s{joules}, {used} of {context} tokens of context]"


def _joules(energy: RequestEnergy) -> str:
    if energy.meter is None:
        return f"energy not measured ({energy.refusal})" if energy.refusal else "energy not measured"
    scope = energy.total_scope or "rails unknown"
    if energy.mj_per_gen_tok is not None and energy.tok_per_j is not None:
        return f"{energy.mj_per_gen_tok / 1e3:.3g} J/token ({scope}), {energy.tok_per_j:.3g} tok/s per W"
    if energy.total_j is not None:
        return f"{energy.total_j:.3g} J ({scope}) in all, decode alone too short to measure"
    reasons = {TOO_SHORT: f"{energy.samples_decode} samples, {MIN_SAMPLES} are needed; generate more tokens",
               LOST: f"the meter '{energy.meter}' was lost"}
    problem = energy.total_problem if energy.total_problem == LOST else energy.decode_problem or energy.total_problem
    return f"energy not measured ({reasons.get(problem, problem)})"
