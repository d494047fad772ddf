"""The command line: parse, call, print. The only module that prints."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq import __version__
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.power.base import MeterChoice
    from edge_awq.power.monitor import Monitor
    from edge_awq.progress import Progress
    from edge_awq.runner.energy import RequestEnergy
    from edge_awq.runner.generate import GenerationSettings, Token
    from edge_awq.runner.metrics import RunSummary
    from edge_awq.runner.session import Session

GO_ON = "the same command goes on where this one stopped"
PROMPT_NEEDED = "give a prompt: -p TEXT, --prompt-file FILE, or text on standard input"


class _Commands(click.Group):
    """Turns every failure that a user can act on into one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeAwqError as error:
            _fail(error.message, error.hint)
        except KeyboardInterrupt:
            _fail("interrupted", None if ctx.invoked_subcommand != "build" else GO_ON)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}", None)


def _fail(message: str, hint: str | None) -> None:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-awq")
def main() -> None:
    """Quantize language models to 4 bits with AWQ and run them on small machines.

    \b
      edge-awq build MODEL -o NAME.bundle     on a workstation
      edge-awq run NAME.bundle -p "Hello"     on the device
    """


@main.command()
@click.argument("model")
@click.option("-t", "--target", default="cpu", show_default=True,
              help="What to build for: a name of 'edge-awq targets', auto, or a profile.toml.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder.  [default: MODEL.bundle]")
@click.option("--precision", type=click.Choice(["w4a16", "fp16"]), default="w4a16", show_default=True)
@click.option("--recipe", type=click.Choice(["awq", "rtn", "best"]), default="awq",
              show_default=True, help="awq searches scales and clips; best adds GPTQ rounding; rtn only rounds.")
@click.option("--calibration", metavar="FILE|self", help="Text or jsonl file; 'self' lets the model write its own."
              "  [default: built-in text]")
@click.option("--group-size", type=click.Choice(["128", "64"]), help="Weights that share a scale.  [default: target's]")
@click.option("--head-bits", type=click.Choice(["4", "8", "16"]), help="Of the output head.  [default: target's]")
@click.option("--symmetric", is_flag=True, help="No zero points: smaller kernels' work, a little less exact.")
@click.option("--resume/--fresh", default=None, help="Insist on going on, or start over.  [default: go on if possible]")
def build(**options: Any) -> None:
    """Quantize MODEL, a Hugging Face folder or a hub id (org/name, org/name@revision), into a bundle."""
    from edge_awq.pipeline import BuildRequest
    from edge_awq.pipeline import build as run_build

    request = BuildRequest.from_options(**options)
    bundle = run_build(request, _progress())
    size_bytes = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    attempt = f"run {bundle.path} -p \"Hello\"" if bundle.manifest.engine else f"inspect {bundle.path}"
    click.echo(f"{bundle.path}: {size_bytes / 1e6:.1f} MB, try: edge-awq {attempt}", err=True)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="The prompt's text.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file that holds the prompt.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="Tokens to generate at most.  [default: 128]")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option("--temperature", type=float, help="Flattens (> 1) or sharpens (< 1) the choice.")
