"""The gpu lane itself, where there is no GPU: its tests run over the driver made for tests, on fibers."""

import os
import subprocess
import sys
from pathlib import Path

from library_harness import DRIVER_VARIABLE, built_driver, built_library

from edge_awq.plugins import OVERRIDE

HERE = Path(__file__).resolve().parent
SMALL = "not large and not 4544 and not 50257 and not 71 and not 256-"


def environment():
    """That of a machine whose driver is the one made for tests."""
    return os.environ | {DRIVER_VARIABLE: str(built_driver()), OVERRIDE: str(built_library()),
                         "EDGE_AWQ_REQUIRE": "gpu"}


def test_kernel_tests_run():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_kernels.py", "-k", SMALL]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout
