"""onnxruntime sessions over a graph in memory whose large constants lie in a bundle's weights file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from edge_awq.errors import EdgeAwqError

SILENT = 4  # severity from which onnxruntime writes to the terminal: what stops it comes as an exception as well
# What refuses a graph or its constants; onnxruntime's exceptions have no base of their own.
LOAD_ERRORS = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile,
               errors.NotImplemented, errors.RuntimeException)


@dataclass(frozen=True)
class SessionSettings:
    """How a session uses the machine.

    Attributes:
        threads: threads of one operator; None takes one per physical core.
        spinning: idle threads wait actively. A few percent faster on an idle machine and several times slower on a
            busy one, because a waiting thread keeps its core from everything else.
    """

    threads: int | None = None
    spinning: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EdgeAwqError(f"threads = {self.threads} is not possible", hint="use 1 or more, or leave it out")


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
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        version = onnxruntime.__version__
        raise EdgeAwqError(f"{weights.parent}: onnxruntime {version} cannot load the compiled graph: {error}",
                           hint="build the bundle again, with the onnxruntime that is installed here") from error


def physical_cores() -> int:
    """Physical cores among those this process may use; hardware threads of one core count once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(cpu))
    return len(cores)
