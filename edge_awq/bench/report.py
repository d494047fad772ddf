"""``edge-awq report``: results become the AWQ figure again, tables, and one page that holds it all."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_awq import __version__
from edge_awq.bench.curves import context_curves
from edge_awq.bench.panels import Panel, make_panels
from edge_awq.bench.plots import draw_context, draw_figure, draw_power, plotting
from edge_awq.bench.results import StoredResult, read_results
from edge_awq.bench.runs import Run, find_runs, known, read_run
from edge_awq.bench.tables import FIGURE_HEAD, RESULTS_HEAD, RUNS_HEAD, Row, figure_rows, result_rows, run_rows
from edge_awq.errors import EdgeAwqError
from edge_awq.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
PAGE = "report.html"
NOTES = (
    "Figure protocol: batch 1, a prompt of 4 tokens, 200 generated, median latency of a step.",
    "Outlines: the AWQ paper (arXiv 2306.00978), where 'own' is TinyChat; int4 groups of 128 (Falcon 64), fp16 head; "
    "its shares are of the limit of those bytes. OOM there holds for the memory of its boards.",
    "Memory limit: bandwidth / bytes that a token reads after 104 tokens, in the format that this edge-awq builds for "
    "the device (int4 with an int4 head, or fp16).",
    "Hatched: predicted, a stated share of that limit, never measured. Each profile gives the share and its source.",
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
svg { max-width: 100%; height: auto; } table { border-collapse: collapse; font-size: 13px; }
div { overflow-x: auto; } th, td { padding: 2px 8px; border-bottom: 1px solid #ddd; }
th, td { text-align: left; white-space: nowrap; }
"""


@dataclass(frozen=True)
class Table:
    """A titled table, written as NAME.md and NAME.csv."""

    name: str
    title: str
    head: Row
    rows: tuple[Row, ...]


def write_report(inputs: Sequence[Path], output: Path) -> list[Path]:
    """Write pictures (PNG and SVG), tables (Markdown and CSV) and the page into ``output``; returns the files.

    Args:
        inputs: result files and run directories; none draws the paper's values, limits and predictions.

    Raises:
        EdgeAwqError: an input cannot be read, or the results cannot be compared. Nothing is written then.
    """
    plotting()  # without matplotlib nothing else matters
    stored, runs = read_inputs(inputs)
    panels = make_panels(stored)
    if output.exists() and not output.is_dir():
        raise EdgeAwqError(f"{output} is a file", hint="give a folder with -o")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".report-") as folder:
        written = _write_all(Path(folder), stored, runs, panels)
        for path in written:
            shutil.move(path, output / path.name)
    return [output / path.name for path in written]


def read_inputs(inputs: Sequence[Path]) -> tuple[list[StoredResult], list[Run]]:
    """Result files and run directories."""
    stored, runs = [], []
    for path in inputs:
        if path.is_dir():
            runs += map(read_run, find_runs(path))
        elif path.is_file():
            stored += read_results(path)
        else:
            raise EdgeAwqError(f"{path}: no such file or folder", hint="give result files and run directories")
    return stored, runs


def _write_all(folder: Path, stored: list[StoredResult], runs: list[Run], panels: Sequence[Panel]) -> list[Path]:
    tables = [Table("figure", "The figure in numbers", FIGURE_HEAD, tuple(figure_rows(panels)))]
    if stored:
        tables.append(Table("results", "Results", RESULTS_HEAD, tuple(result_rows(stored))))
    if runs:
        tables.append(Table("runs", "Runs", RUNS_HEAD, tuple(run_rows(runs))))
    pictures = {"figure": draw_figure(panels), "context": draw_context(context_curves(stored))}
    pictures |= {f"power-{run.path.name}": draw_power(run) for run in runs
                 if any(map(known, (run.power_w, *run.rails_w.values())))}
    written = [path for name, picture in pictures.items() for path in _save(folder / name, picture)]
    written += [path for table in tables for path in _write_table(folder, table)]
    page = folder / PAGE
    page.write_text(_page(folder, list(pictures), tables, _left_out(stored)), encoding="utf-8")
    return [*written, page]


def _save(stem: Path, picture: Figure) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        picture.savefig(path, dpi=DPI, metadata=metadata)
    plotting().close(picture)
    return paths


def _write_table(folder: Path, table: Table) -> list[Path]:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
    (folder / f"{table.name}.csv").write_text(text.getvalue(), encoding="utf-8")
    notes = "".join(f"- {note}\n" for note in NOTES) if table.name == "figure" else ""
    words = f"# {table.title}\n\n{notes}\n{markdown(table.head, table.rows)}"
    (folder / f"{table.name}.md").write_text(words, encoding="utf-8")
    return [folder / f"{table.name}.csv", folder / f"{table.name}.md"]


def _left_out(stored: Sequence[StoredResult]) -> list[str]:
    """A note on the results that no picture shows."""
    invalid = sum(not one.result.valid for one in stored)
    words = f"{invalid} of {len(stored)} results are invalid: they stand in the table of results alone, with reasons."
    return [words] if invalid else []


def _page(folder: Path, pictures: Sequence[str], tables: Sequence[Table], notes: Sequence[str]) -> str:
    """One page without a reference to anything outside it."""
    parts = [f"<h1>edge-awq {__version__}: tokens/s and joules</h1>",
             "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in (*NOTES, *notes)) + "</ul>"]
    parts += [f"<div>{_inline(folder / f'{name}.svg', number)}</div>" for number, name in enumerate(pictures)]
    parts += [f"<h2>{html.escape(table.title)}</h2><div>{_html_table(table)}</div>" for table in tables]
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>edge-awq report</title>'
            f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n")


def _inline(path: Path, number: int) -> str:
    """An SVG file as an element; its ids get a prefix, because two pictures in one page would share them."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg"):]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}-", text)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>{rows}</table>"
