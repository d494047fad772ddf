"""The plugin library without TensorRT and without a GPU: which code it loads, what it launches, how it refuses."""

import ctypes
import dataclasses
import platform
import shutil
import subprocess

import numpy as np
import pytest
from attention_harness import DecodeAttentionArguments
from kernel_harness import KernelError, build_kernels, pointer
from library_harness import (
    COMPILERS,
    build_for,
    build_library,
    built_driver,
    built_library,
    fresh_library,
    kernels_of,
    stand_in_images,
)
from test_argmax import ArgmaxArguments

from edge_awq import plugins
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION

INVALID_VALUE = 1


class ReadArguments(ctypes.Structure):
    """As in measure/kernel.h."""

    _fields_ = (("data", ctypes.c_void_p), ("sums", ctypes.c_void_p), ("vectors", ctypes.c_int64),
                ("blocks", ctypes.c_int))


def argmax(device, rows=3, size=4, stream=0):
    """(ArgmaxArguments, logits, tokens) launched by its plan."""
    logits = np.arange(rows * size, dtype=np.float32).reshape(rows, size)
    tokens, best, finished = np.full(rows, -1), np.zeros(rows, np.uint64), np.zeros(rows, np.uint32)
    arguments = ArgmaxArguments(*map(pointer, (logits, tokens, best, finished)), rows, size, 1)
    device.launch("argmax", arguments, stream)
    return arguments, logits, tokens


# ---- without a driver ----


C_LIBRARY = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def needed_by(library):
    listing = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    return {line.split("[")[1].split("]")[0] for line in listing.splitlines() if "(NEEDED)" in line}


def test_links_to_the_c_library_alone():
    assert needed_by(built_library()) <= C_LIBRARY


def test_exports_what_is_documented():
    listing = subprocess.run(["nm", "-D", "--defined-only", built_library()], check=True, capture_output=True,
                             text=True).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    assert {name for name in exported if not name.startswith("edge_awq_")} <= {
        "getCreators", "getPluginCreators", "setLoggerFinder"}


def test_says_that_there_is_no_driver(capfd):
    library = fresh_library("libno_such_driver.so.1")
    assert library.edge_awq_load() == 1
    assert b"no NVIDIA driver: libno_such_driver.so.1" in library.edge_awq_last_error()
    assert "edge-awq: kernels: no NVIDIA driver" in capfd.readouterr().err  # where TensorRT has no logger


def test_says_which_function_a_driver_lacks(tmp_path):
    source = tmp_path / "old.c"
    source.write_text("int cuGetErrorName() { return 0; } int cuGetErrorString() { return 0; }")
    driver = tmp_path / "libold.so"
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", driver], check=True)
    library = fresh_library(driver)
    assert library.edge_awq_load() == 1
    assert b"libold.so has no cuCtxGetCurrent" in library.edge_awq_last_error()


def test_lists_kernels_and_ops(device):
    kernels = dict(line.split(" ", 1) for line in device.library.edge_awq_kernels().decode().splitlines())
    assert kernels["int4_gemv_g128"] == "sm_80 sm_86 sm_87 sm_89 sm_90 compute_90"
    assert {"argmax", "rms_norm", "decode_attention_112"} <= set(kernels)
    ops = dict(line.split(" ", 1) for line in device.library.edge_awq_ops().decode().splitlines() if " " in line)
    assert ops["Int4MatMul"].split()[:4] == ["K", "N", "has_bias", "fp32_output"]


# ---- the machine code for a device ----


@pytest.mark.parametrize(("capability", "loaded"), [
    (80, "sm_80"), (86, "sm_86"), (87, "sm_87"), (88, "sm_87"), (89, "sm_89"), (90, "sm_90"), (100, "compute_90"),
    (121, "compute_90")])
def test_loads_the_best_code_for_the_device(device, capability, loaded):
    device.reset(compute_capability=capability)
    argmax(device)
    assert device.calls("cuModuleLoadData") == [f"sampling_argmax {loaded}"]


def test_loads_once_per_context(device):
    for _ in range(3):
        argmax(device)
    assert len(device.calls("cuModuleLoadData")) == len(device.calls("cuModuleGetFunction")) == 1
    device.driver.fake_set(b"context_id", -1)  # another context at the same address
    argmax(device)
    assert len(device.calls("cuModuleLoadData")) == 2


