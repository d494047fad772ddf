"""The run log: JSON Lines that survive a kill, and one CSV row per token.

    DIR/<utc>-<short id>/run.jsonl    one event a line: start, phase ..., request ..., warning ..., summary
    DIR/<utc>-<short id>/tokens.csv   rep,idx,t_ns,phase,token_id; written when the run is over

Units stand in the keys; null is "not known" or "not measured", never 0. Times ``t_ns`` count nanoseconds of
CLOCK_MONOTONIC from the start of the run; the start event anchors them to UTC. Prompts, answers and token ids are not
logged, nor are user and host names.
"""

from __future__ import annotations

import csv
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_awq import __version__
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import Token
from edge_awq.runner.machine import describe_cpu, describe_software, in_container
from edge_awq.runner.metrics import RunSummary, decode_s, decode_tok_s, peak_rss_bytes, prefill_tok_s

SCHEMA = "edge-awq.run/1"
LOG, TOKENS = "run.jsonl", "tokens.csv"
# What a start event says beside schema, run_id and anchor; null until something knows it.
_START_KEYS = ("git_commit", "board", "cpu", "gpu", "software", "container", "power_mode", "clocks", "model", "engine",
               "sampler", "sampling", "settings")
_ENERGY_KEYS = ("prefill_j", "decode_j", "total_j", "above_idle_j", "mj_per_prompt_tok", "mj_per_gen_tok", "tok_per_j",
                "method", "samples_prefill", "samples_decode", "max_gap_s", "coverage")


class RunLog:
    """One run's directory, made at once; every event is on file before the call returns.

    Attributes:
        path: the run's directory.
        run_id: its name.
    """

    def __init__(self, folder: Path, details: Mapping[str, Any], started_ns: int | None = None,
                 clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin a log in ``folder``.

        Args:
            details: what the start event says, of _START_KEYS; the machine is described here.
            started_ns: when the run started, by ``clock_ns``; None for now.

        Raises:
            EdgeAwqError: the directory cannot be made.
        """
        self._clock_ns = clock_ns
        self._started_ns = clock_ns() if started_ns is None else started_ns
        anchor = self._anchor()
        utc = anchor["utc"].replace("-", "").replace(":", "").split(".")[0]
        self.run_id = f"{utc}Z-{secrets.token_hex(3)}"
        self.path = folder / self.run_id
        try:
            self.path.mkdir(parents=True)
            self._file = (self.path / LOG).open("ab", buffering=0)  # a line is one write: whole, and on file at once
        except OSError as error:
            raise EdgeAwqError(f"{self.path}: the run log cannot be written ({error.strerror})",
                               hint="choose a folder that you may write to") from error
        self._rows: list[tuple[int, int, int, str]] = []
        self._requests = 0
        machine = {"cpu": describe_cpu(), "software": describe_software(), "container": in_container()}
        known = {**dict.fromkeys(_START_KEYS), **machine, **details}
        if unknown := sorted(set(known) - set(_START_KEYS)):
            raise ValueError(f"not part of {SCHEMA}: {', '.join(unknown)}")
        self.event("start", schema=SCHEMA, run_id=self.run_id, tool_version=__version__, anchor=anchor, **known)

    def event(self, kind: str, /, **values: Any) -> None:
        """Append one line."""
        line = json.dumps({"event": kind, "t_ns": self._now_ns(), **values}, ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def phase(self, name: str, span_ns: tuple[int, int], tokens: int = 0, rep: int | None = None) -> None:
        """A stretch of the run, from and to ``t_ns``: load, prefill or decode."""
        self.event("phase", name=name, rep=rep, t_start_ns=span_ns[0], t_end_ns=span_ns[1], tokens=tokens)

    def warn(self, code: str, text: str) -> None:
        """Something that a reader of the numbers should know."""
        self.event("warning", code=code, text=text)

    def record(self, tokens: Iterable[Token], prompt_tokens: int, context_start: int = 0) -> Iterator[Token]:
        """Pass a stream of tokens on and log the request that it is, also when it is broken off.

        Args:
            context_start: tokens that were in the KV cache before the prompt.
        """
        rep, self._requests = self._requests, self._requests + 1
        start_ns = self._now_ns()
        seen: list[Token] = []
        try:
            for token in tokens:
                if not seen:
                    self.phase("prefill", (start_ns, start_ns + _ns(token.logits_s)), prompt_tokens, rep)
                seen.append(token)
                yield token
        finally:
            if seen:
                span_ns = (start_ns + _ns(seen[0].t_s), start_ns + _ns(seen[-1].t_s))
                self.phase("decode", span_ns, len(seen) - 1, rep)
            self._rows += [(rep, token.index, start_ns + _ns(token.t_s), "decode" if token.index else "prefill")
                           for token in seen]
            self.event("request", rep=rep, **_request(seen, prompt_tokens, context_start))

    def summary(self, summary: RunSummary) -> None:
        """The run's numbers, without its text."""
        values = summary.to_dict()
        del values["text"]
        self.event("summary", reps=self._requests, **values, bw_ceiling_tok_s=None, bw_achieved_pct=None, valid=True,
                   invalid_reasons=[])

    def close(self) -> None:
        """Write tokens.csv; the log cannot be used afterwards."""
        self._file.close()
        with (self.path / TOKENS).open("w", encoding="ascii", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("rep", "idx", "t_ns", "phase", "token_id"))
            writer.writerows((*row, "") for row in self._rows)

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
        "energy": dict.fromkeys(_ENERGY_KEYS),
        "power": dict.fromkeys(("mean_w", "max_w", "idle_w")),
        "mem": {"peak_rss_bytes": peak_rss_bytes(), "peak_gpu_bytes": None, "unified": None},
        "temp_c": dict.fromkeys(("gpu_max", "tj_max")),
        "throttled": None,
    }


def _between_tokens_ms(tokens: Sequence[Token]) -> dict[str, float | None]:
    """Milliseconds from one token to the next: percentiles (linear between samples) and the longest."""
    if len(tokens) < 2:
        return dict.fromkeys(("p50", "p95", "p99", "max"))
    gaps_ms = np.diff([token.t_s for token in tokens]) * 1e3
    p50, p95, p99, longest = (float(value) for value in np.percentile(gaps_ms, (50, 95, 99, 100)))
    return {"p50": p50, "p95": p95, "p99": p99, "max": longest}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
