"""Run directories with their samples: what happened when, and the power that was drawn."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.logread import read_run as read_log
from edge_awq.runner.powerlog import POWER
from edge_awq.runner.runlog import LOG, TOKENS


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, in seconds from its start."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        start: its first event: machine, model, power mode.
        requests: its request events.
        power_s, power_w: times and total power of the samples; empty where nothing was measured. A meter that was
            there first has samples from before the start.
        rails_w: power by rail, as many values as samples, None where a rail was not read.
        token_s: when each token was there.
        cut_off: the last line of the log is not whole.
    """

    path: Path
    start: dict[str, Any]
    phases: tuple[Phase, ...]
    requests: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    power_s: tuple[float, ...]
    power_w: tuple[float | None, ...]
    rails_w: dict[str, tuple[float | None, ...]]
    token_s: tuple[float, ...]
    cut_off: bool

    @property
    def power_scope(self) -> str | None:
        """What the total covers: "module", "gpu-board" ..."""
        return (self.start.get("sampler") or {}).get("total_scope")

    @property
    def power_mode(self) -> str | None:
        """The Jetson's power mode by name."""
        mode = self.start.get("power_mode")
        return mode.get("name") if isinstance(mode, dict) else mode


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        EdgeAwqError: as for `edge_awq.runner.logread.read_run`; or nothing ran, or a sample is no number.
    """
    try:
        return _read_run(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeAwqError(f"{folder}: the run is damaged ({error!r})",
                           hint="copy it again, or leave it out") from error


def find_runs(folder: Path) -> list[Path]:
    """The run directory itself, or those in the folder that ``edge-awq run --log`` was given."""
    inside = sorted(path.parent for path in folder.glob(f"*/{LOG}"))
    return inside if inside and not (folder / LOG).is_file() else [folder]


def _read_run(folder: Path) -> Run:
    log = read_log(folder)
    phases = tuple(Phase(event["name"], event["t_start_ns"] / 1e9, event["t_end_ns"] / 1e9) for event in log.phases)
    if not log.requests:
        raise EdgeAwqError(f"{folder}: the run holds no request", hint="it ended too early; leave it out")
    power = _read_csv(folder / POWER, "t_ns")
    rails = [name for name in (power[0] if power else ()) if name.endswith("_mw")]
    tokens = _read_csv(folder / TOKENS, "t_ns")
    return Run(
        path=folder, start=log.start, phases=phases, requests=log.requests, cut_off=log.cut_off,
        warnings=tuple(f"{event['code']}: {event['text']}" for event in log.warnings),
        power_s=tuple(int(row["t_ns"]) / 1e9 for row in power),
        power_w=tuple(_number(row.get("total_w")) for row in power),
        rails_w={name.removesuffix("_mw"): tuple(_scaled(row[name], 1e-3) for row in power) for name in rails},
        token_s=tuple(int(row["t_ns"]) / 1e9 for row in tokens))


def _read_csv(path: Path, key: str) -> list[dict[str, str]]:
    """The whole rows of a CSV file; none where there is no file. A last row that is cut off is left out."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None:  # killed before the first line was on file
            return []
        if key not in reader.fieldnames:
            raise EdgeAwqError(f"{path}: no column {key}", hint="copy the run again, or leave it out")
        return [row for row in reader if None not in row.values() and (row[key] or "").lstrip("-").isdigit()]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _scaled(text: str | None, factor: float) -> float | None:
    value = _number(text)
    return None if value is None else value * factor


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if value is not None]
