"""onnxruntime sessions over a graph in memory whose large constants lie in a bundle's weights file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_awq.engine.ort.runtime import errors, onnxruntime
from edge_awq.errors import EdgeAwqError

MAX_THREADS = 1024  # starting so many takes seconds, and many more takes minutes
SPIN_US = 1000  # spans the gaps between operators: 8 to 14 % more tokens/s, on an idle and on a busy machine
BOUNDED_SINCE = (1, 26)  # the first onnxruntime that takes a limit; others spin for many milliseconds
SILENT = 4  # severity from which onnxruntime writes to the terminal: what stops it comes as an exception as well
# What refuses a graph or its constants; onnxruntime's exceptions have no base of their own.
LOAD_ERRORS = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile,
               errors.NotImplemented, errors.RuntimeException)


@dataclass(frozen=True)
class SessionSettings:
    """How a session uses the machine.

    Attributes:
        threads: threads of one operator; None takes one per physical core.
        spin_us: microseconds that an idle thread waits actively before it sleeps; 0 for none. Without a limit a waiting
            thread keeps its core from everything else, several times slower on a busy machine; so an onnxruntime that
            takes none gets 0.
    """

    threads: int | None = None
    spin_us: int = SPIN_US

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise EdgeAwqError(f"threads = {self.threads} is not possible",
                               hint=f"use 1 to {MAX_THREADS}, or leave it out for one per core")
        if self.spin_us < 0:
            raise EdgeAwqError(f"spin_us = {self.spin_us} is not possible", hint="use 0 or more microseconds")


def create_session(graph: bytes, weights: Path, settings: SessionSettings) -> onnxruntime.InferenceSession:
    """A session of a serialized graph whose external constants are ranges of the file ``weights``.

    Raises:
        EdgeAwqError: onnxruntime refuses the graph, or its constants are missing.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or physical_cores()
    options.inter_op_num_threads = 1
    # A pattern holds one more block of activations per input shape, 20 MB for the second chunk of a prompt at 1.1 B.
    options.enable_mem_pattern = False
    options.log_severity_level = SILENT
    folder = weights.resolve().parent  # onnxruntime follows no link out of the folder it is given
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    spins = settings.spin_us > 0 and can_bound_spinning(onnxruntime.__version__)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    if spins:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(settings.spin_us))
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        version = onnxruntime.__version__
        raise EdgeAwqError(f"{weights.parent}: onnxruntime {version} cannot load the compiled graph: {error}",
                           hint="build the bundle again, with the onnxruntime that is installed here") from error


def can_bound_spinning(version: str) -> bool:
    """Whether an onnxruntime of ``version`` ("1.26.0") can be told how long idle threads may spin."""
    return tuple(int(part) for part in version.split(".")[:2]) >= BOUNDED_SINCE


def physical_cores() -> int:
    """Physical cores among those this process may use; hardware threads of one core count once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(cpu))
    return len(cores)
