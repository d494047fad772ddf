"""A checkpoint becomes a bundle: the order of the stages, and the place where a build goes on after a kill.

    checkpoint -> model -> quantize -> export -> [bundle] -> engine
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from edge_awq import __version__
from edge_awq.bundle import CONFIG, GRAPH, MANIFEST, WEIGHTS, Bundle, Manifest, hash_file, write_text
from edge_awq.engine import LATER, ON_DEVICE, load_runtime
from edge_awq.errors import EdgeAwqError
from edge_awq.export.graph import build_graph
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.interop.checkpoint import PackedCheckpoint
from edge_awq.layout import plan_layout
from edge_awq.model.checkpoint import write_tensors
from edge_awq.model.decoder import Decoder, embed_tokens, load_decoder
from edge_awq.model.rope import rope_tables
from edge_awq.model.source import Source, resolve_source
from edge_awq.model.tokenizer import copy_tokenizer
from edge_awq.progress import Progress, Quiet
from edge_awq.quantize.awq import QuantizeSettings, to_half
from edge_awq.quantize.blocks import make_head
from edge_awq.quantize.calibrate import BUILT_IN, OWN, Calibration, CalibrationSpec, calibrate
from edge_awq.quantize.workers import Work, check_workers, quantize_blocks
from edge_awq.request import BuildRequest, as_checkpoint
from edge_awq.weights import TensorSpec, WeightsWriter
from edge_awq.workspace import Workspace, describe_file

PROBE_TOKENS = 64  # of the calibration text, on which a compiled engine is checked
TOOLS = ("torch", "numpy", "onnx", "onnxruntime", "tokenizers", "safetensors")  # whose versions a manifest keeps


@dataclass(frozen=True)
class _Plan:
    """Everything that a build knows before it computes anything."""

    request: BuildRequest
    source: Source
    decoder: Decoder
    context: int
    settings: QuantizeSettings


def build(request: BuildRequest, progress: Progress | None = None) -> Bundle:
    """Build the bundle that ``request`` asks for; a build that was stopped goes on where it stopped.

    Raises:
        EdgeAwqError: the model, the calibration text or the output folder cannot be used.
    """
    progress = progress or Quiet()
    plan = _plan(request)
    workspace = Workspace(request.output, _inputs(plan), request.resume)
    if bundle := workspace.finished():
        progress.note(f"{bundle.path} is built already")
        return bundle
    load_runtime(request.target.kind)  # an unknown kind is refused before the work starts
    if request.target.kind in ON_DEVICE:
        progress.note(f"{request.target.name}: {LATER.format(kind=request.target.kind)}")
    with workspace as work:
        copy_tokenizer(plan.source.folder, work.folder)
        shutil.copyfile(plan.source.folder / CONFIG, work.folder / CONFIG)  # what an export is written from
        calibration = _calibrate(plan, work, progress)
        with WeightsWriter(work.folder / WEIGHTS, _layout(plan)) as weights:
            _store_weights(plan, _Store(work, weights), calibration.ids, progress)
            graph = build_graph(plan.decoder.family, plan.decoder.config, weights.layout)
        (work.folder / GRAPH).write_bytes(graph.SerializeToString())
        gc.collect()  # the last block's tensors go before the engine is compiled
        engine = _compile(plan, work, calibration, progress)
        return work.seal(_manifest(plan, work, calibration, engine))


def _plan(request: BuildRequest) -> _Plan:
    check_workers(request.workers)
    source = resolve_source(request.model)
    if (source.folder / MANIFEST).is_file() and (source.folder / WEIGHTS).is_file():
        raise EdgeAwqError(f"{source.folder} is a bundle already, not a checkpoint",
                           hint=f"edge-awq run {source.folder} runs it; to build with other settings, "
                           "give the checkpoint that it was built from")
    decoder = load_decoder(source.folder)
    if isinstance(decoder.checkpoint, PackedCheckpoint):
        request = as_checkpoint(request, decoder)
    context = min(request.target.limits.max_context, decoder.config.max_positions)
    settings = QuantizeSettings(request.precision, request.recipe, request.quant)
    plan = _Plan(request, source, decoder, context, settings)
    _layout(plan)  # a matrix that no group size divides is known before the work starts
    return plan


def _layout(plan: _Plan) -> list[TensorSpec]:
    return plan_layout(plan.decoder, plan.request.precision, plan.request.quant, plan.context)


def _inputs(plan: _Plan) -> dict[str, Any]:
    """Everything that decides the bundle's bytes; a build goes on only from one with the same."""
    folder, request = plan.source.folder, plan.request
    small = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".jinja"))
    text = Path(request.calibration) if request.calibration not in (None, OWN) else None
    return {
        "edge_awq": __version__,
        "model": [plan.source.name, plan.source.revision],
        "weights": [describe_file(path) for path in plan.decoder.checkpoint.files],
        "files": {path.name: hash_file(path) for path in small},
        "target": dataclasses.asdict(request.target),
        "settings": [request.precision, request.recipe, dataclasses.asdict(request.quant)],
        "calibration": [request.calibration, describe_file(text) if text and text.is_file() else None],
    }


