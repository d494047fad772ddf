"""``edge-awq bench``: what was asked for becomes engines that can be compared, and they are measured."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_awq.bench.engines import ENGINES
from edge_awq.bench.measure import Bench, Entry, Keep, Outcome, Settings, Subject, keep_nothing
from edge_awq.bench.protocols import find_protocol
from edge_awq.bench.results import BASELINE_ENGINE, FIGURE_PROTOCOL, OWN_ENGINE
from edge_awq.bench.shape_models import make_shape_models, parse_precisions
from edge_awq.bench.worker import Candidate
from edge_awq.bundle import MANIFEST, Bundle, hash_file
from edge_awq.detect import detect_target, read_machine
from edge_awq.engine import load_runtime
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.speed import KV_BITS
from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import start_meter
from edge_awq.progress import Progress, Quiet
from edge_awq.runner.machine import describe_cpu
from edge_awq.runner.session import measuring_device

PEERS = tuple(name for name in ENGINES if name not in (OWN_ENGINE, BASELINE_ENGINE))
PEER_PRECISION = "int4"
USUAL_KV_BITS = KV_BITS["tensorrt"][0]
_METER_OPTIONS = {"meter": "name", "meter_interval": "interval_s", "meter_root": "root"}
SHAPES_OWN = "shape"  # as a baseline: the checkpoint that the bundles of a shape were made from


@dataclass(frozen=True)
class BenchRequest:
    """One benchmark as it was asked for.

    Attributes:
        bundles: of one model, at most one of each precision.
        baseline: the checkpoint that transformers runs in float16; None: no baseline.
        peers: engine of another program and its model file.
        threads: CPU threads; None for each engine's own choice.
        shape: the entry of shapes.toml that the bundles were made from with random weights.
        kv_bits: of a cached key or value, as for `edge_awq.runner.session.load`, on GPUs; None: as usual.
        plugin_free: run bundles for GPUs without edge-awq's plugins.
    """

    bundles: tuple[Path, ...]
    protocol: str = "figure"
    repeats: int = 5
    baseline: Path | None = None
    peers: tuple[tuple[str, Path], ...] = ()
    threads: int | None = None
    shape: str | None = None
    meter: MeterChoice = field(default_factory=MeterChoice)
    kv_bits: int | None = None
    plugin_free: bool = False

    @property
    def load_options(self) -> dict[str, Any]:
        """How bundles are to be loaded, where that is not as usual."""
        chosen = {"kv_bits": self.kv_bits, "plugin_free": self.plugin_free}
        return {name: value for name, value in chosen.items() if value not in (None, False, USUAL_KV_BITS)}

    @property
    def variant(self) -> str | None:
        """The same in words, for results."""
        words = [name.replace("_", "-") + ("" if value is True else f" {value}")
                 for name, value in self.load_options.items()]
        return ", ".join(words) or None


def request_from_options(bundles: tuple[Path, ...], progress: Progress, **options: Any) -> BenchRequest:
    """From the options of ``edge-awq bench``; makes the models of a shape that was asked for by name.

    Raises:
        EdgeAwqError: nothing to measure, or options that do not go together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    peers = tuple(map(_parse_peer, given.pop("peers", ())))
    shape, precision, target = given.get("shape"), given.pop("precision", None), given.pop("target", None)
    if shape is None and (precision or target):
        raise EdgeAwqError(f"--{'precision' if precision else 'target'} says what to make of a shape, and there is "
                           "no --shape", hint="a bundle has a precision and a target of its own")
    if shape is not None and bundles:
        raise EdgeAwqError(f"--shape {shape} and {bundles[0]} exclude each other",
                           hint="measure them in two commands")
    find_protocol(given.get("protocol", FIGURE_PROTOCOL))
    if shape is None and given.get("baseline") == SHAPES_OWN:
        raise EdgeAwqError("--baseline without a checkpoint goes with --shape only", hint="give --baseline CHECKPOINT")
    if shape is not None:
        models = make_shape_models(shape, parse_precisions(precision), target or "cpu", progress)
        bundles = models.bundles
        if given.get("baseline") == SHAPES_OWN:
            given["baseline"] = models.checkpoint
    if not bundles:
        raise EdgeAwqError("there is nothing to measure", hint="give one or more bundles, or --shape NAME")
    if "baseline" in given:
        given["baseline"] = Path(given["baseline"])
    meter = {name: given.pop(option) for option, name in _METER_OPTIONS.items() if option in given}
    return BenchRequest(bundles, peers=peers, **given, meter=MeterChoice(device=measuring_device(bundles[0]), **meter))


