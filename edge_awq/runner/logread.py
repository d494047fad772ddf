"""Reading run logs back: whole ones, and what a kill left of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.powerlog import POWER
from edge_awq.runner.runlog import LOG, SCHEMA

COLUMNS = ("rep", "n_prompt", "n_gen", "prefill_tok_s", "decode_tok_s", "ttft_ms", "prefill_j", "decode_j",
           "mj_per_gen_tok", "tok_per_j", "mean_w", "total_scope")  # a request's numbers in a table
_WHERE = "edge-awq run BUNDLE --log DIR writes one folder per run below DIR"


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        start: the start event; requests, phases, warnings: theirs in order; summary: None where the run did not end.
        cut_off: the last line is not whole.
        power_rows: samples in power.csv, None without that file.
    """

    path: Path
    start: dict[str, Any]
    phases: tuple[dict[str, Any], ...]
    requests: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None
    cut_off: bool
    power_rows: int | None

    @property
    def whole(self) -> bool:
        """The run came to its end, and the log holds all of it."""
        return not self.cut_off and self.summary is not None


def read_run(path: Path | str) -> Run:
    """Read a run directory, or the run.jsonl in it.

    Raises:
        EdgeAwqError: not a run directory, empty, damaged before its end, or of another schema.
    """
    folder = Path(path).parent if Path(path).name == LOG else Path(path)
    file = folder / LOG
    if not file.is_file():
        runs = sorted(inner.parent.name for inner in folder.glob(f"*/{LOG}")) if folder.is_dir() else []
        raise EdgeAwqError(f"{folder} is not a run directory: it has no {LOG}",
                           hint=f"it holds runs: give one of them, such as {folder / runs[-1]}" if runs else _WHERE)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    events, cut = _parse(file, lines)
    if not events:
        raise EdgeAwqError(f"{file} is empty: the run ended before it began", hint="run it again")
    start = events[0]
    if start.get("event") != "start" or start.get("schema") != SCHEMA:
        raise EdgeAwqError(f"{file}: schema {start.get('schema')!r}, this edge-awq reads {SCHEMA!r}",
                           hint="read it with the version that wrote it: its line 'tool_version' names it")
    kinds = {kind: tuple(event for event in events if event["event"] == kind)
             for kind in ("phase", "request", "warning", "summary")}
    summary = kinds["summary"][-1] if kinds["summary"] else None
    rows = _count_rows(folder / POWER)
    return Run(folder, start, kinds["phase"], kinds["request"], kinds["warning"], summary, cut, rows)


def _parse(file: Path, lines: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """Events, and whether the last line is cut off; any other line must be whole."""
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            _check_event(event)
            events.append(event)
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            if number == len(lines):
                return events, True
            raise EdgeAwqError(f"{file}: line {number} is damaged ({type(error).__name__})",
                               hint="copy the run directory again from where it was written") from error
    return events, False


# What readers take from an event, and from the tables in it, without asking whether it is there.
_NEEDED = {
    "request": ("rep", "n_prompt", "n_gen", "prefill_tok_s", "decode_tok_s", "ttft_ms"),
    "warning": ("code", "text"),
    "summary": ("valid", "invalid_reasons"),
}
_NEEDED_TABLES = {"request": {"energy": ("prefill_j", "decode_j", "mj_per_gen_tok", "tok_per_j", "total_scope"),
                              "power": ("mean_w",)}}


def _check_event(event: Any) -> None:
    """Raises KeyError or TypeError where something that readers need is missing."""
    kind = event["event"]
    for key in _NEEDED.get(kind, ()):
        event[key]
    for table, keys in _NEEDED_TABLES.get(kind, {}).items():
        for key in keys:
            event[table][key]


def _count_rows(path: Path) -> int | None:
    return max(len(path.read_text(encoding="utf-8").splitlines()) - 1, 0) if path.is_file() else None


def show_run(run: Run) -> Iterator[str]:
    """Lines that tell a person what was run, where, how fast and for how many joules."""
    start = run.start
    yield f"run         {start['run_id']}  {start['anchor']['utc']}"
    yield f"model       {_join(start['model'], 'name', 'precision', 'bundle_sha256')}"
    yield f"engine      {_join(start['engine'], 'runtime', 'runtime_version', 'target', 'context', 'kv_bits')}"
    for name, table, keys in (("board", start["board"], ("model", "module", "l4t", "jetpack")),
                              ("power mode", start["power_mode"], ("name", "id")),
                              ("processor", start["cpu"], ("name", "usable_cpus")),
                              ("gpu", start["gpu"], ("name", "driver"))):
        yield f"{name:<11} {_join(table, *keys)}"
    sampler = start["sampler"]
    yield ("meter       " + ("not measured" if sampler is None else
           f"{sampler['backend']}, every {sampler['interval_real_s']:g} s, total = {sampler['total_scope']}: "
           f"{' + '.join(sampler['total_rails'])}, {run.power_rows} samples"))
    if run.phases:
        yield "phases      " + ", ".join(f"{phase['name']} {(phase['t_end_ns'] - phase['t_start_ns']) / 1e9:.2f} s"
                                         for phase in run.phases)
    for request in run.requests:
        yield f"request {request['rep']}   " + ", ".join(
            f"{name} {_short(value)}" for name, value in request_row(request).items() if name != "rep")
    for warning in run.warnings:
        yield f"warning     {warning['code']}: {warning['text']}"
    if run.summary is not None and not run.summary["valid"]:
        yield f"not valid   {', '.join(run.summary['invalid_reasons'])}"
    if not run.whole:
        yield "cut off     the run did not end; what stands above is what it had written"


def request_row(request: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one request that belong into a table; units stand in the names."""
    known = {**request, **request["energy"], **request["power"]}
    return {name: known[name] for name in COLUMNS}


def _join(table: dict[str, Any] | None, *keys: str) -> str:
    parts = [f"{key} {table[key]}" for key in keys if table.get(key) is not None] if table else []
    return ", ".join(parts) or "not known"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
