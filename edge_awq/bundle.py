"""The bundle: the directory that travels from the workstation to the device.

    NAME.bundle/
      manifest.json        what it is, how it was made, and the sha256 and size of every other file
      model.onnx           the canonical graph; its large tensors are ranges of weights.safetensors
      weights.safetensors  every tensor, once
      config.json          the source model's own, from which an export is written
      tokenizer.json ...   tokenizer, generation config and chat template of the source model
      engines/             the graph compiled for a runtime, here or on the device
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.toml import from_table

SCHEMA = 1
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
ENGINES = "engines"
_CONFIG_KEYS = ("num_layers", "hidden_size", "num_heads", "head_size", "num_kv_heads", "vocab_size", "max_positions",
                "windows")
BUILD_AGAIN = "build it again, or copy it again from where it was built"
UPDATE = "update edge-awq: pip install -U edge-awq"


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how it was made.

    Attributes:
        source: folder name or hub id of the model; ``revision`` its commit, where the hub names one.
        precision: "w4a16" or "fp16".
        config: the canonical DecoderConfig as a table.
        context: tokens that fit into the KV cache.
        quant: recipe, group size, symmetry, bits of the head, calibration.
        report: per block what the quantizer measured and chose.
        engine: how the graph was compiled for ``target`` during the build, None where the device does that.
        fingerprint: hash of everything that decided the build; the same again needs no second build.
        files: name -> {"sha256", "bytes"} of every file but the manifest.
    """

    name: str
    source: str
    revision: str | None
    family: str
    precision: str
    config: dict[str, Any]
    context: int
    prefill_chunk: int
    target: str
    runtime: str
    contract_version: int
    quant: dict[str, Any]
    report: list[dict[str, Any]]
    engine: dict[str, Any] | None
    tool_versions: dict[str, str]
    fingerprint: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; ``open`` has checked whatever it was asked to check."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Read the manifest and, with ``verify``, every file's size and hash.

        Raises:
            EdgeAwqError: not a bundle, of a newer schema, or with a missing or damaged file.
        """
        path = Path(path)
        bundle = cls(path, _read_manifest(path))
        bundle.check_sizes()
        if verify:
            bundle.check_hashes()
        return bundle

    @property
    def graph(self) -> Path:
        """The canonical graph."""
        return self.path / GRAPH

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / WEIGHTS

    def check_sizes(self) -> None:
        """Every file of the manifest is there and has its size; takes no reading."""
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise EdgeAwqError(f"{self.path}: {name} is missing", hint=BUILD_AGAIN)
            if file.stat().st_size != entry["bytes"]:
                raise EdgeAwqError(f"{file}: {file.stat().st_size} bytes, the manifest says {entry['bytes']}",
                                   hint=BUILD_AGAIN)

    def check_hashes(self) -> None:
        """Every file of the manifest has its sha256."""
        for name, entry in self.manifest.files.items():
            if hash_file(self.path / name) != entry["sha256"]:
                raise EdgeAwqError(f"{self.path / name} is damaged: its sha256 is not the manifest's", hint=BUILD_AGAIN)

    def check_config(self) -> dict[str, Any]:
        """The model's configuration, with the values that sizes are made from.

        Raises:
            EdgeAwqError: one is missing.
        """
        missing = [key for key in _CONFIG_KEYS if key not in self.manifest.config]
        if missing:
            raise EdgeAwqError(f"{self.path / MANIFEST}: damaged, its config has no {', '.join(missing)}",
                               hint=BUILD_AGAIN)
        return self.manifest.config

    def check_contract(self) -> None:
        """The graph's ops mean what they mean here; only what runs or compiles it needs that.

        Raises:
            EdgeAwqError: a version of edge-awq built it whose ops are others.
        """
        theirs = self.manifest.contract_version
        if theirs != CONTRACT_VERSION:
            raise EdgeAwqError(f"{self.path} was built with op contract {theirs}, this edge-awq has {CONTRACT_VERSION}",
                               hint=UPDATE if theirs > CONTRACT_VERSION else "build it again with this version")


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise EdgeAwqError(f"{path} is not a bundle: it has no {MANIFEST}",
                           hint="edge-awq build MODEL -o NAME.bundle makes one")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        schema = table["schema"]
    except (ValueError, LookupError, TypeError) as error:
        raise EdgeAwqError(f"{file}: damaged ({error!r})", hint=BUILD_AGAIN) from error
    if isinstance(schema, int) and schema > SCHEMA:
        raise EdgeAwqError(f"{path}: bundle schema {schema} is newer than this edge-awq, which reads {SCHEMA}",
                           hint=UPDATE)
    if schema != SCHEMA:
        raise EdgeAwqError(f"{file}: damaged, or of an unknown schema ({schema!r})", hint=BUILD_AGAIN)
    try:
        manifest = from_table(Manifest, table, str(file))
    except EdgeAwqError as error:
        raise EdgeAwqError(f"{error.message}; it is damaged", hint=BUILD_AGAIN) from error
    for name, entry in manifest.files.items():
        if not _is_inside(name) or not _is_file_entry(entry):
            raise EdgeAwqError(f"{file}: damaged, the entry of file '{name}' cannot be", hint=BUILD_AGAIN)
    return manifest


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_file_entry(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)


def hash_file(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """sha256 of a file as hex; ``progress`` hears the bytes of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old or the new one, whole, even after a power cut."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, writer: str = "") -> None:
    """The same for bytes; ``writer`` tells apart who may write the same file at once."""
    with replacing_file(path, writer) as file:
        file.write(data)


@contextmanager
def replacing_file(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """The same for what is written in pieces: a file that becomes ``path`` when the block ends without an error."""
    temporary = path.with_name(f"{path.name}{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it had no room for
        raise


def seal(folder: Path, manifest: Manifest, final: Path) -> Bundle:
    """Make ``folder`` the bundle ``final``: hash every file, write the manifest, rename; an older one is replaced."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = {
        name: {"sha256": hash_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
        if name != MANIFEST
    }
    manifest = dataclasses.replace(manifest, files=files)
    write_text(folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
    old = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle(final, manifest)
