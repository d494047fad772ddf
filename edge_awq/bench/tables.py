"""The report's tables: rows of text, the same for Markdown, CSV and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_awq.bench.panels import Panel, Slot
from edge_awq.bench.results import Result, StoredResult
from edge_awq.bench.runs import Run
from edge_awq.plan.figure import BARS

Row = tuple[str, ...]

FIGURE_HEAD = ("device", "model", "bar", "measured tok/s", "MAD", "J/token", "joules of", "AWQ paper tok/s",
               "paper's share of limit", "memory limit tok/s", "measured share of limit", "predicted tok/s")
RESULTS_HEAD = ("device", "power mode", "model", "engine", "precision", "protocol", "tokens", "tok/s", "MAD", "J/token",
                "above idle", "joules of", "valid", "file")
RUNS_HEAD = ("run", "model", "power mode", "prompt", "generated", "prefill tok/s", "decode tok/s", "mJ/token",
             "joules of", "warnings")
UNKNOWN = ""


def figure_rows(panels: Sequence[Panel]) -> Iterator[Row]:
    """One row a bar; measured, the paper's and predicted each in columns of their own."""
    for panel in panels:
        for model, slots in panel.groups.items():
            for slot in slots:
                yield (panel.title, model, BARS[slot.bar][0], *_bar_cells(slot))


def _bar_cells(slot: Slot) -> Row:
    measured, paper = slot.measured, slot.paper
    tok_s = measured.tok_s_median if measured else None
    limit = slot.limit_tok_s
    share = tok_s / limit if tok_s and limit else None
    return (
        "OOM" if measured and measured.oom else number(tok_s), number(measured.tok_s_mad if measured else None),
        number(measured.j_per_token if measured else None), joules_of(measured) if measured else UNKNOWN,
        UNKNOWN if paper is None else "OOM" if paper.tok_s is None else f"{paper.tok_s:g}",
        percent(paper.share_of_limit() if paper else None), number(limit), percent(share), number(slot.predicted_tok_s))


def result_rows(stored: Sequence[StoredResult]) -> Iterator[Row]:
    """Every result that was given, invalid ones with their reasons."""
    for one in stored:
        result = one.result
        valid = "yes" if result.valid else f"no: {'; '.join(result.invalid_reasons)}"
        yield (result.device, result.provenance.power_mode or UNKNOWN, result.model, result.engine, result.form,
               result.protocol, f"{result.prompt_tokens} + {result.generated_tokens}",
               "OOM" if result.oom else number(result.tok_s_median), number(result.tok_s_mad),
               number(result.j_per_token), number(result.j_per_token_above_idle), joules_of(result), valid,
               one.path.name)


def run_rows(runs: Sequence[Run]) -> Iterator[Row]:
    """One row a request of a run."""
    for run in runs:
        model = run.start.get("model") or {}
        warnings = [*run.warnings, *(["the log is cut off"] if run.cut_off else [])]
        for request in run.requests:
            energy = request.get("energy") or {}
            yield (run.path.name, str(model.get("name", UNKNOWN)), run.power_mode or UNKNOWN,
                   str(request["n_prompt"]), str(request["n_gen"]), number(request.get("prefill_tok_s")),
                   number(request.get("decode_tok_s")), number(energy.get("mj_per_gen_tok")),
                   str(energy.get("total_scope") or UNKNOWN), "; ".join(warnings))


def joules_of(result: Result) -> str:
    """What a result's joules cover, such as "module"; joules of different scopes cannot be compared."""
    return UNKNOWN if result.j_per_token is None else result.provenance.power_scope or "unknown rails"


def number(value: float | None) -> str:
    """Four significant digits at most, empty for what is not known; never a zero in its place."""
    return UNKNOWN if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"
