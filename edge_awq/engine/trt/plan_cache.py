"""Engines in a bundle's folder ``engines/``: what each was compiled for, and which one fits the machine at hand.

A file is a safetensors file of bytes: serialized engines ("plans" in TensorRT's words), and as metadata what the
runtime must know about each pass. Its name says what it was compiled for:

    tensorrt-10.3.0-aarch64-sm87-16sms-MAXN-contract2-kv16-0123456789abcdef.engine
    tensorrt_rtx-1.7.1-x86_64-context4096-0123456789abcdef.engine                      any GPU, no plugins

The manifest does not list it, as it came later, so it has a hash of its own. Beside it lie TensorRT's timings of
kernels (.timings) and the kernels that TensorRT-RTX compiled (.kernels, see kernel_cache.py).
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from edge_awq.bundle import ENGINES, write_bytes
from edge_awq.engine.trt.bindings import Toolkit
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.gpus import Gpu
from edge_awq.progress import Progress

FORMAT = 2  # of the file; grows when its header changes
HEADER = "edge_awq"  # key of the one entry in the metadata; of several, safetensors would not keep the order
ENDING = ".engine"
MAKE_WRITABLE = "engines are stored in the bundle: make it writable, or copy it to where you may write"
_NAME = re.compile(r"(?P<runtime>\w+)-(?P<version>[\d.]+)-(?P<machine>\w+)"
                   r"(-sm(?P<sm>\d+)-(?P<sm_count>\d+)sms-(?P<power_mode>\w+))?(-contract(?P<contract>\d+))?"
                   r"-(?P<form>\w+)-(?P<graph>[0-9a-f]{16})")
# What a difference means to the user, in the order in which it is looked for.
_WHAT = {"machine": "processor", "sm": "compute capability (SM)", "sm_count": "number of SMs",
         "power_mode": "power mode", "version": "TensorRT version", "contract": "plugin contract", "graph": "graph"}


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        runtime: "tensorrt" or "tensorrt_rtx".
        version: of the runtime.
        machine: "aarch64" or "x86_64"; engines do not travel between them.
        sm: compute capability without its point, "87"; None, as are ``sm_count`` and ``power_mode``: for any GPU.
        power_mode: of a Jetson, "default" elsewhere: kernels were timed in it.
        contract: of the plugins; None: it has none.
        form: which of the engines that a bundle may have on one machine, see edge_awq.engine.trt.build.Form.
        graph: hash of the canonical graph, of how it is lowered, and of the shapes it is compiled for.
    """

    runtime: str
    version: str
    machine: str
    sm: str | None
    sm_count: str | None
    power_mode: str | None
    contract: str | None
    form: str
    graph: str

    @property
    def file_name(self) -> str:
        """Name of the engine's file."""
        gpu = f"-sm{self.sm}-{self.sm_count}sms-{self.power_mode}" if self.sm else ""
        contract = f"-contract{self.contract}" if self.contract else ""
        return f"{self.runtime}-{self.version}-{self.machine}{gpu}{contract}-{self.form}-{self.graph}{ENDING}"


@dataclass(frozen=True)
class StoredEngine:
    """A compiled engine.

    Attributes:
        plans: name -> the serialized engine, uint8.
        passes: name of a pass ("decode", "prefill") -> what the runtime must know, see edge_awq.engine.trt.passes.
        sha256: name of a plan -> its hash.
        file: where it is stored, relative to the bundle.
    """

    plans: Mapping[str, np.ndarray]
    passes: dict[str, Any]
    sha256: dict[str, str]
    file: str


def make_key(toolkit: Toolkit, gpu: Gpu | None, power_mode: str | None, form: str, graph: str) -> EngineKey:
    """The key of an engine with plugins, compiled here and now; without ``gpu`` for any."""
    here: tuple[str | None, ...] = (None, None, None)
    if gpu is not None:
        mode = re.sub(r"\W", "_", power_mode or "default")
        here = ("".join(map(str, gpu.compute_capability)), str(gpu.sm_count), mode)
    return EngineKey(toolkit.key_name, toolkit.version_text, platform.machine(), *here, str(CONTRACT_VERSION), form,
                     graph)


