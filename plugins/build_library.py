"""Build libedge_awq_plugins.so: plain C++17, the compiled kernels embedded, for this machine or another.

The library links to libc alone: not to CUDA, not to TensorRT. See build_kernels.py for the command line.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from build_kernels import HERE, BuildError

LIBRARY = "libedge_awq_plugins.so"
SOURCES = tuple(sorted([*HERE.glob("library/*.cpp"), *HERE.glob("tensorrt/*.cpp"), *HERE.glob("*/plugin.cpp")]))
COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
# libstdc++ goes in, so that the library runs on any system whose glibc is as new as the builder's.
OPTIONS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-shared", "-fPIC",
           "-static-libstdc++", "-static-libgcc", "-Wl,-soname," + LIBRARY, "-Wl,--no-undefined",
           f"-Wl,--version-script={HERE / 'library/exports.map'}")
IMAGE = re.compile(r"(?P<source>\w+)\.(?:sm|compute)_(?P<architecture>\d+)\.(?P<suffix>cubin|ptx)")
ENTRY = re.compile(r"\.entry\s+(\w+)")  # of PTX


def compiler_for(machine: str) -> str:
    """``$CXX`` for this machine, or the usual compiler for another.

    Raises:
        BuildError: nothing is known of ``machine``.
    """
    if machine not in COMPILERS:
        raise BuildError(f"no compiler is known for {machine}, only for {' and '.join(COMPILERS)}")
    is_own = machine == os.uname().machine
    return os.environ.get("CXX", "g++") if is_own else COMPILERS[machine]


def build_library(folder: Path, images: Sequence[Path], machine: str = os.uname().machine) -> Path:
    """Links all sources with the compiled kernels ``images``, as build_cubins() names them, into ``folder``.

    Raises:
        BuildError: an image has an unknown name, there is no PTX to tell the kernels' names, there is no compiler, or
            it refuses a source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        table, data = Path(work) / "images.cpp", Path(work) / "images.s"
        table.write_text(_image_table(images))
        data.write_text(_image_data(images))
        unfinished = Path(work) / LIBRARY
        _run([compiler_for(machine), *OPTIONS, *_headers(), f"-I{HERE / 'library'}", *SOURCES, table, data,
              "-o", unfinished, "-ldl"])
        return unfinished.replace(folder / LIBRARY)


def _headers() -> list[str]:
    """TensorRT's own headers, if ``$TENSORRT_INCLUDE_DIR`` says where: our interfaces are compared with them."""
    include = os.environ.get("TENSORRT_INCLUDE_DIR")
    return ["-DEDGE_AWQ_TENSORRT_HEADERS", "-isystem", include] if include else []


def _run(command: Sequence[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"no C++ compiler: {command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{LIBRARY} does not compile:\n{error.stderr}") from error


def _image_table(images: Sequence[Path]) -> str:
    """C++ for what images.h declares."""
    rows, kernels, symbols = [], [], []
    for index, path in enumerate(images):
        parts = IMAGE.fullmatch(path.name)
        if parts is None:
            raise BuildError(f"{path.name} is not named like int4_matmul_gemv.sm_87.cubin")
        symbols.append(f"extern const char edge_awq_image_{index}[], edge_awq_image_{index}_end[];")
        is_ptx = parts["suffix"] == "ptx"
        rows.append(f'{{"{parts["source"]}", {parts["architecture"]}, {str(is_ptx).lower()}, '
                    f"edge_awq_image_{index}, edge_awq_image_{index}_end}},")
        if is_ptx:
            kernels += [f'{{"{name}", "{parts["source"]}"}},' for name in sorted(set(ENTRY.findall(path.read_text())))]
    if not kernels:
        raise BuildError("no PTX file among the compiled kernels: it is where their names are read")
    newline = "\n"
    return f"""#include "images.h"
extern "C" {{
{newline.join(symbols)}
}}
namespace edge_awq {{
extern const Image kImages[] = {{
{newline.join(rows)}
}};
extern const size_t kImageCount = {len(rows)};
extern const KernelName kKernels[] = {{
{newline.join(kernels)}
}};
extern const size_t kKernelCount = {len(kernels)};
}}
"""


def _image_data(images: Sequence[Path]) -> str:
    """Assembler that holds the files' bytes, each followed by a zero: PTX is read as text."""
    lines = [".section .rodata"]
    for index, path in enumerate(images):
        name = f"edge_awq_image_{index}"
        lines += [".balign 64", f".globl {name}", f".hidden {name}", f".globl {name}_end", f".hidden {name}_end",
                  f"{name}:", f'.incbin "{path.resolve()}"', f"{name}_end:", ".byte 0"]
    return "\n".join([*lines, '.section .note.GNU-stack, "", %progbits', ""])