@click.option("--top-k", type=int, help="Choose among the k likeliest.")
@click.option("--top-p", type=float, help="Choose among the likeliest that make up this probability.")
@click.option("--min-p", type=float, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1: tokens already seen become less likely.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, help="Stop before this text; may be given again.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens in the KV cache.  [default: the bundle's]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@click.option("--log", type=click.Path(path_type=Path), help="Folder for the run log.")
@click.option("--meter", metavar="NAME", envvar="EDGE_AWQ_METER", help="Power meter: auto, jtop, ina3221, nvml, rapl, "
              "battery or none.  [default: auto]")
@click.option("--meter-interval", type=float, metavar="S", help="Seconds between its samples.  [default: 0.1]")
@click.option("--meter-idle", type=click.FloatRange(min=0), metavar="S", default=0.0,
              help="Seconds to measure idle power first, for joules above it.  [default: 0]")
@click.option("--meter-root", envvar="EDGE_AWQ_METER_ROOT", type=click.Path(file_okay=False, exists=True),
              help="Where a container has the machine's /sys, /proc and /etc.  [default: /]")
def run(bundle: Path, **options: Any) -> None:
    """Run BUNDLE on a prompt and stream what it writes; speed goes to standard error."""
    text = _read_prompt(options.pop("prompt"), options.pop("prompt_file"))
    chat, as_json, log, idle_s = (options.pop(name) for name in ("chat", "as_json", "log", "meter_idle"))
    if options.pop("greedy"):
        if options["temperature"] is not None:
            raise click.UsageError("--greedy and --temperature exclude each other")
        options["temperature"] = 0.0
    from edge_awq.power.monitor import start_meter
    from edge_awq.runner.one_line import speed_line
    from edge_awq.runner.session import load

    meter = start_meter(_meter_choice(bundle, options))
    if meter.asked_for:
        meter.ready()  # it must measure: say so before anything long begins
    with meter, load(bundle, options.pop("threads"), options.pop("context")) as session:
        settings = session.settings(**{name: value for name, value in options.items() if value is not None})
        ids = session.encode_chat([{"role": "user", "content": text}]) if chat else session.encode(text)
        if meter.ready() is not None and idle_s:
            meter.measure_idle(idle_s)
        summary, energy = _answer(session, ids, settings, meter, (log, as_json))
        bandwidth_gb_s = session.memory_bandwidth_gb_s()
    if as_json:
        click.echo(json.dumps(summary.to_dict(), ensure_ascii=False))
    else:
        click.echo(f"\n{speed_line(summary, energy, bandwidth_gb_s)}", err=True)


def _meter_choice(bundle: Path, options: dict[str, Any]) -> MeterChoice:
    from edge_awq.power.base import MeterChoice
    from edge_awq.runner.session import measuring_device

    wanted = {"name": options.pop("meter"), "interval_s": options.pop("meter_interval"),
              "root": options.pop("meter_root")}
    given = {key: value for key, value in wanted.items() if value is not None}
    return MeterChoice(device=measuring_device(bundle), **given)


def _answer(session: Session, ids: list[int], settings: GenerationSettings, meter: Monitor,
            places: tuple[Path | None, bool]) -> tuple[RunSummary, RequestEnergy]:
    """Generate, print, log and measure; ``places``: the log's folder, and whether only one JSON object is printed."""
    from edge_awq.runner.energy import measure_request
    from edge_awq.runner.live import live_status

    log, as_json = places
    tokens = session.generate(ids, settings)
    with session.open_log(log, settings, meter) if log else nullcontext() as run_log:
        if run_log:
            tokens = run_log.record(tokens, len(ids))
        started_ns = time.monotonic_ns()
        with live_status(meter, not as_json) as live:
            answer = list(_echo_each(live.watch(tokens), stream=not as_json))
        energy = run_log.energy if run_log else measure_request(meter, started_ns, answer, len(ids))
        summary = session.summarize(answer, energy)
        if run_log:
            run_log.summary(summary, session.memory_bandwidth_gb_s())
    return summary, energy


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt: given, in a file, or on standard input when that is not a terminal."""
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("-p and --prompt-file exclude each other")
    if prompt is not None:
        return prompt
    if prompt_file is None and sys.stdin.isatty():
        raise click.UsageError(PROMPT_NEEDED)
    raw = sys.stdin.buffer.read() if prompt_file is None else prompt_file.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise EdgeAwqError(f"{prompt_file or 'standard input'}: not UTF-8 text ({error.reason})",
                           hint="convert the prompt to UTF-8") from error


def _echo_each(tokens: Iterator[Token], stream: bool) -> Iterator[Token]:
    for token in tokens:
        if stream:
            click.echo(token.text, nl=False)
            sys.stdout.flush()
        yield token


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds, after checking every file's hash."""
    import dataclasses

    from edge_awq.bundle import Bundle

    opened = Bundle.open(bundle)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(opened.manifest), indent=1))
        return
    from edge_awq.describe import describe_bundle

    for line in describe_bundle(opened):
        click.echo(line)