def _parse_peer(peer: str) -> tuple[str, Path]:
    name, equals, model = peer.partition("=")
    if not (equals and model):
        raise EdgeAwqError(f"peer '{peer}': no model is given",
                           hint=f"write --peer NAME=MODEL, such as {PEERS[0]}=model.gguf")
    return name, Path(model)


@dataclass(frozen=True)
class Prepared:
    """A benchmark that can begin; the machine's load is the one before anything was started."""

    subject: Subject
    settings: Settings
    entries: tuple[Entry, ...]
    meter: MeterChoice


def run_bench(request: BenchRequest, progress: Progress | None = None, keep: Keep = keep_nothing) -> Outcome:
    """Measure everything that ``request`` names; ``keep`` as for `measure_prepared`.

    Raises:
        EdgeAwqError: it cannot be compared, a meter asked for by name does not work, or nothing could be measured.
    """
    return measure_prepared(prepare(request), progress or Quiet(), keep)


def prepare(request: BenchRequest) -> Prepared:
    """Open and check everything that ``request`` names.

    Raises:
        EdgeAwqError: it cannot be compared.
    """
    protocol = find_protocol(request.protocol)
    bundles = [Bundle.open(path) for path in request.bundles]
    check_comparable(bundles)
    device = measuring_device(request.bundles[0])
    _check_form(request, bundles)
    entries = tuple(_entries(request, bundles, device))
    load_before = os.getloadavg()[0]
    settings = Settings(protocol, request.repeats, request.threads or 0, load_before=load_before,
                        root=Path(request.meter.root))
    return Prepared(_subject(request, bundles[0], device), settings, entries, request.meter)


def measure_prepared(prepared: Prepared, progress: Progress, keep: Keep = keep_nothing) -> Outcome:
    """Measure it, with a meter of its own.

    Args:
        keep: called after every result with all that was measured so far.

    Raises:
        EdgeAwqError: a meter asked for by name does not work, or nothing could be measured.
    """
    with start_meter(prepared.meter) as meter:
        if meter.asked_for:
            meter.ready()  # it must measure: say so before anything long begins
        bench = Bench(prepared.subject, prepared.settings, meter, progress, keep=keep)
        outcome = bench.measure(prepared.entries)
    if not outcome.results:
        raise EdgeAwqError(f"nothing was measured: {'; '.join(outcome.left_out)}",
                           hint="take a bundle with a longer context, or another protocol or engine")
    return outcome


def check_comparable(bundles: Sequence[Bundle]) -> None:
    """All of one model and one kind of device, and of different precisions.

    Raises:
        EdgeAwqError: two differ in what they must share.
    """
    first, seen = bundles[0], {}
    for bundle in bundles:
        for what in ("source", "revision", "config", "target"):
            mine, other = getattr(bundle.manifest, what), getattr(first.manifest, what)
            if mine != other:
                values = "" if what == "config" else f": {other} and {mine}"
                raise EdgeAwqError(f"{first.path} and {bundle.path} differ in their {what}{values}; their speeds say "
                                   "nothing about each other", hint="measure bundles of one model in one command")
        precision = bundle.manifest.precision
        if precision in seen:
            raise EdgeAwqError(f"{seen[precision]} and {bundle.path} are both {precision}; the results could not be "
                               "told apart", hint="measure them in two commands, with a result file each")
        seen[precision] = bundle.path


