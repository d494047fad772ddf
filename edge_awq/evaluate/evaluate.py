"""Evaluation of bundles, one after the other, each against the same reference on the same tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edge_awq.bundle import MANIFEST, Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.evaluate.reference import (
    CHUNK,
    Passage,
    Reference,
    from_halves,
    read_reference,
    to_halves,
    write_reference,
)
from edge_awq.evaluate.score import Quality, Tally, log_probabilities
from edge_awq.lazy import require
from edge_awq.progress import Progress
from edge_awq.runner.session import Session, load
from edge_awq.runner.vocabulary import read_vocabulary
from edge_awq.texts import cut_windows, read_pieces

BUILT_IN = Path(__file__).parent / "text" / "mixed.txt"
WINDOW_TOKENS, WINDOWS = 512, 16


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate.

    Attributes:
        bundles: folders.
        reference: a checkpoint's folder or hub id, a bundle, or a saved reference; None measures perplexity alone.
        save: where to keep the reference; None keeps it for this run only.
        text: a .txt or .jsonl file; None takes a saved reference's tokens, else the built-in text.
        window_tokens: None takes 512, or as many as the model has positions for.
        loading: of a bundle: threads, kv_bits, plugin_free; see edge_awq.runner.session.load.
    """

    bundles: tuple[Path, ...]
    reference: str | None = None
    save: Path | None = None
    text: Path | None = None
    window_tokens: int | None = None
    windows: int = WINDOWS
    loading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """One bundle's quality, and what it was measured of."""

    bundle: Path
    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    quality: Quality


@dataclass(frozen=True)
class Evaluation:
    """The results; ``reference`` is the name of the model that they are compared with."""

    passage: Passage
    reference: str | None
    results: list[Evaluated]


def evaluate(request: EvalRequest, progress: Progress) -> Evaluation:
    """Evaluate every bundle of the request.

    Raises:
        EdgeAwqError: a model, a text or a reference cannot be used, or they do not belong together.
    """
    _check(request)
    with ExitStack() as stack:
        passage, reference = _find_reference(request, stack, progress)
        results = [_evaluate(bundle, passage, reference, request.loading, progress) for bundle in request.bundles]
        return Evaluation(passage, reference.name if reference else None, results)


def _check(request: EvalRequest) -> None:
    for bundle in request.bundles:
        Bundle.open(bundle, verify=False)
    if not request.bundles and request.save is None:
        raise EdgeAwqError("there is nothing to evaluate", hint="name a bundle, or a reference to --save")
    if request.save is not None and request.reference is None:
        raise EdgeAwqError("--save without --reference: there is nothing to save",
                           hint="name the model whose answers are to be kept")


def _find_reference(request: EvalRequest, stack: ExitStack, progress: Progress) -> tuple[Passage, Reference | None]:
    """The text's windows, and what the reference foretells of them, if there is one."""
    if request.reference is None:
        bundle = Bundle.open(request.bundles[0], verify=False)  # its hashes are checked when it is loaded
        return _cut(request, read_vocabulary(bundle.path).tokenizer, bundle.manifest.context), None
    path = Path(request.reference).expanduser()
    if path.is_file():
        return _saved(request, read_reference(path))
    save = request.save or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "reference.npz"
    if (path / MANIFEST).is_file():
        _save_bundle(save, request, path, progress)
    else:
        _save_checkpoint(save, request, progress)
    reference = read_reference(save)
    return reference.passage, reference


def _saved(request: EvalRequest, reference: Reference) -> tuple[Passage, Reference]:
    if request.save is not None or request.text is not None or request.window_tokens is not None:
        raise EdgeAwqError(f"{reference.path} holds the tokens to evaluate on already",
                           hint="leave --text, --window and --save out, or give the model as --reference")
    return reference.passage, reference