@main.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["autoawq", "compressed-tensors"]), required=True,
              help="How its linears are packed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new folder.")
def export_checkpoint(bundle: Path, form: str, output: Path) -> None:
    """Write BUNDLE as a quantized Hugging Face checkpoint, which vLLM and transformers read."""
    from edge_awq.lazy import require

    require("torch", "quantize")
    from edge_awq.interop.export import export_bundle

    progress = _progress()
    written = export_bundle(bundle, form, output, progress)
    for note in written.notes:
        progress.note(note)
    click.echo(f"{written.folder}: {written.linears} linears, {written.weights:,} weights equal to the bit", err=True)


@main.command()
def targets() -> None:
    """List what bundles can be built for, and mark what this machine is."""
    from edge_awq.describe import describe_targets

    for line in describe_targets():
        click.echo(line)


@main.command()
@click.argument("model")
@click.option("-t", "--target", help="What to plan for: a name of 'edge-awq targets', a profile.toml.  [default: auto]")
@click.option("--context", type=click.IntRange(min=1), help="Tokens in the KV cache.  [default: target's]")
@click.option("--precision", type=click.Choice(["w4a16", "fp16"]), help="[default: w4a16; a bundle's own]")
@click.option("--mode", help="The Jetson's power mode.  [default: profile's]")
@click.option("--all-targets", is_flag=True, help="One row for every known target.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(model: str, target: str | None, all_targets: bool, as_json: bool, **asked: Any) -> None:
    """Forecast memory and speed of MODEL before anything is built.

    MODEL is a checkpoint's folder, a bundle, a hub id (only its config.json is fetched), or an exact shape by name:
    llama-2-7b, mpt-30b, falcon-7b ...
    """
    if all_targets and (target or asked["mode"]):
        raise click.UsageError("--all-targets excludes --target and --mode")
    from edge_awq.plan import Request, plan_for
    from edge_awq.plan.show import show_matrix, show_plan

    plans = plan_for(model, None if all_targets else target or "auto", Request(**asked))
    if as_json:
        found = [one.to_dict() for one in plans]
        click.echo(json.dumps(found if all_targets else found[0], indent=1))
        return
    for line in show_matrix(plans) if all_targets else show_plan(plans[0]):
        click.echo(line)


@main.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The report's folder.")
def report(results: tuple[Path, ...], output: Path) -> None:
    """Draw the AWQ figure with RESULTS in it: result files, and run directories for their power over time.

    Without RESULTS it shows the paper's values, the memory limits and what is predicted.
    """
    from edge_awq.bench.report import write_report

    for path in write_report(results, output):
        click.echo(str(path))


@main.group()
def log() -> None:
    """Show or export the logs that 'edge-awq run --log DIR' writes."""


@log.command()
@click.argument("run", type=click.Path(path_type=Path))
def show(run: Path) -> None:
    """What was run in directory RUN, where, how fast, and for how many joules."""
    from edge_awq.runner.logread import read_run, show_run

    for line in show_run(read_run(run)):
        click.echo(line)


@log.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["md", "csv", "json", "llama-bench"]), default="md",
              show_default=True)
def export_run_log(run: Path, kind: str) -> None:
    """The requests of directory RUN as a table or as JSON."""
    from edge_awq.runner.logexport import export_run
    from edge_awq.runner.logread import read_run

    click.echo(export_run(read_run(run), kind))


def _progress() -> Progress:
    from edge_awq.progress import Bars, Lines

    return Bars() if sys.stderr.isatty() else Lines(partial(click.echo, err=True))


if __name__ == "__main__":
    main()