def _check_form(request: BenchRequest, bundles: Sequence[Bundle]) -> None:
    """Every bundle can run as it is to be run, as far as that can be told before it is opened."""
    for bundle in bundles:
        load_runtime(bundle.manifest.runtime, request.plugin_free)
        if request.kv_bits not in (None, *KV_BITS[bundle.manifest.runtime]):
            raise EdgeAwqError(f"--kv-bits {request.kv_bits}: {bundle.path} runs on {bundle.manifest.runtime}, which "
                               "has no such KV cache", hint="leave it out, or build for a GPU: edge-awq build --target")
        if request.plugin_free and "kv_bits" in request.load_options:
            raise EdgeAwqError(f"--kv-bits {request.kv_bits} and --plugin-free exclude each other",
                               hint="without plugins keys and values have 16 bits")


def _entries(request: BenchRequest, bundles: Sequence[Bundle], device: str) -> Iterator[Entry]:
    context = min(bundle.manifest.context for bundle in bundles)
    for bundle in bundles:
        own = Candidate(OWN_ENGINE, bundle.path, device=device, options=request.load_options)
        yield Entry(own, bundle.manifest.precision, bundle.manifest.context, hash_file(bundle.path / MANIFEST),
                    request.variant)
    if request.baseline is not None:
        _check_baseline(request.baseline, bundles[0])
        yield Entry(Candidate(BASELINE_ENGINE, request.baseline, device=device), "fp16", context)
    for name, model in request.peers:
        _check_peer(name, model)
        yield Entry(Candidate(name, model, device=device), PEER_PRECISION, context)


def _check_baseline(checkpoint: Path, bundle: Bundle) -> None:
    """It is a checkpoint of the bundles' shape, and transformers is there."""
    import dataclasses
    import json

    from edge_awq.model.config import parse_config
    from edge_awq.model.family import find_family

    file = checkpoint / "config.json"
    if not file.is_file() or (checkpoint / MANIFEST).is_file():
        found = "a bundle" if file.is_file() else "no config.json in it"
        raise EdgeAwqError(f"baseline '{checkpoint}': no checkpoint, {found}",
                           hint="give the Hugging Face folder that the bundles were built from")
    table = json.loads(file.read_text(encoding="utf-8"))
    config = dataclasses.asdict(parse_config(table, find_family(table)))
    if json.loads(json.dumps(config)) != bundle.manifest.config:
        raise EdgeAwqError(f"baseline '{checkpoint}' is not the model of {bundle.path}: their configurations differ",
                           hint="give the checkpoint that the bundles were built from")
    _check_installed(BASELINE_ENGINE, "the baseline")


def _check_peer(name: str, model: Path) -> None:
    if name not in PEERS:
        raise EdgeAwqError(f"peer '{name}' is not known", hint=f"known: {', '.join(PEERS)}")
    _check_installed(name, f"peer '{name}'")
    if not model.exists():
        raise EdgeAwqError(f"peer '{name}': there is no model {model}", hint="give the file or folder that it loads")


def _check_installed(name: str, words: str) -> None:
    engine = ENGINES[name]
    for module in (engine.module, *(("torch",) if name == BASELINE_ENGINE else ())):
        if importlib.util.find_spec(module) is None:
            package = module if name == BASELINE_ENGINE else engine.packages[0]
            raise EdgeAwqError(f"{words} needs the Python package '{package}', which is not installed",
                               hint=f"pip install {package}, or leave it out")


def _subject(request: BenchRequest, bundle: Bundle, device: str) -> Subject:
    manifest, machine = bundle.manifest, read_machine(Path(request.meter.root))
    if device == "cpu":
        words, profile = machine.model or describe_cpu()["name"] or describe_cpu()["arch"], manifest.target
    else:
        words = machine.model if machine.is_tegra else next((gpu.name for gpu in machine.gpus), None) or "GPU"
        profile = detect_target(machine).name
    return Subject(words, profile, request.shape or manifest.source, bundle.check_config()["vocab_size"],
                   shape=request.shape, random_weights=True if request.shape else None)
