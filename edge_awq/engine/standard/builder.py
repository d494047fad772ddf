"""The process that build.py starts: ``python -m edge_awq.engine.standard.builder RUNTIME GRAPH ENGINE MOST_TOKENS``.

It answers one line of JSON. Builders may crash while the interpreter ends, so it leaves without that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from edge_awq.engine.standard.build import BUILDERS, EngineReport
from edge_awq.errors import EdgeAwqError
from edge_awq.lazy import require

OTHER_ENGINES = "use the engines with edge-awq's plugins"


def build(runtime: str, graph: Path, engine: Path, most_tokens: int) -> EngineReport:
    """Parse, build and write; see build.build_engine."""
    trt = load(runtime)
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    # From TensorRT 11 on every network is strongly typed, and the flag means nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise EdgeAwqError(f"{graph}: {runtime} {trt.__version__} cannot read it: {words}", hint=OTHER_ENGINES)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, most_tokens))
    started_s = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - started_s
    if plan is None:
        raise EdgeAwqError(f"{graph}: {runtime} {trt.__version__} cannot build it: {'; '.join(log.errors)}",
                           hint=OTHER_ENGINES)
    partial = engine.with_name(engine.name + ".partial")
    partial.write_bytes(plan)
    partial.replace(engine)
    layers = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    return EngineReport(runtime, trt.__version__, plan.nbytes, build_s, dict(layers))


def load(runtime: str) -> ModuleType:
    """The runtime's Python module.

    Raises:
        EdgeAwqError: it is not installed, or older than the ops of the lowering.
    """
    module, extra, first = BUILDERS[runtime]
    trt = require(module, extra)
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < first:
        raise EdgeAwqError(f"{runtime} {trt.__version__} knows no engine without plugins",
                           hint=f"install {runtime} {'.'.join(map(str, first))} or newer, or {OTHER_ENGINES}")
    return trt


def _profile(builder: Any, network: Any, most_tokens: int) -> Any:
    """One token up to ``most_tokens``, and as many logits."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [1], [1], [most_tokens])
        elif -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, (1, 1), (1, 1), (1, most_tokens))
    return profile


class _Log:
    """Keeps the runtime's errors; the rest of what it says is dropped."""

    def __init__(self, trt: ModuleType) -> None:
        errors: list[str] = []
        severity = trt.ILogger.Severity

        class Logger(trt.ILogger):
            def log(self, level: Any, message: str) -> None:
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    errors.append(message)

        self.errors = errors
        self.logger = Logger()


def main(arguments: list[str]) -> None:
    """Answer on standard output, for build.build_engine."""
    runtime, graph, engine, most_tokens = arguments
    try:
        answer = dataclasses.asdict(build(runtime, Path(graph), Path(engine), int(most_tokens)))
    except EdgeAwqError as error:
        answer = {"error": error.message, "hint": error.hint}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
