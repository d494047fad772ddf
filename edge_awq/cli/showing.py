"""Commands that look at what is there: bundles, targets, forecasts, run logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge_awq.cli.common import to_int


@click.command()
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


@click.command()
def targets() -> None:
    """List what bundles can be built for, and mark what this machine is."""
    from edge_awq.describe import describe_targets

    for line in describe_targets():
        click.echo(line)


@click.command()
def doctor() -> None:
    """Try what this machine can do, and say what it lacks and how to get it.

    Exit code 1: something is missing that bundles for this very machine need.
    """
    from edge_awq.doctor import examine

    lacking = False
    for finding in examine():
        click.echo(f"{finding.state:<4}{finding.subject:<18}{finding.text}")
        if finding.hint:
            click.echo(f"{'':<22}{finding.hint}")
        lacking |= finding.state == "no"
    if lacking:
        raise SystemExit(1)


@click.command()
@click.argument("model")
@click.option("-t", "--target", help="What to plan for: a name of 'edge-awq targets', a profile.toml.  [default: auto]")
@click.option("--context", type=click.IntRange(min=1), help="Tokens in the KV cache.  [default: target's]")
@click.option("--precision", type=click.Choice(["w4a16", "fp16"]), help="[default: w4a16; a bundle's own]")
@click.option("--kv-bits", type=click.Choice(["16", "8"]), callback=to_int, help="Of a cached key or value on a GPU.  "
              "[default: 16]")
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


@click.group()
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
