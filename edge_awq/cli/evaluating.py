"""The command that measures quality."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edge_awq.cli.common import Finite, check_new_file, form_options, progress, say_error


@click.command("eval")
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--reference", metavar="MODEL", help="What to compare with: a checkpoint (folder or hub id), a bundle, "
              "or what --save wrote.  [default: perplexity alone]")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE.npz", help="Keep what the reference foretells, "
              "to evaluate against it elsewhere; 2 bytes for each token and entry of the vocabulary.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help=".txt, or .jsonl with a \"text\" in each line.  [default: built in, 10 kB]")
@click.option("--window", "window_tokens", type=click.IntRange(min=2), metavar="N",
              help="Tokens of a window; each begins anew.  [default: 512]")
@click.option("--windows", type=click.IntRange(min=1), metavar="N", default=16, show_default=True,
              help="Windows at most, from the text's beginning.")
@click.option("--max-kl", type=Finite(minimum=0), metavar="X",
              help="Exit with 1 if a bundle is further than X nats per token from the reference.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]")
@form_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="RESULTS.json", help="Write the results.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON instead of a table.")
def evaluate_bundles(bundles: tuple[Path, ...], **options: Any) -> None:
    """Measure perplexity of BUNDLES, and their KL divergence and top-1 agreement with a reference.

    By the engine that ships, token by token of the same text: what a bundle's user gets.
    """
    from edge_awq.bundle import write_text
    from edge_awq.evaluate.evaluate import EvalRequest, evaluate
    from edge_awq.evaluate.show import show, to_json

    output, as_json, max_kl = (options.pop(name) for name in ("output", "as_json", "max_kl"))
    loading = {name: value for name in ("threads", "kv_bits", "plugin_free")
               if (value := options.pop(name)) not in (None, False)}
    if max_kl is not None and options["reference"] is None:
        raise click.UsageError("--max-kl needs a --reference to compare with")
    for file in (output, options["save"]):
        check_new_file(file)
    evaluation = evaluate(EvalRequest(bundles, **options, loading=loading), progress())
    if evaluation.results:
        for line in [to_json(evaluation)] if as_json else show(evaluation):
            click.echo(line)
    if output is not None:
        write_text(output, to_json(evaluation) + "\n")
    if (kept := options["save"]) is not None:
        click.echo(f"{kept}: {evaluation.reference}, {len(evaluation.passage.windows.ids)} windows", err=True)
    far = [one for one in evaluation.results if max_kl is not None and not one.quality.kl_nats <= max_kl]
    for one in far:
        say_error(f"{one.bundle}: {one.quality.kl_nats:.5f} nats from {evaluation.reference}, "
                  f"more than --max-kl {max_kl:g}",
                  "build it with --recipe best or --group-size 64, or with a calibration text of its own kind")
    sys.exit(bool(far))