def hash_graph(graph: Path, settings: Mapping[str, Any]) -> str:
    """16 hex digits of a hash of the canonical graph at ``graph`` and of the settings it is compiled with."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"\n" + graph.read_bytes())
    return digest.hexdigest()[:16]


def engine_path(bundle: Path, key: EngineKey) -> Path:
    """Where the engine of ``key`` lies in a bundle."""
    return bundle / ENGINES / key.file_name


def timing_cache_path(bundle: Path, key: EngineKey) -> Path:
    """Where TensorRT's timings of kernels lie in a bundle; they hold for every graph on this GPU in its power mode."""
    gpu = f"sm{key.sm}-{key.sm_count}sms-{key.power_mode}"
    return bundle / ENGINES / f"{key.runtime}-{key.version}-{key.machine}-{gpu}.timings"


def kernels_path(engine: Path, gpu: Gpu) -> Path:
    """Where kernels lie that TensorRT-RTX compiles while the engine at ``engine`` runs on such a GPU."""
    sm = "".join(map(str, gpu.compute_capability))
    return engine.with_name(f"{engine.name.removesuffix(ENDING)}-sm{sm}-{gpu.sm_count}sms.kernels")


def stale(bundle: Path, key: EngineKey) -> list[str]:
    """A line for every engine in the bundle that is of the form of ``key`` and not that one: what differs."""
    found = ((path.name, _difference(path.name, key)) for path in sorted((bundle / ENGINES).glob(f"*{ENDING}")))
    return [f"{name} is not used: {difference}" for name, difference in found if difference]


def _difference(name: str, key: EngineKey) -> str | None:
    """None: there is none, or the engine is of another form, and waits for whoever asks for that."""
    match = _NAME.fullmatch(name.removesuffix(ENDING))
    if match is None:
        return "its name says nothing about what it was compiled for"
    if name == key.file_name or (match["runtime"], match["form"]) != (key.runtime, key.form):
        return None
    here = dataclasses.asdict(key)
    field = next(field for field in _WHAT if match[field] != here[field])
    if field == "graph":
        return "the graph, its lowering or the shapes have changed since"
    return f"compiled for {_WHAT[field]} {match[field]}, here it is {here[field]}"


def write_engine(path: Path, plans: Mapping[str, bytes | np.ndarray], passes: Mapping[str, Any]) -> None:
    """Store a compiled engine; the file is whole or not there."""
    arrays = {name: np.frombuffer(plan, np.uint8) for name, plan in plans.items()}
    header = {"format": FORMAT, "passes": passes, "sha256": _hashes(arrays)}
    path.parent.mkdir(exist_ok=True)
    store_bytes(path, save(arrays, {HEADER: json.dumps(header)}))


def check_writable(folder: Path) -> None:
    """Make ``folder`` for engines, in a bundle that may be written to.

    Raises:
        EdgeAwqError: it may not.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise EdgeAwqError(f"{folder}: {error.strerror}", hint=MAKE_WRITABLE) from error
    if not os.access(folder, os.W_OK):
        raise EdgeAwqError(f"{folder}: no permission to write", hint=MAKE_WRITABLE)


@contextmanager
def compiling(folder: Path, progress: Progress) -> Iterator[None]:
    """One process at a time compiles into ``folder``; the others wait, and look again afterwards.

    Raises:
        EdgeAwqError: the bundle cannot be written to.
    """
    check_writable(folder)
    directory = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that has no locks
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note("another process compiles an engine of this bundle; waiting for it")
                fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def store_bytes(path: Path, data: bytes) -> None:
    """Write a file of the folder ``engines/``, whole or not at all, whoever else writes the same one at that moment.

    Raises:
        OSError: the bundle cannot be written to, or the disk is full.
    """
    write_bytes(path, data, f".{os.getpid()}-{threading.get_native_id()}")


def read_engine(path: Path) -> StoredEngine:
    """The engine at ``path``.

    Raises:
        EdgeAwqError: it is damaged, or of another version of edge-awq.
    """
    damaged = EdgeAwqError(f"{path}: the engine is damaged", hint="edge-awq compile --fresh makes it anew")
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[HEADER])
        plans = load_file(path)
        if header["format"] != FORMAT:
            raise EdgeAwqError(f"{path}: engine format {header['format']}, this edge-awq reads {FORMAT}",
                               hint="edge-awq compile --fresh makes it anew")
        if header["sha256"] != _hashes(plans):
            raise damaged
        return StoredEngine(plans, header["passes"], header["sha256"], f"{ENGINES}/{path.name}")
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged from error


def find_engine(path: Path, progress: Progress) -> StoredEngine | None:
    """The engine at ``path``; None where there is none, or none that is whole, which is noted."""
    if not path.is_file():
        return None
    try:
        return read_engine(path)
    except EdgeAwqError as error:
        progress.note(f"{error.message}; it is compiled anew")
        return None


def _hashes(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
