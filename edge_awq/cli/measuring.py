"""Commands that measure, and that draw what was measured."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.cli.common import Finite, check_new_file, form_options, progress
from edge_awq.cli.options import meter_options
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.bench.measure import Outcome


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
              help="Exit with 1 if anything is slower than there, or takes more joules, by more than the noise.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: each engine's own choice]")
@form_options
@meter_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="RESULTS.json",
              help="Write the results, again after every one.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON instead of a table.")
def bench(bundles: tuple[Path, ...], **options: Any) -> None:
    """Measure tokens/s and joules per token of BUNDLES, of one model, beside other engines."""
    from edge_awq.bench.bench import request_from_options, run_bench
    from edge_awq.bench.compare import REGRESSION, check_any_compared, compare_with
    from edge_awq.bench.results import read_results, results_json, write_results
    from edge_awq.bench.show import show_comparison, show_results

    compare, output, as_json = (options.pop(name) for name in ("compare", "output", "as_json"))
    check_new_file(output)
    if compare is not None:
        read_results(compare)  # what is wrong with it is known before anything long begins
        if output is not None and output.resolve() == compare.resolve():
            raise EdgeAwqError(f"--compare and -o are both {output}: the results would be compared with themselves",
                               hint="write them to another file")
    bars = progress()
    so_far: list[Outcome] = []

    def write(outcome: Outcome) -> None:
        if output is not None:
            write_results(output, outcome.results, outcome.left_out, outcome.meter_warnings)

    def keep(outcome: Outcome) -> None:
        so_far[:] = [outcome]
        with contextlib.suppress(OSError):  # a full disk ends nothing; what is still wrong at the end is told then
            write(outcome)

    def show(outcome: Outcome) -> None:
        as_text = results_json(outcome.results, outcome.left_out, outcome.meter_warnings)
        for line in [as_text] if as_json else show_results(outcome):
            click.echo(line)

    try:
        outcome = run_bench(request_from_options(bundles, bars, **options), bars, keep)
    except KeyboardInterrupt:
        for measured in so_far:
            show(measured)
        raise
    show(outcome)
    write(outcome)  # after they were shown: a disk that is full loses nothing
    if compare is not None:
        comparisons = compare_with(compare, outcome.results)
        for line in show_comparison(comparisons):
            click.echo(line, err=as_json)
        check_any_compared(compare, comparisons)
        sys.exit(any(one.verdict == REGRESSION for one in comparisons))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--modes", metavar="LIST", help="Names of power modes with commas between them.  [default: all]")
@click.option("--min-tokens-per-s", type=Finite(), metavar="X", help="Choose among modes that are at least so fast.")
@click.option("--max-temperature", type=Finite(), metavar="C", help="Choose among modes that stay below so many C.")
@click.option("--protocol", default="figure", show_default=True, help="As for bench.")
@click.option("--repeats", type=click.IntRange(min=1), help="Of every measurement.  [default: 5]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the engine's own choice]")
@form_options
@click.option("--settle", type=Finite(minimum=0), metavar="S", default=5.0, show_default=True,
              help="Seconds to wait after a mode is set.")
@meter_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="RESULTS.json",
              help="Write the results, again after every mode; 'edge-awq report' reads them.")
@click.option("--set-by", metavar="WAY", default="auto", show_default=True,
              help="nvpmodel, through sudo; or jtop, jetson-stats' service, for the group jtop.")
@click.option("--yes", is_flag=True, help="Do not ask before the power mode is changed.")
def tune(bundle: Path, **options: Any) -> None:
    """Measure BUNDLE in a Jetson's power modes and name the one with the most tokens per joule.

    Sets one mode after the other and the original one at the end. Not yet verified on device.
    """
    from edge_awq.bench.bench import prepare, request_from_options
    from edge_awq.bench.results import write_results
    from edge_awq.tune.nvpmodel import ModeSwitch
    from edge_awq.tune.setters import find_setter
    from edge_awq.tune.show import show_tuning
    from edge_awq.tune.tune import Bounds, Tuning
    from edge_awq.tune.tune import tune as tune_modes

    names, output, yes, settle_s, way = (options.pop(name) for name in ("modes", "output", "yes", "settle", "set_by"))
    bounds = Bounds(options.pop("min_tokens_per_s"), options.pop("max_temperature"))
    bars = progress()
    check_new_file(output)
    prepared = prepare(request_from_options((bundle,), bars, **options))
    switch = ModeSwitch(prepared.settings.root, find_setter(way))
    modes = switch.modes if names is None else switch.find([name.strip() for name in names.split(",")])
    words = f"Set {', '.join(mode.name for mode in modes)} one after the other, and {switch.original.name} at the end?"
    if not yes and not _agreed(words):
        raise EdgeAwqError(f"the power mode was left at {switch.original.name}: nobody agreed to change it",
                           hint="answer y, or give --yes")

    def keep(tuning: Tuning) -> None:
        if output is not None:
            write_results(output, tuning.results, tuning.left_out, tuning.meter_warnings)

    tuning = tune_modes(prepared, switch, modes, bars, keep, settle_s)
    keep(tuning)  # with what the last modes left out
    for line in show_tuning(tuning, bounds, switch.original.name):
        click.echo(line)


def _agreed(question: str) -> bool:
    """Whether the user said yes; no where nobody can answer."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        return False
