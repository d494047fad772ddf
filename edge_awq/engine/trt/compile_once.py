"""An engine is compiled only where none is there that fits, memory suffices, and no other process is at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_awq.bundle import Bundle
from edge_awq.detect import Machine, detect_target
from edge_awq.engine.trt.forecast import Wanted, check_memory
from edge_awq.engine.trt.plan_cache import (
    EngineKey,
    StoredEngine,
    compiling,
    engine_path,
    find_engine,
    read_engine,
    stale,
)
from edge_awq.progress import Progress, Quiet

if TYPE_CHECKING:
    from edge_awq.engine.trt.build import CompileReport


@dataclass(frozen=True)
class Request:
    """The engine that ``bundle`` shall have for ``machine``.

    Attributes:
        key: what it is stored under.
        wanted: what it takes memory for.
        fresh: compile it even where it is there.
    """

    bundle: Bundle
    machine: Machine
    key: EngineKey
    wanted: Wanted
    fresh: bool = False


def find_or_compile(request: Request, progress: Progress,
                    compile_engine: Callable[[int], CompileReport]) -> tuple[StoredEngine, CompileReport | None]:
    """The engine, and how it was compiled; None: it was there already. Says why one is compiled.

    Args:
        compile_engine: compiles and stores it; takes the forecast of host memory, in bytes.

    Raises:
        EdgeAwqError: memory does not suffice, the bundle cannot be written to, or what ``compile_engine`` raises.
    """
    bundle, path = request.bundle, engine_path(request.bundle.path, request.key)
    if not request.fresh and (stored := find_engine(path, progress)):
        return stored, None
    for line in stale(bundle.path, request.key):
        progress.note(line)
    forecast_bytes = check_memory(bundle, detect_target(request.machine), progress, request.wanted)
    with compiling(path.parent, progress):
        if not request.fresh and (stored := find_engine(path, Quiet())):
            return stored, None
        report = compile_engine(forecast_bytes)
    return read_engine(path), report
