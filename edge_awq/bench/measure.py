"""One engine through a protocol: warm-up, idle power, repeats, and the results that they amount to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from edge_awq import __version__
from edge_awq.bench.protocols import Case, Conditions, Protocol, deviation, fitting, invalid_reasons, per_token
from edge_awq.bench.results import Provenance, Result, form_words
from edge_awq.bench.worker import Candidate, EngineEnded, Sample, Worker
from edge_awq.power.base import NONE, Reading
from edge_awq.power.energy import NO_SOURCE, PhaseEnergy
from edge_awq.power.monitor import Monitor
from edge_awq.progress import Progress
from edge_awq.runner.board import THROTTLED, BoardState, describe_board, driver
from edge_awq.runner.energy import highest, readings_within, throttled
from edge_awq.runner.machine import describe_software

WARM_UP_STEPS = 4  # first use maps pages and sizes buffers


@dataclass(frozen=True)
class Entry:
    """One engine with the model that it runs.

    Attributes:
        context: tokens that it can hold at most.
        bundle_sha256: of the manifest; None for what is no bundle.
        variant: as in results.
    """

    candidate: Candidate
    precision: str
    context: int
    bundle_sha256: str | None = None
    variant: str | None = None

    @property
    def words(self) -> str:
        """For progress and reasons."""
        return f"{self.candidate.name} {form_words(self.precision, self.variant)}"


@dataclass(frozen=True)
class Subject:
    """What all entries share: the model, the device and how results name them; ``vocab_size`` bounds token ids."""

    device: str
    profile: str
    model: str
    vocab_size: int
    shape: str | None = None
    random_weights: bool | None = None


@dataclass(frozen=True)
class Settings:
    """How much is measured. threads: 0 for each engine's own choice; idle_s: of idle power, with a meter."""

    protocol: Protocol
    repeats: int = 5
    threads: int = 0
    idle_s: float = 3.0
    load_before: float | None = None
    root: Path = Path("/")
    seed: int = 0


@dataclass
class Outcome:
    """Results, and in words what was left out and why, and what the meter warned of."""

    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    meter_warnings: list[str] = field(default_factory=list)


Keep = Callable[[Outcome], None]  # given all that was measured so far, after every result


def keep_nothing(outcome: Outcome) -> None:
    """Of no use before the end."""


