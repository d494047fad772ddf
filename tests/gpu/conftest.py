"""The gpu lane: skipped where there is no GPU, a failure there if EDGE_AWQ_REQUIRE names it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "plugins"), str(TESTS.parent / "scripts")]

from cuda_driver import Gpu, GpuError  # noqa: E402
from device_ops import Device  # noqa: E402
from edge_awq.errors import EdgeAwqError  # noqa: E402


def _missing(reason):
    if "gpu" in os.environ.get("EDGE_AWQ_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def opened_device():
    try:
        gpu = Gpu()
    except GpuError as error:
        _missing(f"no GPU: {error}")
    try:
        return Device(gpu)
    except EdgeAwqError as error:
        _missing(f"{error.message}: {error.hint}")


@pytest.fixture
def device(opened_device):
    yield opened_device
    opened_device.free_all()


@pytest.fixture(scope="session")
def seed():
    """Another one in every run; $EDGE_AWQ_SEED repeats one."""
    return int(os.environ.get("EDGE_AWQ_SEED", np.random.SeedSequence().entropy % 2**32))


@pytest.fixture
def rng(seed, request):
    print(f"EDGE_AWQ_SEED={seed}")  # shown when the test fails
    return np.random.default_rng([seed, *request.node.name.encode()])