def test_load_brings_everything(device):
    assert device.library.edge_awq_load() == 0
    assert len(device.calls("cuModuleLoadData")) == len(build_kernels.KERNELS)
    device.driver.fake_forget()
    argmax(device)
    assert not device.calls("cuModuleLoadData") and not device.calls("cuModuleGetFunction")


def test_an_old_gpu_is_refused_by_name(device):
    device.reset(compute_capability=75)
    with pytest.raises(KernelError, match=r"argmax: this GPU has compute capability 7\.5; sampling_argmax was built "
                                          r"for 8\.0, 8\.6, 8\.7, 8\.9, 9\.0, 9\.0 and newer"):
        argmax(device)
    assert not device.calls("cuLaunchKernel")


def test_no_context_is_said(device):
    device.reset(context=0)
    with pytest.raises(KernelError, match="no CUDA context is current in this thread"):
        argmax(device)


# ---- launches ----


def test_launch_parameters_and_argument_bytes(device):
    arguments, logits, tokens = argmax(device, rows=5, stream=77)
    assert device.calls("cuLaunchKernel") == ["argmax 5 1 1 256 1 1 0 77"]  # grid, block, shared bytes, stream
    assert device.arguments(ctypes.sizeof(arguments)) == bytes(arguments)
    np.testing.assert_array_equal(tokens, logits.argmax(1))


def test_dependent_launch_is_an_option_of_sm_90(device):
    device.library.edge_awq_set_dependent_launch(1)
    argmax(device)
    assert len(device.calls("cuLaunchKernel")) == 1  # an Orin has no such thing
    device.reset(compute_capability=90)
    device.library.edge_awq_set_dependent_launch(1)
    _, logits, tokens = argmax(device, stream=5)
    assert device.calls("cuLaunchKernelEx") == ["argmax 3 1 1 256 1 1 0 5 6=1"]
    np.testing.assert_array_equal(tokens, logits.argmax(1))


@pytest.mark.parametrize(("value", "function"), [("1", "cuLaunchKernelEx"), ("0", "cuLaunchKernel")])
def test_the_environment_decides_on_dependent_launch(device, monkeypatch, value, function):
    monkeypatch.setenv("EDGE_AWQ_PDL", value)
    other = dataclasses.replace(device, library=fresh_library(built_driver()))
    device.reset(compute_capability=90)
    argmax(other)
    assert len(device.calls(function)) == 1


