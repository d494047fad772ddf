"""The builder: a bundle's graph is lowered, parsed and compiled for the GPU at hand, one engine for each kind of pass.

    decode   one token, or a few speculated ones; logits and the next token after each; norms inside the matmuls
    prefill  up to ``prefill_chunk`` tokens; logits of the newest

Both take the same weights as inputs and hold none, so a build reads no weights. A self-contained engine is a decode
pass with the weights inside: a second pass would hold them once more. Not yet verified on device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_awq.bundle import ENGINES, WEIGHTS, Bundle
from edge_awq.engine.trt.bindings import Toolkit, create
from edge_awq.engine.trt.build_progress import UNITS, deferred_interrupt, make_monitor
from edge_awq.engine.trt.names import IDS, LOGITS, LOWERING_VERSION, TOKENS
from edge_awq.engine.trt.passes import CACHE, DECODE, PREFILL
from edge_awq.engine.trt.plan_cache import EngineKey, engine_path, store_bytes, timing_cache_path, write_engine
from edge_awq.errors import EdgeAwqError
from edge_awq.memory import peak_rss_bytes
from edge_awq.progress import Progress

if TYPE_CHECKING:
    import onnx

    from edge_awq.engine.trt.lower import Lowered

OTHER_VERSIONS = "the plugin library and edge-awq must be of one version; run on the target cpu meanwhile"


@dataclass(frozen=True)
class Form:
    """What can be chosen about an engine.

    Attributes:
        kv_bits: of a cached key or value, 16; or 8, bytes with a scale per head and token.
        weights_inside: self-contained, without inputs for weights.
    """

    kv_bits: int
    weights_inside: bool = False

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"kv{self.kv_bits}" + ("_inside" if self.weights_inside else "")


@dataclass(frozen=True)
class CompileReport:
    """How a bundle was compiled.

    Attributes:
        file: relative to the bundle.
        passes: name of a pass -> tokens of one call at most.
        declined: what the lowering's rules left as it was, and why.
        peak_host_bytes: the most memory that this process had resident so far.
        forecast_bytes: what was forecast for it, by the reserves of the machine's profile.
    """

    file: str
    runtime: str
    runtime_version: str
    passes: dict[str, int]
    declined: tuple[str, ...]
    engine_bytes: int
    compile_s: float
    peak_host_bytes: int
    forecast_bytes: int


class Refused(EdgeAwqError):
    """TensorRT or a plugin does not take a graph."""


def compile_engine(bundle: Bundle, key: EngineKey, toolkit: Toolkit, progress: Progress, forecast_bytes: int,
                   form: Form) -> CompileReport:
    """Compile ``bundle`` for this machine and store the engine in it.

    Where the kernels take no prompt at once, that is noted, and prompts run in decode passes.

    Args:
        forecast_bytes: for the report.

    Raises:
        EdgeAwqError: TensorRT refuses the graph or runs out of memory.
        KeyboardInterrupt: Ctrl-C; nothing was stored.
    """
    started_s = time.monotonic()
    model, manifest = read_graph(bundle), bundle.manifest
    plans: dict[str, bytes] = {}
    passes: dict[str, Any] = {}
    timings = _Timings(timing_cache_path(bundle.path, key))
    for name, options in _passes(toolkit, manifest.prefill_chunk, form).items():
        lowered = _lower(model, options)
        if plans and lowered.most_rows <= passes[DECODE]["most_rows"]:
            continue
        try:
            plans[name] = _build(toolkit, _Work(name, lowered, bundle), timings, progress)
        except Refused as refusal:
            if name == DECODE:
                raise
            progress.note(f"no {name} engine, prompts run {passes[DECODE]['most_rows']} tokens at a time: {refusal}")
            continue
        passes[name] = _describe(name, lowered, options)
    path = engine_path(bundle.path, key)
    write_engine(path, plans, passes)
    return CompileReport(
        file=f"{ENGINES}/{path.name}",
        runtime="tensorrt",
        runtime_version=toolkit.version_text,
        passes={name: entry["most_rows"] for name, entry in passes.items()},
        declined=tuple(line for entry in passes.values() for line in entry["declined"]),
        engine_bytes=path.stat().st_size,
        compile_s=time.monotonic() - started_s,
        peak_host_bytes=peak_rss_bytes(),
        forecast_bytes=forecast_bytes,
    )


def shape_settings(bundle: Bundle, form: Form) -> dict[str, Any]:
    """What an engine depends on besides graph and machine: for its key."""
    manifest = bundle.manifest
    inside = {"weights": manifest.files[WEIGHTS]["sha256"]} if form.weights_inside else {}
    return {"lowering": LOWERING_VERSION, "context": manifest.context, "prefill_chunk": manifest.prefill_chunk,
            "outputs": [LOGITS, TOKENS], "kv_bits": form.kv_bits, **inside}


def read_graph(bundle: Bundle) -> onnx.ModelProto:
    """The canonical graph, without its external data.

    Raises:
        EdgeAwqError: it cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(bundle.graph, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise EdgeAwqError(f"{bundle.graph}: cannot be read ({error})", hint="build the bundle again") from error


def _passes(toolkit: Toolkit, prefill_chunk: int, form: Form) -> dict[str, Mapping[str, Any]]:
    """How the graph is lowered for each pass."""
    common = {"tensorrt_major": toolkit.major, "kv_bits": form.kv_bits}
    if form.weights_inside:
        return {DECODE: {**common, "choose": True, "weights_inside": True}}
    return {DECODE: {**common, "choose": True}, PREFILL: {**common, "most_rows": prefill_chunk, "last_logits": True}}


def _lower(model: onnx.ModelProto, options: Mapping[str, Any]) -> Lowered:
    from edge_awq.engine.trt.draft import LoweringOptions
    from edge_awq.engine.trt.lower import lower

    return lower(model, LoweringOptions(**options))


def _describe(name: str, lowered: Lowered, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the runtime must know about a pass, see edge_awq.engine.trt.passes."""
    weights = [[each.name, each.dtype, list(each.shape), list(each.parts)] for each in lowered.weights]
    return {"plan": name, "profile": 0, "most_rows": lowered.most_rows, "weights": weights,
            "last_logits": options.get("last_logits", False), "declined": list(lowered.declined)}


@dataclass(frozen=True)
class _Timings:
    """TensorRT's timings of kernels, kept from build to build; a file that it does not take is begun anew."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""

    def write(self, data: bytes) -> None:
        store_bytes(self.path, data)


@dataclass(frozen=True)
class _Work:
    """One engine to build: of which pass, from what, for which bundle."""

    name: str
    lowered: Lowered
    bundle: Bundle


def _build(toolkit: Toolkit, work: _Work, timings: _Timings, progress: Progress) -> bytes:
    """The serialized engine of a lowered graph."""
    trt, builder = toolkit.trt, create(toolkit, "Builder")
    network = builder.create_network(_network_flags(toolkit))
    parser = trt.OnnxParser(network, toolkit.log)  # lives as long as the network, which reads its constants
    if not parser.parse(work.lowered.model.SerializeToString(), str(work.bundle.graph)):  # weights lie beside it
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise Refused(f"{toolkit.title} does not take the graph: {said or toolkit.why()}",
                      hint=OTHER_VERSIONS)
    config = builder.create_builder_config()
    _configure(toolkit, config, network)
    _add_profile(builder, config, network, work)
    cache = config.create_timing_cache(timings.read())
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
        toolkit.log.forget()  # of a failure to come, this is not the reason
    with progress.track(f"compile {work.name}", UNITS) as advance, deferred_interrupt() as interrupt:
        if (monitor := make_monitor(trt, advance, lambda: interrupt.pressed)) is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if interrupt.pressed:
        raise KeyboardInterrupt
    if plan is None:
        raise _build_failure(toolkit)
    timings.write(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _build_failure(toolkit: Toolkit) -> EdgeAwqError:
    said = toolkit.why()
    if any(sign in " ".join(toolkit.log.errors).lower() for sign in ("out of memory", "outofmemory", "insufficient")):
        return EdgeAwqError(f"out of memory while TensorRT compiled the graph ({said})",
                            hint="close what else uses memory (a desktop, a browser) and run edge-awq compile again")
    return Refused(f"{toolkit.title} cannot compile the graph: {said or 'it does not say why'}",
                   hint=OTHER_VERSIONS)


def _network_flags(toolkit: Toolkit) -> int:
    """Types come from the graph (10 and later); 8.6 must be told that the batch is a dimension."""
    flags = toolkit.trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    return 1 << int(getattr(flags, name))


def _configure(toolkit: Toolkit, config: Any, network: Any) -> None:
    """10 and later: the cache in place. 8.6: halves, packed bytes as what it calls INT8, and neither cuBLAS nor cuDNN.

    8.6 loads these two for its plugins otherwise, whose handles ours do not want: memory and start-up time. And a
    profile is for several contexts, see passes.py, which 8.6 must be told.
    """
    trt = toolkit.trt
    if toolkit.major >= 10:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        return
    config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.INT8)
    config.set_tactic_sources(0)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]  # a cache of bytes is one, too
    for tensor in tensors:
        if tensor.dtype == trt.DataType.INT8:
            tensor.dynamic_range = (-128.0, 127.0)  # without one it asks for a calibration


def _add_profile(builder: Any, config: Any, network: Any, work: _Work) -> None:
    """1 token to the most, a cache of any size up to the context; timed for what is common."""
    rows, context = work.lowered.most_rows, work.bundle.manifest.context
    usual = 1 if work.name == DECODE else rows
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name == IDS:
            profile.set_shape(IDS, (1, 1), (1, usual), (1, rows))
        elif tensor.name.startswith(CACHE):
            one, heads, _, *size = tensor.shape  # scales have no more
            profile.set_shape(tensor.name, (one, heads, 1, *size), (one, heads, context, *size),
                              (one, heads, context, *size))
    if config.add_optimization_profile(profile) < 0:
        raise Refused(f"TensorRT does not take the shapes: {rows} tokens, a cache of {context}",
                      hint="build the bundle for a target with a smaller context")
