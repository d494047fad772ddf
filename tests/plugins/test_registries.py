"""The plugin library in real TensorRT registries, each in a process of its own; none of them needs a GPU.

The lean runtimes of 10.16 and 11.4 come from the package index (45 to 67 MB each), where $EDGE_AWQ_REGISTRIES names a
folder to keep them in. 8.6.0 is 800 MB, so nothing fetches it: $EDGE_AWQ_TENSORRT_8 names a folder that holds its
package `tensorrt`, $EDGE_AWQ_PYTHON_3_10 the Python with numpy that it wants.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from library_harness import COMPILERS, build_for, built_library, folder

from edge_awq.export import ops
from wheels import PYTHON, unpacked

HERE = Path(__file__).resolve().parent
FOLDER_8, PYTHON_8 = "EDGE_AWQ_TENSORRT_8", "EDGE_AWQ_PYTHON_3_10"
VERSIONS = ("10.16.1.11", "11.4.0.106")
PACKAGES = ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu13-bindings")


def installed(version, name, packages, options=("--no-deps",)):
    """The folder with this version's wheels."""
    return unpacked(f"lean-{version}-{name}", [f"{each}=={version}" for each in packages], "45 to 67 MB", options)


def findings(python, module, folder):
    """What registry_check.py prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / module)}
    command = [python, HERE / "registry_check.py", module, built_library(), str(ops.CONTRACT_VERSION)]
    done = subprocess.run(command, check=False, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def check(found, stderr):
    """What is the same in all versions."""
    assert found["before"] == 0 and found["loaded"]
    assert not found["loaded again"]  # why edge_awq.engine.trt.bindings loads it once in a process
    names = {name for name, version in found["creators"] if version == str(ops.CONTRACT_VERSION)}
    assert len(found["creators"]) == len(names) and {op.name for op in ops.OPS} <= names
    for op in ops.OPS:
        assert {*op.attributes, "contract_version"} <= set(found["fields"][op.name])
    for case, outputs in (("Int4MatMul", 1), ("CachedAttention", 3), ("CachedAttention of bytes", 5)):
        plugin, name = found[case], case.split()[0]
        assert (plugin["name"], plugin["version"], plugin["namespace"]) == (name, str(ops.CONTRACT_VERSION), "edge.awq")
        assert plugin["outputs"] == outputs
    assert all(found["refused"])
    for reason in ("K = 100 is not a multiple of 64", "attribute N is missing", "unknown attribute colour",
                   "contract version 99"):
        assert reason in stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_lean_registry(version):
    found, stderr = findings(sys.executable, "tensorrt_lean_bindings", installed(version, PYTHON, PACKAGES))
    assert found["version"] == version
    check(found, stderr)
    assert found["Int4MatMul"]["classes"] == ["IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuildV2",
                                              "IPluginV3OneRuntime"]
    assert found["Int4MatMul"]["kinds"] == ["PLUGIN", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
    assert found["CachedAttention"]["formats"] == 100


def test_registry_of_8_6():
    missing = [name for name in (FOLDER_8, PYTHON_8) if name not in os.environ]
    if missing:
        pytest.skip(f"no TensorRT 8.6: {' and '.join(missing)} not set")
    found, stderr = findings(os.environ[PYTHON_8], "tensorrt", Path(os.environ[FOLDER_8]))
    assert found["version"].startswith("8.6.")
    check(found, stderr)
    assert found["Int4MatMul"]["kept"] and found["Int4MatMul"]["clone"] == "Int4MatMul"


SLOTS = {"10": ("10", "14"), "11": ("6", "10")}  # loadLibrary and getCreator in IPluginRegistry
ARM_OPTIONS = [option for glibc in ("2_28", "2_35", "2_38")
               for option in ("--platform", f"manylinux_{glibc}_aarch64")] + ["--no-deps"]
QEMU, SYSTEM = "qemu-aarch64", "/usr/aarch64-linux-gnu"


def test_registry_on_aarch64():
    """The cross-built library in the registry of the aarch64 runtime that JetPack 7.2's 10.16 belongs to, emulated."""
    compiler, emulator = COMPILERS["aarch64"], shutil.which(QEMU) or shutil.which(f"{QEMU}-static")
    if shutil.which(compiler) is None or emulator is None:
        pytest.skip(f"no {compiler} or no {QEMU}: apt-get install g++-aarch64-linux-gnu qemu-user")
    version = VERSIONS[0]
    libraries = installed(version, "aarch64", PACKAGES[:1], ARM_OPTIONS)
    [tensorrt] = libraries.glob("tensorrt_lean_libs/libnvinfer_lean.so.*")
    host = Path(folder().name) / "registry_host"
    subprocess.run([compiler, "-std=c++17", "-O1", HERE / "registry_host.cpp", "-o", host, "-ldl"], check=True)
    arguments = [tensorrt, build_for("aarch64"), *SLOTS[version.split(".")[0]], str(ops.CONTRACT_VERSION)]
    done = subprocess.run([emulator, "-L", SYSTEM, host, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"creator Int4MatMul {ops.CONTRACT_VERSION} edge.awq 14",
                                        f"serialized 14 128 8 {ops.CONTRACT_VERSION}", "enqueue 1", "refused 1"]
    assert "no NVIDIA driver: libcuda.so.1" in done.stderr and "K = 100" in done.stderr
