"""The restated TensorRT interfaces against the headers in $TENSORRT_INCLUDE_DIR: several folders, as in PATH."""

import ctypes
import os
import subprocess

import pytest
from kernel_harness import PLUGINS, need_compiler

HEADERS = [folder for folder in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if folder]
# All that the headers want of CUDA, where CUDA is not installed.
CUDA_TYPES = """#pragma once
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
"""


@pytest.mark.parametrize("folder", HEADERS or [None])
def test_ours_are_theirs(tmp_path, folder):
    if folder is None:
        pytest.skip("no TensorRT headers: let TENSORRT_INCLUDE_DIR name their folder")
    need_compiler()
    (tmp_path / "cuda_runtime_api.h").write_text(CUDA_TYPES)
    library = tmp_path / "check.so"
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", "-w", "-DEDGE_AWQ_TENSORRT_HEADERS", "-isystem", folder,
                    "-idirafter", tmp_path, PLUGINS / "tensorrt" / "interface_check.cpp", "-o", library], check=True)
    check = ctypes.CDLL(str(library))
    check.edge_awq_interface_mismatches.restype = ctypes.c_char_p
    assert check.edge_awq_interface_mismatches().decode() == ""
    assert check.edge_awq_interface_functions() >= 30