def _calibrate(plan: _Plan, work: Workspace, progress: Progress) -> Calibration:
    """The calibration tokens, drawn once and kept for a build that goes on later."""
    kept = work.kept("calibration.json")
    if kept.is_file():
        table = json.loads(kept.read_text(encoding="utf-8"))
        return Calibration(torch.tensor(table["ids"]), table["source"], table["note"])
    tokenizer = Tokenizer.from_file(str(work.folder / "tokenizer.json"))
    spec = CalibrationSpec(plan.request.calibration or BUILT_IN)
    calibration = calibrate(plan.decoder, tokenizer, spec, progress)
    write_text(kept, json.dumps({**vars(calibration), "ids": calibration.ids.tolist()}))
    if calibration.note:
        progress.note(f"calibration: {calibration.note}")
    return calibration


@dataclass(frozen=True)
class _Store:
    """Where a build's results go, unit by unit."""

    work: Workspace
    weights: WeightsWriter

    def finish(self, tensors: dict[str, Tensor], report: dict[str, Any] | None, hidden: Tensor | None) -> None:
        """Write the tensors of one unit, and what the next one needs, then record the unit as done."""
        for name, tensor in tensors.items():
            self.weights.write(name, tensor.numpy())
        self.weights.sync()
        carry = None if hidden is None else partial(write_tensors, tensors={"hidden": hidden})
        self.work.finish_unit(report, carry)

    def hidden(self) -> Tensor | None:
        """What the last unit left: the next block's inputs [sequences, tokens, hidden] float32."""
        path = self.work.carried()
        return None if path is None else load_file(path)["hidden"]


def _store_weights(plan: _Plan, store: _Store, ids: Tensor, progress: Progress) -> None:
    """Quantize and write the embedding, every block, and the head; what an earlier build has done is left out."""
    num_blocks = plan.decoder.config.num_layers
    done = store.work.journal.done
    hidden = store.hidden()
    with progress.track("quantize", num_blocks + 2, done) as advance:
        if done == 0:
            tensors, hidden = _first_unit(plan, ids)
            store.finish(tensors, None, hidden)
            advance(1)
        work = Work(plan.decoder, max(done - 1, 0), hidden, plan.settings)
        with closing(quantize_blocks(work, plan.request.workers)) as blocks:
            for index, (block, outputs) in zip(work.blocks, blocks, strict=True):
                hidden = outputs
                tensors = {f"blocks.{index}.{name}": tensor for name, tensor in block.tensors.items()}
                store.finish(tensors, dataclasses.asdict(block.report), hidden)
                advance(1)
        if done < num_blocks + 2:
            head = make_head(plan.decoder, hidden, plan.settings)
            store.finish(head.tensors, dataclasses.asdict(head.report), None)
            advance(1)


def _first_unit(plan: _Plan, ids: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Embedding and positions, and the calibration's embedded tokens where the recipe looks at them."""
    config, tables = plan.decoder.config, plan.decoder.embedding()
    hidden = embed_tokens(config, tables, ids) if plan.settings.needs_calibration else None
    if "positions.weight" in tables:
        tables["positions.weight"] = tables["positions.weight"][: plan.context]
    tensors = {name: to_half(name, table) for name, table in tables.items()}
    for name, rope in config.ropes.items():
        cos, sin = rope_tables(rope, plan.context)
        tensors |= {f"{name}.cos": torch.from_numpy(cos), f"{name}.sin": torch.from_numpy(sin)}
    return tensors, hidden


def _compile(plan: _Plan, work: Workspace, calibration: Calibration, progress: Progress) -> dict[str, Any] | None:
    """Compile for the target and check the result on some of the calibration text; None where the device compiles."""
    if plan.request.target.kind in ON_DEVICE:
        return None
    probe = calibration.ids.flatten()[:PROBE_TOKENS].tolist()
    with progress.track("compile", 1) as advance:
        report = load_runtime(plan.request.target.kind).compile_bundle(work.folder, probe)
        advance(1)
    return dataclasses.asdict(report)


def _manifest(plan: _Plan, work: Workspace, calibration: Calibration, engine: dict[str, Any] | None) -> Manifest:
    request, target = plan.request, plan.request.target
    quant = {}
    if request.precision != "fp16":
        sequences, tokens = calibration.ids.shape
        quant = {"recipe": request.recipe, **dataclasses.asdict(request.quant),
                 "calibration": f"{calibration.source}, {sequences} x {tokens} tokens"}
    if isinstance(checkpoint := plan.decoder.checkpoint, PackedCheckpoint):
        quant |= {"recipe": f"import of {checkpoint.layout.name}", "calibration": "none"}
    return Manifest(
        name=request.output.stem,
        source=plan.source.name,
        revision=plan.source.revision,
        family=plan.decoder.family.name,
        precision=request.precision,
        config=dataclasses.asdict(plan.decoder.config),
        context=plan.context,
        prefill_chunk=target.limits.prefill_chunk,
        target=target.name,
        runtime=target.kind,
        contract_version=CONTRACT_VERSION,
        quant=quant,
        report=list(work.journal.report),
        engine=engine,
        tool_versions={"edge-awq": __version__, **{tool: importlib.metadata.version(tool) for tool in TOOLS}},
        fingerprint=work.fingerprint,
    )