@dataclass(frozen=True)
class Bench:
    """What every measurement needs; ``start`` makes the engine's process."""

    subject: Subject
    settings: Settings
    meter: Monitor
    progress: Progress
    start: Callable[[Candidate, int, int], Worker] = Worker
    keep: Keep = keep_nothing

    def measure(self, entries: Sequence[Entry]) -> Outcome:
        """Every entry alone, one after the other, with the same prompts and the same KV cache."""
        cases, reasons = fitting(self.settings.protocol, min(entry.context for entry in entries))
        outcome = Outcome(left_out=list(reasons))
        for entry in entries if cases else ():
            self._measure_entry(entry, cases, outcome)
        if self.meter.choice.name != NONE:
            outcome.meter_warnings += [f"{code}: {text}" for code, text in self.meter.warnings]
        return outcome

    def _measure_entry(self, entry: Entry, cases: Sequence[Case], outcome: Outcome) -> None:
        """An engine that runs out of memory has that as its result; one that ends otherwise is left out."""
        context = max(case.context for case in cases)
        left = list(cases)
        try:
            with (self.start(entry.candidate, self.settings.threads, context) as worker,
                  self.progress.track(entry.words, len(cases) * self.settings.repeats) as advance):
                self._warm_up(worker, cases[0])
                idle_w = self.meter.measure_idle(self.settings.idle_s) if self.meter.ready() is not None else None
                for case in cases:
                    self._add(self._measure_case(entry, worker, case, (idle_w, advance)), outcome)
                    left.remove(case)
        except EngineEnded as ended:
            names = [f"{case.prompt_tokens} + {case.generated_tokens}" for case in left]
            if ended.oom:
                self._add(self._out_of_memory(entry, left[0]), outcome)
                names = names[1:]
            if names:
                outcome.left_out.append(f"{entry.words} at {', '.join(names)}: {ended.message}")

    def _add(self, result: Result, outcome: Outcome) -> None:
        outcome.results.append(result)
        self.keep(outcome)

    def _warm_up(self, worker: Worker, case: Case) -> None:
        worker.prefill(self._prompt(case))
        worker.decode(min(WARM_UP_STEPS, case.steps))

    def _prompt(self, case: Case) -> list[int]:
        """The same for every engine; low ids are special tokens in most vocabularies."""
        draw = random.Random(self.settings.seed)
        return [draw.randrange(3, min(self.subject.vocab_size, 1000)) for _ in range(case.prompt_tokens)]

    def _measure_case(self, entry: Entry, worker: Worker, case: Case,
                      shared: tuple[float | None, Callable[[int], None]]) -> Result:
        idle_w, advance = shared
        ids, prefills, decodes = self._prompt(case), [], []
        before = BoardState.now(self.settings.root)
        for _ in range(self.settings.repeats):
            prefills.append(worker.prefill(ids))
            decodes.append(worker.decode(case.steps))
            advance(1)
        after = BoardState.now(self.settings.root)
        changes = after.changed_since(before)
        energy = self.meter.energy([sample.span_ns for sample in decodes])
        prefill = self.meter.energy([sample.span_ns for sample in prefills])
        seen = readings_within(self.meter, (prefills[0].span_ns[0], decodes[-1].span_ns[1]))
        source = self.meter.source
        held_down = True if THROTTLED in dict(changes) else throttled(seen)
        conditions = Conditions(tuple(f"{text} ({code})" for code, text in changes), held_down,
                                self.settings.load_before, source.backend if source else None)
        reasons = invalid_reasons(conditions, energy)
        rates = [self.settings.protocol.decode_tok_s(sample) for sample in decodes]
        return Result(
            **self._names(entry, case), tok_s_median=median(rates), tok_s_mad=deviation(rates),
            **_joules(energy, case.steps * len(decodes)),
            j_per_prompt_token=per_token(prefill.energy_j, case.prompt_tokens * len(prefills)),
            oom=False, valid=not reasons, invalid_reasons=reasons,
            prefill_tok_s_median=median(map(_rate, prefills)), runtime=_runtime(entry, worker), idle_w=idle_w,
            peak_rss_bytes=worker.peak_rss_bytes, load_s=worker.load_s,
            mean_w=energy.mean_w, temp_max_c=_hottest_c([before, after, *seen]), throttled=held_down,
            provenance=self._provenance(entry, before, worker.versions, worker.engine_sha256),
        )

    def _out_of_memory(self, entry: Entry, case: Case) -> Result:
        return Result(**self._names(entry, case), tok_s_median=None, tok_s_mad=None, j_per_token=None, oom=True,
                      valid=True, provenance=self._provenance(entry, BoardState.now(self.settings.root), {}))

    def _names(self, entry: Entry, case: Case) -> dict[str, object]:
        return {"device": self.subject.device, "profile": self.subject.profile, "model": self.subject.model,
                "engine": entry.candidate.name, "precision": entry.precision, "variant": entry.variant,
                "shape": self.subject.shape,
                "protocol": self.settings.protocol.name, "prompt_tokens": case.prompt_tokens,
                "generated_tokens": case.generated_tokens, "repeats": self.settings.repeats}

    def _provenance(self, entry: Entry, state: BoardState, versions: dict[str, str | None],
                    engine_sha256: str | None = None) -> Provenance:
        root, source = self.settings.root, self.meter.source
        board = describe_board(root) or {}
        packages = {name.replace("-", "_"): version for name, version in versions.items()}
        return Provenance(
            utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), tool_version=__version__,
            software={**describe_software(), **packages}, clocks=state.clocks, driver=driver(root),
            power_mode=state.power_mode["name"] if state.power_mode else None, l4t=board.get("l4t"),
            meter=source.backend if source else None, meter_interval_s=source.interval_s if source else None,
            power_scope=source.total.scope if source else None,
            power_rails=source.total.rails if source else (),
            bundle_sha256=entry.bundle_sha256, engine_sha256=engine_sha256,
            random_weights=self.subject.random_weights,
        )


def _joules(energy: PhaseEnergy, tokens: int) -> dict[str, object]:
    """What a result says of the energy of ``tokens`` decode steps."""
    measured = energy.problem != NO_SOURCE
    return {"j_per_token": per_token(energy.energy_j, tokens), "j_per_token_problem": energy.problem,
            "j_per_token_above_idle": per_token(energy.above_idle_j, tokens), "energy_method": energy.method,
            "energy_samples": energy.samples if measured else None,
            "energy_coverage": energy.coverage if measured else None, "energy_max_gap_s": energy.max_gap_s}


def _hottest_c(seen: Sequence[BoardState | Reading]) -> float | None:
    return highest([value for one in seen for value in (one.temp_gpu_c, one.temp_tj_c)])


def _rate(sample: Sample) -> float:
    return sample.tokens / sample.wall_s


def _runtime(entry: Entry, worker: Worker) -> str | None:
    """What the engine runs on: its packages but itself, unless it has no other."""
    named = {name: version for name, version in worker.versions.items() if version}
    others = {name: version for name, version in named.items() if name != entry.candidate.name} or named
    return ", ".join(f"{name} {version}" for name, version in others.items()) or None
