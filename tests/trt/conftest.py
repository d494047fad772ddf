"""The trt lane: skipped where TensorRT or a GPU is missing, a failure there if EDGE_AWQ_REQUIRE names it."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from edge_awq.engine.trt.bindings import load_toolkit  # noqa: E402
from edge_awq.engine.trt.cuda import open_cuda  # noqa: E402
from edge_awq.errors import EdgeAwqError  # noqa: E402


@pytest.fixture(scope="session")
def toolkit():
    """TensorRT with our plugins, on a machine whose GPU answers."""
    try:
        open_cuda().close()
        return load_toolkit()
    except EdgeAwqError as error:
        reason = f"{error.message}: {error.hint}"
    if "trt" in os.environ.get("EDGE_AWQ_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)
