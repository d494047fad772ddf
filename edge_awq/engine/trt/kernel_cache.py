"""Kernels that TensorRT-RTX compiles when an engine first runs, kept beside the engine for the next time.

    tensorrt_rtx-1.7.1-x86_64-context4096-0123456789abcdef-sm89-128sms.kernels

is for one engine and one kind of GPU: a sha256, then what TensorRT-RTX serialized, which itself refuses what another
driver or card has left. Whatever goes wrong with it costs the time of compiling, and nothing else. Other runtimes
compile everything beforehand. Not yet verified on device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_awq.engine.trt.bindings import Toolkit, because
from edge_awq.engine.trt.plan_cache import store_bytes

MOST_BYTES = 256 << 20  # of a file: every new length of a prompt may add kernels, without end
_DIGEST_BYTES = hashlib.sha256().digest_size


class KernelCache:
    """The kernels of one engine; a file that does not fit is named once and begun anew."""

    def __init__(self, path: Path, toolkit: Toolkit, note: Callable[[str], None]) -> None:
        """Keep kernels in the file ``path``, whether or not it is there; ``note`` hears why one is not used."""
        self._path, self._toolkit, self._note = path, toolkit, note
        self._stored = b""  # digest of what the file holds
        self._cache: Any = None
        self._is_used = False
        self._configs: list[Any] = []

    def make_config(self, engine: Any) -> Any | None:
        """An IRuntimeConfig for one more execution context of ``engine``, over these kernels where it takes them."""
        config = engine.create_runtime_config()
        if config is None:
            return None
        if self._cache is None and (cache := config.create_runtime_cache()) is not None:
            self._read(cache)
            self._cache = cache
        self._is_used = self._cache is not None and config.set_runtime_cache(self._cache)
        self._configs.append(config)
        return config

    def save(self) -> None:
        """Write the file where there are new kernels; a bundle that cannot be written to stays as it is."""
        serialized = self._cache.serialize() if self._is_used else None
        if serialized is None or not 0 < serialized.nbytes <= MOST_BYTES:
            return
        kernels = bytes(serialized)
        digest = hashlib.sha256(kernels).digest()
        if digest != self._stored:
            with suppress(OSError):
                store_bytes(self._path, digest + kernels)
                self._stored = digest

    def close(self) -> None:
        """Release what belongs to TensorRT-RTX, after the contexts and before the engine."""
        self._configs.clear()
        self._cache, self._is_used = None, False

    def _read(self, cache: Any) -> None:
        try:
            data = self._path.read_bytes()
        except OSError:  # there is none yet, or none that may be read
            return
        digest, kernels = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(kernels).digest() != digest:
            self._note(f"{self._path.name} is damaged; kernels are compiled anew")
        elif not cache.deserialize(kernels):
            self._note(f"{self._path.name} is not used, it is of another GPU or driver{because(self._toolkit)}; "
                       "kernels are compiled anew")
            self._toolkit.log.forget()
        else:
            self._stored = digest
