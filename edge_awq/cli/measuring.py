"""Commands that measure, and that draw what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edge_awq.cli.common import progress


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The report's folder.")
def report(results: tuple[Path, ...], output: Path) -> None:
    """Draw the AWQ figure with RESULTS in it: result files, and run directories for their power over time.

    Without RESULTS it shows the paper's values, the memory limits and what is predicted.
    """
    from edge_awq.bench.report import write_report

    for path in write_report(results, output):
        click.echo(str(path))


@click.command()
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--shape", metavar="NAME", help="In place of bundles: this exact shape with random weights, such as "
              "llama-2-7b; made once and kept.")
@click.option("--precision", metavar="LIST", help="Of the shape: w4a16, fp16 or both with a comma.  [default: w4a16]")
@click.option("-t", "--target", help="What to build the shape for.  [default: cpu]")
@click.option("--protocol", default="figure", show_default=True,
              help="figure: 4 + 200 tokens, median step.  realistic: prompts of 512 to 4096 tokens.")
@click.option("--repeats", type=click.IntRange(min=1), help="Of every measurement.  [default: 5]")
@click.option("--baseline", is_flag=False, flag_value="shape", metavar="[CHECKPOINT]",
              help="Also measure this checkpoint, or the shape's own, in float16 through transformers.")
@click.option("--peer", "peers", metavar="NAME=MODEL", multiple=True,
              help="Also measure llama.cpp or onnxruntime-genai on a model file of theirs; may be given again.")
@click.option("--compare", type=click.Path(path_type=Path), metavar="OLD.json",
              help="Exit with 1 if anything is slower than there by more than the noise.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: each engine's own choice]")
@click.option("--meter", metavar="NAME", envvar="EDGE_AWQ_METER", help="Power meter, as for run.  [default: auto]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="RESULTS.json", help="Write the results.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON instead of a table.")
def bench(bundles: tuple[Path, ...], **options: Any) -> None:
    """Measure tokens/s and joules per token of BUNDLES, of one model, beside other engines."""
    from edge_awq.bench.bench import request_from_options, run_bench
    from edge_awq.bench.compare import REGRESSION, compare_with
    from edge_awq.bench.results import read_results, results_json, write_results
    from edge_awq.bench.show import show_comparison, show_results

    compare, output, as_json = (options.pop(name) for name in ("compare", "output", "as_json"))
    if compare is not None:
        read_results(compare)  # what is wrong with it is known before anything long begins
    bars = progress()
    outcome = run_bench(request_from_options(bundles, bars, **options), bars)
    if output is not None:
        write_results(output, outcome.results, outcome.left_out)
    lines = [results_json(outcome.results, outcome.left_out)] if as_json else show_results(
        outcome.results, outcome.left_out)
    for line in lines:
        click.echo(line)
    if compare is not None:
        comparisons = compare_with(compare, outcome.results)
        for line in show_comparison(comparisons):
            click.echo(line, err=as_json)
        sys.exit(any(one.verdict == REGRESSION for one in comparisons))
