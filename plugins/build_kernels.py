#!/usr/bin/env python3
"""Compile the kernels: for GPUs with NVRTC (a wheel; no CUDA toolkit, no GPU), and for the CPU, as tests run them.

    build_kernels.py cubins -o DIR    one cubin per kernel file and architecture, and PTX for newer GPUs
    build_kernels.py cpu -o DIR       libedge_awq_kernels_cpu.so, with any C++17 compiler
    build_kernels.py library -o DIR   libedge_awq_plugins.so with all cubins and PTX inside; --arch aarch64 for a Jetson
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = tuple(sorted(HERE.glob("*/*.cu")))
ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90")
PTX_ARCHITECTURE = "compute_90"  # what a GPU newer than all of them compiles at load
NVRTC_REQUIREMENT = "nvidia-cuda-nvrtc-cu12==12.6.85"  # cubins of CUDA 12.6 run on JetPack 6.1 and everything since
HARNESS = "libedge_awq_kernels_cpu.so"


class BuildError(Exception):
    """A compiler is missing, or refused a source; the message holds what it said."""


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's run-time compiler, loaded from ``library``."""

    library: ctypes.CDLL

    @classmethod
    def find(cls) -> Nvrtc | None:
        """From the wheel named in NVRTC_REQUIREMENT, or None where it is not installed."""
        try:
            package = importlib.util.find_spec("nvidia.cuda_nvrtc")
        except ModuleNotFoundError:
            return None
        folders = package.submodule_search_locations if package else []
        paths = [path for folder in folders for path in Path(folder).glob("lib/libnvrtc.so.12")]
        return cls(ctypes.CDLL(str(paths[0]))) if paths else None

    def compile(self, source: Path, architecture: str) -> bytes:
        """A cubin for ``sm_*``, PTX text for ``compute_*``."""
        lib, program = self.library, ctypes.c_void_p()
        self._check(lib.nvrtcCreateProgram(
            ctypes.byref(program), source.read_bytes(), os.fsencode(source), 0, None, None))
        try:
            options = [f"--gpu-architecture={architecture}", "--std=c++17", f"--include-path={source.parent}"]
            encoded = (ctypes.c_char_p * len(options))(*map(str.encode, options))
            if lib.nvrtcCompileProgram(program, len(options), encoded):
                log = self._read(program, "ProgramLog").decode()
                raise BuildError(f"{source.name} for {architecture} does not compile:\n{log}")
            return self._read(program, "CUBIN" if architecture.startswith("sm_") else "PTX")
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, f"nvrtcGet{what}")(program, data))
        return data.raw

    def _check(self, status: int) -> None:
        if status:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise BuildError(f"NVRTC: {self.library.nvrtcGetErrorString(status).decode()}")


def build_cubins(folder: Path, architectures: Sequence[str] = (*ARCHITECTURES, PTX_ARCHITECTURE)) -> list[Path]:
    """Writes ``<op>_<file>.<architecture>.cubin``, or ``.ptx`` for a ``compute_*``, into ``folder``.

    Raises:
        BuildError: NVRTC is not installed, or a kernel does not compile.
    """
    nvrtc = Nvrtc.find()
    if nvrtc is None:
        raise BuildError(f"NVRTC is not installed: pip install {NVRTC_REQUIREMENT}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in KERNELS:
        for architecture in architectures:
            suffix = "cubin" if architecture.startswith("sm_") else "ptx"
            path = folder / f"{source.parent.name}_{source.stem}.{architecture}.{suffix}"
            path.write_bytes(nvrtc.compile(source, architecture))
            written.append(path)
    return written


def build_cpu(folder: Path, watched: bool = False) -> Path:
    """The library of all kernels for the CPU (``harness.cpp``).

    Args:
        watched: launches with races fail (``common/races.h``), and take some ten times as long.

    Raises:
        BuildError: as compile_cpp() does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return compile_cpp(HERE / "harness.cpp", folder / HARNESS, watched)


def compile_cpp(source: Path, library: Path, watched: bool = False, standard: str = "c++17") -> Path:
    """A shared library from one source that runs kernels on a CPU, with ``$CXX`` or g++; ``watched``: for races.

    Raises:
        BuildError: there is no compiler, or it refuses the source.
    """
    compiler = os.environ.get("CXX", "g++")
    options = [f"-std={standard}", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
               "-fPIC"]
    unlinked = library.with_suffix(".o")
    commands = [[*options, "-shared", source, "-o", library]]
    if watched:  # not in one, which would link the compiler's own library for this
        commands = [[*options, "-fsanitize=thread", "-c", source, "-o", unlinked],
                    ["-shared", "-Wl,--no-undefined", unlinked, "-o", library, "-ldl"]]
    try:
        for command in commands:
            subprocess.run([compiler, *command], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"no C++ compiler: {compiler} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{source.name} does not compile:\n{error.stderr}") from error
    return library


def build(what: str, folder: Path, machine: str) -> list[Path]:
    """``what`` is the command line's; the files that were written.

    Raises:
        BuildError: as the functions above and build_library.build_library() do.
    """
    if what == "cubins":
        return build_cubins(folder)
    if what == "cpu":
        return [build_cpu(folder)]
    from build_library import build_library  # which imports this module

    with tempfile.TemporaryDirectory() as work:
        return [build_library(folder, build_cubins(Path(work)), machine)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cubins", "cpu", "library"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--arch", default=os.uname().machine, help="the library's machine: x86_64 or aarch64")
    arguments = parser.parse_args()
    try:
        built = build(arguments.what, arguments.output, arguments.arch)
    except BuildError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.writelines(f"{path}\n" for path in built)


if __name__ == "__main__":
    main()
