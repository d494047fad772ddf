"""The run log: JSON Lines that survive a kill, and one CSV row per token.

    DIR/<utc>-<short id>/run.jsonl    one event a line: start, phase ..., request ..., warning ..., summary
    DIR/<utc>-<short id>/power.csv    every sample of the meter, as it came; none without a meter
    DIR/<utc>-<short id>/tokens.csv   rep,idx,t_ns,phase,token_id; written when the run is over

Units stand in the keys; null is "not known" or "not measured", never 0. Times ``t_ns`` count nanoseconds of
CLOCK_MONOTONIC from the start of the run; the start event anchors them to UTC. Prompts, answers and token ids are not
logged unless asked for, nor are user and host names.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_awq import __version__
from edge_awq.bundle import write_text
from edge_awq.errors import EdgeAwqError
from edge_awq.memory import peak_rss_bytes
from edge_awq.power.energy import LOST
from edge_awq.power.monitor import Monitor
from edge_awq.runner.board import BoardState, describe_board, driver
from edge_awq.runner.energy import RequestEnergy, highest, measure_request, readings_within, spans_of, throttled
from edge_awq.runner.generate import Token
from edge_awq.runner.machine import describe_cpu, describe_software, in_container
from edge_awq.runner.metrics import (
    RunSummary,
    decode_s,
    decode_tok_s,
    prefill_tok_s,
    roof_tok_s,
    share_of_roof,
)
from edge_awq.runner.powerlog import POWER, PowerLog

SCHEMA = "edge-awq.run/1"
LOG, TOKENS = "run.jsonl", "tokens.csv"
# What a start event says beside schema, run_id and anchor; null until something knows it.
_START_KEYS = ("git_commit", "board", "cpu", "gpu", "software", "container", "power_mode", "clocks", "model", "engine",
               "sampler", "sampling", "settings")
_SPOILED = ("mode_changed", "clocks_changed", "throttled", LOST)  # warnings that make a run's numbers worthless


class RunLog:
    """One run's directory, made at once; every event is on file before the call returns.

    Attributes:
        path: the run's directory.
        run_id: its name.
        energy: of the last request.
    """

    def __init__(self, folder: Path, details: Mapping[str, Any], started_ns: int | None = None,
                 clock_ns: Callable[[], int] = time.monotonic_ns, meter: Monitor | None = None) -> None:
        """Begin a log in ``folder``.

        Args:
            details: what the start event says, of _START_KEYS; the machine is described here.
            started_ns: when the run started, by ``clock_ns``; None for now.
            meter: a meter that is ready, or None.

        Raises:
            EdgeAwqError: the directory cannot be made; later, from most methods, that a line cannot be written.
        """
        self._clock_ns = clock_ns
        self._started_ns = clock_ns() if started_ns is None else started_ns
        anchor = self._anchor()
        utc = anchor["utc"].replace("-", "").replace(":", "").split(".")[0]
        self.run_id = f"{utc}Z-{secrets.token_hex(3)}"
        self.path = folder / self.run_id
        with _writing(self.path, "choose a folder that you may write to"):
            self.path.mkdir(parents=True)
            self._file = (self.path / LOG).open("ab", buffering=0)  # a line is one write: whole, and on file at once
        self._rows: list[tuple[int, int, int, str]] = []
        self._requests = 0
        self._codes: set[str] = set()
        self.energy = RequestEnergy()
        self._meter = meter
        self._root = Path(meter.choice.root if meter else "/")
        self._before = BoardState.now(self._root)
        machine = {"board": describe_board(self._root), "cpu": describe_cpu(), "gpu": _describe_gpu(meter, self._root),
                   "software": describe_software(), "container": in_container(), "power_mode": self._before.power_mode,
                   "clocks": self._before.clocks, "sampler": _describe_sampler(meter)}
        known = {**dict.fromkeys(_START_KEYS), **machine, **details}
        if unknown := sorted(set(known) - set(_START_KEYS)):
            raise ValueError(f"not part of {SCHEMA}: {', '.join(unknown)}")
        self.event("start", schema=SCHEMA, run_id=self.run_id, tool_version=__version__, anchor=anchor, **known)
        self._told = 0
        self._tell_of_meter()
        measuring = meter is not None and meter.source is not None
        with _writing(self.path / POWER):
            self._power = PowerLog(self.path, meter, self._started_ns) if measuring else None

    def event(self, kind: str, /, **values: Any) -> None:
        """Append one line."""
        line = json.dumps({"event": kind, "t_ns": self._now_ns(), **values}, ensure_ascii=False, allow_nan=False)
        with _writing(self.path / LOG):
            self._file.write(line.encode() + b"\n")

    def phase(self, name: str, span_ns: tuple[int, int], tokens: int = 0, rep: int | None = None) -> None:
        """A stretch of the run, from and to ``t_ns``: load, prefill or decode."""
        self.event("phase", name=name, rep=rep, t_start_ns=span_ns[0], t_end_ns=span_ns[1], tokens=tokens)

    def text(self, prompt: str, answer: str) -> None:
        """What was asked and answered; only for those who want it in the log."""
        self.event("text", rep=self._requests - 1, prompt=prompt, answer=answer)

    def warn(self, code: str, text: str) -> None:
        """Something that a reader of the numbers should know."""
        self._codes.add(code)
        self.event("warning", code=code, text=text)

    def record(self, tokens: Iterable[Token], prompt_tokens: int, context_start: int = 0) -> Iterator[Token]:
        """Pass a stream of tokens on and log the request that it is, also when it is broken off.

        Args:
            prompt_tokens: that prefill runs, so without those of the prompt that are in the KV cache already.
            context_start: tokens that are in the KV cache already, those of the prompt among them.
        """
        rep, self._requests = self._requests, self._requests + 1
        start_ns = self._now_ns()
        seen: list[Token] = []
        self._enter("prefill")
        try:
            for token in tokens:
                if not seen:
                    self.phase("prefill", (start_ns, start_ns + _ns(token.logits_s)), prompt_tokens, rep)
                    self._enter("decode")
                seen.append(token)
                yield token
        finally:
            self._enter("")
            if seen:
                span_ns = (start_ns + _ns(seen[0].t_s), start_ns + _ns(seen[-1].t_s))
                self.phase("decode", span_ns, len(seen) - 1, rep)
            self._rows += [(rep, token.index, start_ns + _ns(token.t_s), "decode" if token.index else "prefill")
                           for token in seen]
            self._end_request(rep, start_ns, seen, (prompt_tokens, context_start))

    def _end_request(self, rep: int, start_ns: int, seen: Sequence[Token], counts: tuple[int, int]) -> None:
        """Log a request that is over and began at ``start_ns`` of the run; ``counts``: tokens of prompt and cache."""
        started_ns = self._started_ns + start_ns
        self.energy = energy = measure_request(self._meter, started_ns, seen, counts[0])
        self._tell_of_meter()
        for code, text in energy.warnings():
            self.warn(code, f"request {rep}, {text}")
        inside = readings_within(self._meter, spans_of(started_ns, seen)[2]) if seen else []
        known = asdict(energy)
        power = {name: known.pop(name) for name in ("mean_w", "max_w", "idle_w")}
        temperatures = {"gpu_max": highest([reading.temp_gpu_c for reading in inside]),
                        "tj_max": highest([reading.temp_tj_c for reading in inside])}
        self.event("request", rep=rep, **_request(seen, *counts), energy=known, power=power, temp_c=temperatures,
                   throttled=throttled(inside))

    def summary(self, summary: RunSummary, bandwidth_gb_s: float | None = None) -> None:
        """The run's numbers, without its text, and how the board was at the end.

        Args:
            bandwidth_gb_s: of the memory that weights are read from; None: not known.
        """
        after = BoardState.now(self._root)
        for code, text in after.changed_since(self._before):
            self.warn(code, text)
        self._tell_of_meter()
        if self._power is not None and self._power.failure is not None:
            self.warn("power_log_cut", f"{self._power.failure}: power.csv lacks the rest of the samples")
        values = summary.to_dict()
        del values["text"]
        share = share_of_roof(summary.weight_bytes_per_token, summary.decode_tok_s, bandwidth_gb_s)
        reasons = sorted(self._codes.intersection(_SPOILED))
        self.event("summary", reps=self._requests, **values,
                   bw_ceiling_tok_s=roof_tok_s(summary.weight_bytes_per_token, bandwidth_gb_s),
                   bw_achieved_pct=None if share is None else share * 100, power_mode=after.power_mode,
                   clocks=after.clocks, temp_c={"gpu": after.temp_gpu_c, "tj": after.temp_tj_c}, valid=not reasons,
                   invalid_reasons=reasons)

    def _enter(self, phase: str) -> None:
        if self._power is not None:
            self._power.phase = phase

    def _tell_of_meter(self) -> None:
        """Log what the meter warned of since the last time."""
        warnings = self._meter.warnings if self._meter is not None else ()
        for code, text in warnings[self._told :]:
            self.warn(code, text)
        self._told = len(warnings)

    def close(self) -> None:
        """Write tokens.csv; the log cannot be used afterwards."""
        if self._power is not None:
            self._power.close()
        self._file.close()
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("rep", "idx", "t_ns", "phase", "token_id"))
        writer.writerows((*row, "") for row in self._rows)
        with _writing(self.path / TOKENS):
            write_text(self.path / TOKENS, table.getvalue())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _now_ns(self) -> int:
        return self._clock_ns() - self._started_ns

    def _anchor(self) -> dict[str, Any]:
        """The start of the run on three clocks; boottime goes on while the machine sleeps."""
        since_start_ns = self._now_ns()
        utc = datetime.fromtimestamp(time.time() - since_start_ns / 1e9, timezone.utc).replace(tzinfo=None)
        boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - since_start_ns
        return {"utc": utc.isoformat(timespec="microseconds") + "Z", "monotonic_ns": self._started_ns,
                "boottime_ns": boottime_ns}


@contextmanager
def _writing(path: Path, hint: str = "free space on that disk, or choose another folder") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeAwqError(f"{path}: the run log cannot be written ({error.strerror})", hint=hint) from error


def _request(tokens: Sequence[Token], prompt_tokens: int, context_start: int) -> dict[str, Any]:
    first, last = (tokens[0], tokens[-1]) if tokens else (None, None)
    return {
        "n_prompt": prompt_tokens,
        "n_gen": len(tokens),
        "n_ctx_start": context_start,
        "finish_reason": last.finish_reason if last else None,
        "ttft_ms": first.t_s * 1e3 if first else None,
        "prefill_s": first.logits_s if first else None,
        "prefill_tok_s": prefill_tok_s(tokens, prompt_tokens),
        "decode_s": decode_s(tokens) if first else None,
        "decode_tok_s": decode_tok_s(tokens),
        "itl_ms": _between_tokens_ms(tokens),
        "e2e_s": last.t_s if last else None,
        "mem": {"peak_rss_bytes": peak_rss_bytes(), "peak_gpu_bytes": None, "unified": None},
    }


def _describe_sampler(meter: Monitor | None) -> dict[str, Any] | None:
    source = meter.source if meter is not None else None
    if source is None:
        return None
    return {
        "backend": source.backend, "backend_version": source.version, "interval_asked_s": meter.choice.interval_s,
        "interval_real_s": source.interval_s, "rails": source.rails, "total_rails": source.total.rails,
        "total_scope": source.total.scope, "other_totals": [asdict(total) for total in source.other_totals],
        "counter": source.counter_min_s is not None,
    }


def _describe_gpu(meter: Monitor | None, root: Path) -> dict[str, Any] | None:
    details = meter.source.details if meter is not None and meter.source is not None else {}
    version = details.get("driver") or driver(root)
    return {"name": details.get("device"), "driver": version} if details or version else None


def _between_tokens_ms(tokens: Sequence[Token]) -> dict[str, float | None]:
    """Milliseconds from one token to the next: percentiles (linear between samples) and the longest."""
    if len(tokens) < 2:
        return dict.fromkeys(("p50", "p95", "p99", "max"))
    gaps_ms = np.diff([token.t_s for token in tokens]) * 1e3
    p50, p95, p99, longest = (float(value) for value in np.percentile(gaps_ms, (50, 95, 99, 100)))
    return {"p50": p50, "p95": p95, "p99": p99, "max": longest}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
