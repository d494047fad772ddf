"""The real pycuda, built from its source without a CUDA toolkit, and a driver that it can be loaded over.

Headers come from two small wheels. What pycuda is linked to, and loaded with, is a libcuda.so.1 of our own: the driver
made for tests, and for every other function that pycuda names one that refuses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from library_harness import HERE as PLUGIN_TESTS

from wheels import PYTHON, kept_folder, made_once

VERSION, CUDA = "2026.1", "12.6.77"
HEADERS = [f"nvidia-cuda-runtime-cu12=={CUDA}", "nvidia-cuda-profiler-api==13.5.25"]
BUILD_TOOLS = ["setuptools<81", "wheel", "pytools", "platformdirs", "mako", "siphash24", "typing_extensions"]
NOT_SUPPORTED = 801  # CUDA_ERROR_NOT_SUPPORTED


def built_pycuda() -> Path:
    """A folder to import pycuda and what it needs from; built once, about two minutes, and kept.

    Skips the test where no folder is named for it, or something to build with is missing.
    """
    where = kept_folder("pycuda", "4 MB, in which it is built") / f"pycuda-{VERSION}-{PYTHON}"
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no pycuda: {tool} is not installed")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        pytest.skip("no pycuda: Python's own headers are not installed (python3-dev)")
    return made_once(where, _build) / "site"


def _build(where: Path) -> None:
    cuda = _headers(where / "cuda")
    tools = where / "site"
    _pip("install", "--target", tools, *BUILD_TOOLS)
    environment = os.environ | {"PYTHONPATH": str(tools), "CUDA_ROOT": str(cuda)}
    _pip("download", "--no-deps", "--no-build-isolation", "--no-binary=:all:", "-d", where, f"pycuda=={VERSION}",
         env=environment)
    [archive] = where.glob("pycuda-*.tar.gz")
    shutil.unpack_archive(archive, where)
    source = where / archive.name.removesuffix(".tar.gz")
    names = set(re.findall(r"\bcu[A-Z]\w*\b", "".join((cuda / "include" / name).read_text()
                                                       for name in ("cuda.h", "cudaProfiler.h"))))
    stub = _refusing(names, where / "stub" / "libcuda.so")
    options = [f"--cuda-root={cuda}", "--no-cuda-enable-curand", f"--cudadrv-lib-dir={stub.parent}",
               "--cxxflags=-O0", "--cxxflags=-w"]
    subprocess.run([sys.executable, "configure.py", *options], check=True, cwd=source, env=environment,
                   capture_output=True)
    _pip("install", "--no-deps", "--no-build-isolation", "--target", tools, "--upgrade", source, env=environment)
    shutil.rmtree(source)


def _headers(where: Path) -> Path:
    """A folder like a toolkit's, with include/."""
    for number, wheel in enumerate(HEADERS):
        _pip("install", "--no-deps", "--only-binary=:all:", "--target", where / str(number), wheel)
    include = where / "include"
    include.mkdir()
    for folder in where.glob("*/nvidia/*/include"):
        shutil.copytree(folder, include, dirs_exist_ok=True)
    return where


def _pip(*arguments: object, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _refusing(names: set[str], library: Path, *also: Path) -> Path:
    """A shared library libcuda.so.1 whose functions ``names`` refuse; ``also``: more sources."""
    library.parent.mkdir(parents=True, exist_ok=True)
    source = library.with_suffix(".refusing.cpp")
    functions = "".join(f"int {name}(...) {{ return {NOT_SUPPORTED}; }}\n" for name in sorted(names))
    source.write_text(f'extern "C" {{\n{functions}}}\n')
    subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-fno-builtin", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
                    source, *also, "-o", library], check=True)
    return library


def full_driver(site: Path, where: Path) -> Path:
    """libcuda.so.1 in ``where``: the driver made for tests, with everything that pycuda wants to find."""
    [module] = (site / "pycuda").glob("_driver*.so")
    plain = _refusing(set(), where / "plain" / "libcuda.so.1", PLUGIN_TESTS / "fake_driver.cpp")
    missing = _symbols(module, "--undefined-only") - _symbols(plain, "--defined-only")
    return _refusing(missing, where / "libcuda.so.1", PLUGIN_TESTS / "fake_driver.cpp")


def _symbols(library: Path, which: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r" (cu[A-Z]\w*)$", listed, re.MULTILINE))


