"""The process that build.py starts: ``python -m edge_awq.engine.standard.builder RUNTIME GRAPH ENGINE PROFILES``.

It answers lines of JSON: how far it is, then a report or an error. Builders may crash while the interpreter ends, so it
leaves without that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_awq.engine.standard.build import EngineReport, Profile
from edge_awq.engine.standard.runtimes import OTHER_ENGINES, find_by_name, load
from edge_awq.engine.trt.bindings import Toolkit, create
from edge_awq.engine.trt.build_progress import make_monitor
from edge_awq.errors import EdgeAwqError
from edge_awq.memory import peak_rss_bytes
from edge_awq.progress import Advance


def build(toolkit: Toolkit, graph: Path, engine: Path, profiles: Sequence[Profile], advance: Advance) -> EngineReport:
    """Parse, build and write; see build.build_engine."""
    trt, builder = toolkit.trt, create(toolkit, "Builder")
    # From TensorRT 11 on every network is strongly typed, and the flag means nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, toolkit.log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise EdgeAwqError(f"{graph}: {toolkit.title} cannot read it: {words}", hint=OTHER_ENGINES)
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: or a CUDA graph may not be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, network, profile))
    config.progress_monitor = make_monitor(trt, advance, lambda: False)
    started_s = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - started_s
    if plan is None:
        raise EdgeAwqError(f"{graph}: {toolkit.title} cannot build it: {'; '.join(toolkit.log.errors)}",
                           hint=OTHER_ENGINES)
    partial = engine.with_name(engine.name + ".partial")
    partial.write_bytes(plan)
    partial.replace(engine)
    layers = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    return EngineReport(toolkit.name, trt.__version__, plan.nbytes, build_s, peak_rss_bytes(), dict(layers))


def _profile(builder: Any, network: Any, wanted: Profile) -> Any:
    """One token up to the most, and logits."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [1], [1], [wanted.most_logits])
        elif -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, (1, 1), (1, wanted.usual_tokens), (1, wanted.most_tokens))
    return profile


def main(arguments: list[str]) -> None:
    """Answer on standard output, for build.build_engine."""
    name, graph, engine, wanted = arguments
    try:
        profiles = [Profile(**profile) for profile in json.loads(wanted)]
        toolkit = load(find_by_name(name))
        answer = dataclasses.asdict(build(toolkit, Path(graph), Path(engine), profiles, _tell_progress))
    except EdgeAwqError as error:
        answer = {"error": error.message, "hint": error.hint}
    _tell(answer)
    os._exit(0)


def _tell_progress(units: int) -> None:
    _tell({"advance": units})


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
