"""Races that a GPU may lose and fibers hide: planted ones are found (plugins/common/races.h), the kernels have none."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import build_kernels, guarded, need_compiler

HERE = Path(__file__).resolve().parent
# As fibers_check.cpp numbers them, and what is found.
MEETINGS = {
    "barrier": None,
    "shuffle_alone": r"thread \d+ of block 0 reads what was written by thread \d+ of block 0, byte \d+ of shared",
    "write_after_read": "thread .* (reads|writes) what was (written|read) by thread",
    "copy": None,
    "copy_not_waited_for": r"thread .* is at what is being copied for thread",
    "copy_over_what_is_read": r"thread .* (is at what is being copied for|writes what was read by) thread",
    "additions": None,
    "read_during_additions": r"thread .* reads what was written by an addition",
    "counter": None,
    "no_counter": r"thread 0 of block 1 reads what was written by thread 0 of block 0, address \d+",
    "constant": None,
    "written_constant": r"thread (\d+) of block 0 reads, past what keeps caches in step, what was written by thread \1",
}
# Every kernel, threads in several orders.
EVERY_KERNEL = ("order_of_threads or test_ties or test_what_is_kept or test_the_first_of_equals_wins or "
                "test_integers or test_halves or test_a_wide_head_with_many_query_rows")

pytestmark = pytest.mark.skipif(
    "clang" in os.environ.get("CXX", ""), reason="races.h answers the calls that g++ makes")


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    need_compiler()
    built = build_kernels.compile_cpp(HERE / "fibers_check.cpp", tmp_path_factory.mktemp("races") / "checks.so", True)
    library = ctypes.CDLL(str(built))
    library.check_meeting.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("meeting", MEETINGS)
def test_planted_races_are_found(checks, meeting):
    values, results = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
    arrays = [guarded(each) for each in (values, results, np.zeros(1, np.uint32))]
    found = checks.check_meeting(list(MEETINGS).index(meeting), *(
        each.ctypes.data_as(ctypes.c_void_p) for each in arrays)).decode()
    assert found == "" if MEETINGS[meeting] is None else re.match(MEETINGS[meeting], found), found


@pytest.mark.slow
def test_kernels_have_none():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE, "-k", EVERY_KERNEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"EDGE_AWQ_RACES": "1"})
    assert done.returncode == 0, done.stdout