def test_a_kernel_that_does_not_wait_is_no_dependent_launch(device):
    device.reset(compute_capability=90)
    device.library.edge_awq_set_dependent_launch(1)
    data, sums = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
    device.launch("read", ReadArguments(data.ctypes.data, sums.ctypes.data, data.nbytes // 16, 1))
    assert device.calls("cuLaunchKernel")[0].split()[0] == "read_sum" and not device.calls("cuLaunchKernelEx")
    assert sums.sum() == data.sum()


@pytest.mark.parametrize(("function", "text"), [
    ("cuLaunchKernel", r"cuLaunchKernel: CUDA_ERROR_INVALID_VALUE \(1\), invalid argument \(argmax, 3 blocks of 256 "
                       r"threads, 0 shared bytes\)"),
    ("cuModuleLoadData", r"cuModuleLoadData: CUDA_ERROR_INVALID_VALUE .* \(sampling_argmax, built for sm_87\)"),
    ("cuModuleGetFunction", r"cuModuleGetFunction: .* \(argmax, 3 blocks"),
    ("cuCtxGetCurrent", "cuCtxGetCurrent: CUDA_ERROR_INVALID_VALUE"),
    ("cuCtxGetDevice", "cuCtxGetDevice: CUDA_ERROR_INVALID_VALUE"),
    ("cuDeviceGetAttribute", "cuDeviceGetAttribute: CUDA_ERROR_INVALID_VALUE"),
])
def test_every_driver_error_is_reported(device, function, text):
    device.fail(function, INVALID_VALUE)
    with pytest.raises(KernelError, match=text):
        argmax(device)
    device.driver.fake_work()
    argmax(device)  # a failure leaves nothing behind


def test_errors_the_driver_cannot_name_keep_their_number(device):
    device.fail("cuLaunchKernel", 987)
    with pytest.raises(KernelError, match=r"cuLaunchKernel: unknown error \(987\)"):
        argmax(device)


def test_a_refusal_of_the_plan_launches_nothing(device):
    with pytest.raises(KernelError, match="argmax: size = 0"):
        argmax(device, size=0)
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("plan", "reason"), [
    ("decode_attention", "tokens = 9, not 1 to 8"), ("append_kv", "splits = 2, but prefill does not split the cache"),
    ("prefill_attention", "splits = 2, but prefill does not split the cache")])
def test_attentions_are_launched_by_their_plans(device, plan, reason):
    arguments = DecodeAttentionArguments(tokens=9, num_heads=2, kv_num_heads=2, head_size=64, capacity=12, splits=2)
    with pytest.raises(KernelError, match=f"{plan}: {reason}"):
        device.launch(plan, arguments)


def test_arguments_of_another_size_are_refused(device):
    with pytest.raises(KernelError, match="argmax: 8 bytes of arguments, not 48"):
        device.launch("argmax", ctypes.c_int64(0))
    with pytest.raises(KernelError, match="no plan is called nothing"):
        device.launch("nothing", ctypes.c_int64(0))


# ---- building ----


def test_images_must_be_named_and_list_their_kernels(tmp_path):
    images = stand_in_images(tmp_path, architectures=["sm_87"])
    with pytest.raises(build_kernels.BuildError, match="no PTX file"):
        build_library(tmp_path, [path for path in images if path.suffix == ".cubin"])
    wrong = tmp_path / "gemv.cubin"
    wrong.touch()
    with pytest.raises(build_kernels.BuildError, match=r"gemv\.cubin is not named like"):
        build_library(tmp_path, [*images, wrong])
    with pytest.raises(build_kernels.BuildError, match="no compiler is known for riscv64"):
        build_library(tmp_path, images, "riscv64")
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.skipif(build_kernels.Nvrtc.find() is None, reason=f"no NVRTC: {build_kernels.NVRTC_REQUIREMENT}")
def test_compiled_kernels_are_found_by_name(tmp_path, monkeypatch):
    sources = [source for source in build_kernels.KERNELS if source.parent.name in ("norm", "sampling")]  # quick ones
    monkeypatch.setattr(build_kernels, "KERNELS", sources)
    images = build_kernels.build_cubins(tmp_path, ["sm_87", build_kernels.PTX_ARCHITECTURE])
    library = plugins.load_library(build_library(tmp_path, images))
    lines = library.edge_awq_kernels().decode().splitlines()
    expected = [kernel for source in sources for kernel in kernels_of(source)]
    assert sorted(lines) == sorted(f"{kernel} sm_87 compute_90" for kernel in expected)
    content = (tmp_path / plugins.LIBRARY).read_bytes()
    assert all(image.read_bytes() in content for image in images)


# ---- the package finds it ----


def test_the_package_loads_it(monkeypatch):
    monkeypatch.setenv(plugins.OVERRIDE, str(built_library()))
    assert plugins.load_library().edge_awq_contract_version() == CONTRACT_VERSION


def test_a_missing_library_says_where_it_was_sought(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "PLACES", (tmp_path,))
    monkeypatch.delenv(plugins.OVERRIDE, raising=False)
    with pytest.raises(EdgeAwqError, match=str(tmp_path / plugins.LIBRARY)) as caught:
        plugins.load_library()
    assert "build_kernels.py library" in caught.value.hint


def test_another_contract_version_is_refused(monkeypatch):
    monkeypatch.setattr(plugins, "CONTRACT_VERSION", 99)
    with pytest.raises(EdgeAwqError, match=f"contract version {CONTRACT_VERSION}, this edge-awq has 99"):
        plugins.load_library(built_library())


def test_a_file_that_is_no_library_is_refused(tmp_path):
    broken = tmp_path / plugins.LIBRARY
    broken.write_bytes(b"not a library")
    with pytest.raises(EdgeAwqError, match=f"not a plugin library for this machine .{platform.machine()}."):
        plugins.load_library(broken)


def test_cross_build_is_an_elf_for_aarch64():
    if shutil.which(COMPILERS["aarch64"]) is None:
        pytest.skip("no cross compiler: apt-get install g++-aarch64-linux-gnu")
    library = build_for("aarch64")
    header = subprocess.run(["readelf", "-h", library], check=True, capture_output=True, text=True).stdout
    assert "AArch64" in header and "DYN" in header
    assert needed_by(library) <= C_LIBRARY