def _cut(request: EvalRequest, tokenizer: Tokenizer, positions: int) -> Passage:
    """The windows of the text that is asked for."""
    tokens = request.window_tokens or min(WINDOW_TOKENS, positions)
    if tokens > positions:
        raise EdgeAwqError(f"windows of {tokens} tokens do not fit into this model's {positions}",
                           hint=f"use --window {positions} or less")
    source = request.text or BUILT_IN
    windows = cut_windows(tokenizer, read_pieces(source), request.windows, tokens)
    passage = Passage(windows, "built-in" if source == BUILT_IN else str(source))
    if not windows.ids or not len(passage.targets(0)):
        raise EdgeAwqError(f"{source}: no text to evaluate on", hint="give a file with more text")
    return passage


def _save_bundle(save: Path, request: EvalRequest, path: Path, progress: Progress) -> None:
    bundle = Bundle.open(path, verify=False)
    passage = _cut(request, read_vocabulary(path).tokenizer, bundle.manifest.context)
    with _opened(path, passage, request.loading, progress) as session:
        parts = (_run(session, passage, index) for index in _windows(passage, progress, path.name))
        found = (np.concatenate([to_halves(log_q) for _, log_q in window]) for window in parts)
        write_reference(save, bundle.manifest.name, passage, found)


def _save_checkpoint(save: Path, request: EvalRequest, progress: Progress) -> None:
    require("torch", "quantize")
    from edge_awq.evaluate.checkpoint import halves_of
    from edge_awq.model.decoder import load_decoder
    from edge_awq.model.source import resolve_source
    from edge_awq.model.tokenizer import read_tokenizer

    source = resolve_source(str(request.reference))
    decoder = load_decoder(source.folder)
    passage = _cut(request, read_tokenizer(source.folder), decoder.config.max_positions)
    write_reference(save, source.name, passage, halves_of(decoder, passage, progress))


def _evaluate(path: Path, passage: Passage, reference: Reference | None, loading: Mapping[str, Any],
              progress: Progress) -> Evaluated:
    with _opened(path, passage, loading, progress) as session:
        if reference is not None and session.engine.vocab_size != reference.vocab_size:
            raise EdgeAwqError(f"{path} has {session.engine.vocab_size} tokens in its vocabulary, its reference "
                               f"{reference.name} has {reference.vocab_size}", hint="compare forms of one model")
        tally = Tally()
        for index in _windows(passage, progress, path.name):
            targets, halves = passage.targets(index), reference.halves(index) if reference else None
            for rows, log_q in _run(session, passage, index):
                tally.add(index, targets[rows], log_q, None if halves is None else from_halves(halves[rows]))
        return Evaluated(path, **session.provenance(), quality=tally.quality())


def _opened(path: Path, passage: Passage, loading: Mapping[str, Any], progress: Progress) -> Session:
    context = Bundle.open(path, verify=False).manifest.context
    if passage.window_tokens > context:
        raise EdgeAwqError(f"{path}: windows of {passage.window_tokens} tokens do not fit into its context, {context}",
                           hint=f"use --window {context} or less")
    return load(path, context=passage.window_tokens, progress=progress, **loading)


def _windows(passage: Passage, progress: Progress, name: str) -> Iterator[int]:
    """The windows, one after the other, with progress."""
    count = len(passage.windows.ids)
    with progress.track(f"run {name}", count) as advance:
        for index in range(count):
            yield index
            advance(1)


def _run(session: Session, passage: Passage, index: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of a window by the bundle's own engine: which of the foretold tokens, and [tokens, V] float32 for them."""
    ids = passage.windows.ids[index]
    session.reset()
    for start in range(0, len(ids) - 1, CHUNK):
        log_q = log_probabilities(session.engine.logits(ids[start : min(start + CHUNK, len(ids) - 1)]))
        before = max(passage.first - start, 0)  # rows of the opening
        if before < len(log_q):
            begin = start + before - passage.first
            yield slice(begin, begin + len(log_q) - before), log_q[before:]
