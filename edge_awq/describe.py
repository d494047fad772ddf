"""What ``edge-awq inspect`` and ``edge-awq targets`` show: a bundle and the known targets in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_awq.bundle import Bundle
from edge_awq.detect import Machine, detect_target, mode_named, read_machine
from edge_awq.tables import render
from edge_awq.target import Target, load_targets


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Lines on what a bundle is, how it was quantized, and the files it holds."""
    manifest = bundle.manifest
    config = bundle.check_config()
    revision = f" @ {manifest.revision}" if manifest.revision else ""
    yield f"{bundle.path}  (schema {manifest.schema}, every file's hash checked)"
    yield f"  model      {manifest.source}{revision}, family {manifest.family}"
    yield (f"  shape      {config['num_layers']} layers, hidden {config['hidden_size']}, {config['num_heads']} heads "
           f"of {config['head_size']}, {config['num_kv_heads']} KV heads, vocabulary {config['vocab_size']}")
    yield f"  target     {manifest.target} ({manifest.runtime}), context {manifest.context} tokens"
    yield f"  precision  {manifest.precision}" + "".join(f", {key} {value}" for key, value in manifest.quant.items())
    if manifest.engine:
        yield f"  engine     {', '.join(f'{key} {value}' for key, value in _short(manifest.engine))}"
    yield "  made with  " + ", ".join(f"{tool} {version}" for tool, version in manifest.tool_versions.items())
    yield "  files"
    for name, entry in sorted(manifest.files.items()):
        yield f"    {entry['bytes']:>14,} bytes  {entry['sha256'][:12]}  {name}"
    yield from _describe_report(manifest.report)


def _short(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a table that fit into a line."""
    return ((key, value) for key, value in table.items() if not isinstance(value, (list, dict)))


def _describe_report(report: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each part: error of its output with plain rounding and with AWQ and GPTQ, and what was kept."""
    if not report:
        return
    yield "  part          output error: rounding        AWQ       GPTQ   kept   clipped   ratios"
    for part in report:
        if imported := part.get("imported"):
            count = sum(imported.values())
            yield f"  {part['name']:<14}imported: {len(imported)} linears, {count:,} weights equal to the bit"
            continue
        searched = [fold for fold in part["folds"] if fold["ratio"] is not None]
        ratios = " ".join(f"{fold['source']} {_ratio(part, fold)}" for fold in searched)
        clipped = sum(part["clipped"].values())
        yield (f"  {part['name']:<14}{_error(part['loss_rtn']):>22}{_error(part['loss_awq']):>11}"
               f"{_error(part.get('loss_gptq')):>11}   {part['kept']:<5}{clipped:>9}   {ratios}")


def _ratio(part: dict[str, Any], fold: dict[str, Any]) -> str:
    """Of the scales that were kept: GPTQ's are of the activations and of the weights."""
    both = fold.get("gptq_ratios") if part["kept"] == "gptq" else None
    return "/".join(f"{ratio:g}" for ratio in both or (fold["ratio"],))


def _error(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3g}"


def describe_targets(machine: Machine | None = None) -> Iterator[str]:
    """A table of every target, this machine's marked with *, and a line on the machine."""
    machine = machine or read_machine()
    targets = load_targets()
    here = detect_target(machine, targets)
    if here.name not in {target.name for target in targets}:
        targets = (*targets, here)
    head = ("", "target", "runtime", "memory", "GB/s", "SMs", "power modes")
    yield from render(head, [("*" if target.name == here.name else "", *_target_row(target)) for target in targets],
                      right=("memory", "GB/s", "SMs"))
    mode = mode_named(here, machine.power_mode)
    yield ""
    yield (f"* this machine{f', {machine.model}' if machine.model else ''}"
           f"{f', power mode {mode or machine.power_mode}' if machine.power_mode else ''}: --target auto")


def _target_row(target: Target) -> tuple[str, ...]:
    device = target.device
    if device is None:
        return (target.name, target.kind, "", "", "", "", target.description)
    bandwidth = "-" if device.bandwidth_gb_s is None else f"{device.bandwidth_gb_s:g}"
    return (target.name, target.kind, f"{device.memory_mib / 1024:.1f} GiB", bandwidth, str(device.sm_count or ""),
            " ".join(mode.removeprefix("MODE_") for mode in target.modes))
