"""An evaluation as lines of text, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

from edge_awq import __version__
from edge_awq.evaluate.evaluate import Evaluated, Evaluation
from edge_awq.tables import render

SCHEMA = 1


def show(evaluation: Evaluation) -> Iterator[str]:
    """A table, and a line on what was measured."""
    head = ["bundle", "precision", "recipe", "tokens", "perplexity"]
    head += ["x reference", "+-", "KL, nats", "+-", "99 % below", "top-1"] if evaluation.reference else ["+-"]
    yield from render(head, [_row(one, bool(evaluation.reference)) for one in evaluation.results], right=head[3:])
    windows = evaluation.passage.windows.ids
    yield f"{len(windows)} windows of {evaluation.passage.window_tokens} tokens, text: {evaluation.passage.text}"
    if evaluation.reference and evaluation.results:
        yield (f"KL and top-1 against {evaluation.reference}, "
               f"perplexity {evaluation.results[0].quality.reference_perplexity:.3f}")


def to_json(evaluation: Evaluation) -> str:
    """Everything, with the provenance of every result."""
    passage = evaluation.passage
    return json.dumps({
        "schema": SCHEMA,
        "edge_awq": __version__,
        "text": passage.text,
        "windows": len(passage.windows.ids),
        "window_tokens": passage.window_tokens,
        "reference": evaluation.reference,
        "results": [{"bundle": str(one.bundle), "model": one.model, "engine": one.engine,
                     **dataclasses.asdict(one.quality)} for one in evaluation.results],
    }, indent=2)


def _row(one: Evaluated, has_reference: bool) -> list[str]:
    quality, recipe = one.quality, one.model["quant"].get("recipe")
    row = [one.bundle.name, one.model["precision"], recipe or "", str(quality.tokens), f"{quality.perplexity:.3f}"]
    if not has_reference:
        return [*row, _scaled(quality.perplexity, quality.nll_error_nats, ".3f")]
    ratio = math.exp(quality.excess_nats)
    return [*row, f"{ratio:.4f}", _scaled(ratio, quality.excess_error_nats, ".4f"), f"{quality.kl_nats:.5f}",
            _scaled(1, quality.kl_error_nats, ".5f"), f"{quality.kl_p99_nats:.5f}", f"{quality.top1_agreement:.1%}"]


def _scaled(value: float, error: float | None, form: str) -> str:
    """The error of ``value`` from a relative one, which is that of its logarithm; nothing where there is none."""
    return "" if error is None else format(value * error, form)
