"""Commands that make a bundle, or a checkpoint of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_awq.cli.common import progress, to_int


@click.command()
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
@click.option("--workers", metavar="ray[://HOST:PORT]", help="Quantize blocks on many workers at once, with Ray.")
@click.option("--resume/--fresh", default=None, help="Insist on going on, or start over.  [default: go on if possible]")
def build(**options: Any) -> None:
    """Quantize MODEL, a Hugging Face folder or a hub id (org/name, org/name@revision), into a bundle."""
    from edge_awq.pipeline import build as run_build
    from edge_awq.request import BuildRequest

    request = BuildRequest.from_options(**options)
    bundle = run_build(request, progress())
    size_bytes = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    attempt = f"run {bundle.path} -p \"Hello\"" if bundle.manifest.engine else f"inspect {bundle.path}"
    click.echo(f"{bundle.path}: {size_bytes / 1e6:.1f} MB, try: edge-awq {attempt}", err=True)


@click.command("compile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Compile even if an engine for this machine is there.")
@click.option("--weights-inside", is_flag=True, help="A self-contained engine that needs no weights file, as large as "
              "that; prompts run a few tokens at a time.")
@click.option("--kv-bits", type=click.Choice(["16", "8"]), callback=to_int, help="Of a cached key or value, as run is "
              "to have it.  [default: 16]")
@click.option("--plugin-free", is_flag=True, help="With TensorRT's own int4 instead of edge-awq's plugins, for "
              "symmetric bundles: on TensorRT-RTX, which compiles without a GPU, or TensorRT from 10.15 on.")
def compile_engine(bundle: Path, fresh: bool, plugin_free: bool, **form: Any) -> None:
    """Compile BUNDLE for the GPU of this machine; 'run' does it itself when it must."""
    from edge_awq.bundle import Bundle
    from edge_awq.engine import ON_DEVICE, load_runtime
    from edge_awq.errors import EdgeAwqError

    if plugin_free and any(form.values()):
        raise click.UsageError("--plugin-free excludes --weights-inside and --kv-bits")
    kind = Bundle.open(bundle, verify=False).manifest.runtime
    if kind not in ON_DEVICE:
        raise EdgeAwqError(f"{bundle} runs on {kind}: its engine came with the build", hint="edge-awq run runs it")
    runtime = load_runtime(kind, plugin_free)
    report = runtime.compile_bundle(bundle, progress(), fresh, **({} if plugin_free else form))
    if report is None:
        click.echo(f"{bundle}: an engine for this machine is there; --fresh compiles it anew", err=True)
        return
    passes = ", ".join(f"{name} of up to {rows} tokens" for name, rows in report.passes.items())
    click.echo(f"{bundle / report.file}: {report.engine_bytes / 1e6:.1f} MB ({passes}), compiled in "
               f"{report.compile_s:.1f} s, at most {report.peak_host_bytes / 1e6:.0f} MB of host memory "
               f"({report.forecast_bytes / 1e6:.0f} MB by forecast)", err=True)


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["autoawq", "compressed-tensors"]), required=True,
              help="How its linears are packed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new folder.")
def export_checkpoint(bundle: Path, form: str, output: Path) -> None:
    """Write BUNDLE as a quantized Hugging Face checkpoint, which vLLM and transformers read."""
    from edge_awq.lazy import require

    require("torch", "quantize")
    from edge_awq.interop.export import export_bundle

    bars = progress()
    written = export_bundle(bundle, form, output, bars)
    for note in written.notes:
        bars.note(note)
    click.echo(f"{written.folder}: {written.linears} linears, {written.weights:,} weights equal to the bit", err=True)
