"""An engine process and a meter that follow a script on one made-up clock, so that every number is exact."""

from edge_awq.bench.measure import Bench, Entry, Settings, Subject
from edge_awq.bench.protocols import PROTOCOLS
from edge_awq.bench.worker import Candidate, EngineEnded, Sample
from edge_awq.power.base import MeterChoice, Reading, Source, Total
from edge_awq.power.energy import NO_SOURCE, PhaseEnergy, phase_energy
from edge_awq.progress import Quiet

STEP_S, TOKEN_S = 0.25, 0.125  # of a decode step and of a prompt's token, exact in binary


class Clock:
    """Nanoseconds that pass only by work."""

    def __init__(self):
        self.now_ns = 1_000_000_000_000

    def pass_s(self, seconds):
        began = self.now_ns
        self.now_ns += round(seconds * 1e9)
        return began, self.now_ns


class ScriptedWorker:
    """``step_s``: of every decode in turn, warm-up excluded; ``ends_at``: the prompt whose prefill ends it."""

    def __init__(self, clock, step_s=(), ends_at=None, oom=False):
        self.clock, self.step_s, self.ends_at, self.oom = clock, list(step_s), ends_at, oom
        self.load_s, self.versions, self.peak_rss_bytes = 1.5, {"edge-awq": "0.1.0", "onnxruntime": "1.23.0"}, 1000
        self.engine_sha256 = "0" * 64
        self.prompts, self.closed, self.warm = [], False, False

    def prefill(self, ids):
        if self.ends_at == len(ids) and self.warm:
            raise EngineEnded("edge-awq: killed", oom=self.oom)
        self.prompts.append(ids)
        span = self.clock.pass_s(TOKEN_S * len(ids))
        return Sample(len(ids), TOKEN_S * len(ids), 0.0, (), span)

    def decode(self, count):
        step_s = self.step_s.pop(0) if self.step_s and self.warm else STEP_S
        self.warm = True
        steps = [step_s] * (count - 1) + [10 * step_s]  # one slow step, which a median does not see
        return Sample(count, sum(steps), 0.0, tuple(steps), self.clock.pass_s(sum(steps)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


class NoMeter:
    """Measures nothing, as --meter none."""

    source, choice, warnings = None, MeterChoice("none"), ()

    def ready(self):
        return None

    def readings(self):
        return []

    def energy(self, spans):
        return PhaseEnergy(problem=NO_SOURCE)


class SteadyMeter(NoMeter):
    """Always ``watts``, a sample every ``interval_s`` of the made-up clock."""

    def __init__(self, clock, watts=20.0, interval_s=0.125, throttled=False):
        self.source = Source("rapl", None, ("package",), Total("cpu-package", ("package",)), interval_s)
        self.clock, self.watts, self.throttled = clock, watts, throttled

    def ready(self):
        return self.source

    def measure_idle(self, seconds):
        self.clock.pass_s(seconds)
        return 5.0

    def readings(self):
        step_ns = round(self.source.interval_s * 1e9)
        return [Reading(t, t, (self.watts * 1e3,), throttled=self.throttled)
                for t in range(999_000_000_000, self.clock.now_ns + 2 * step_ns, step_ns)]

    def energy(self, spans):
        return phase_energy(self.source, self.readings(), spans)


def entry(precision="w4a16", context=4096, engine="edge-awq"):
    return Entry(Candidate(engine, "model"), precision, context)


def bench(worker, meter, tmp_path, protocol="figure", **settings):
    chosen = Settings(PROTOCOLS[protocol], root=tmp_path, **settings)
    return Bench(Subject("laptop", "cpu", "llama-2-7b", 32000), chosen, meter, Quiet(), lambda *_: worker)
