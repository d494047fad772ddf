"""The command line: parse, call, print. The only module that prints."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq import __version__
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.progress import Progress
    from edge_awq.runner.generate import Token
    from edge_awq.runner.metrics import RunSummary

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
@click.option("-t", "--target", default="cpu", show_default=True, help="What to build for; see 'edge-awq targets'.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder.  [default: MODEL.bundle]")
@click.option("--precision", type=click.Choice(["w4a16", "fp16"]), default="w4a16", show_default=True)
@click.option("--recipe", type=click.Choice(["awq", "rtn"]), default="awq", show_default=True,
              help="awq searches scales and clips; rtn only rounds.")
@click.option("--calibration", metavar="FILE|self", help="Text or jsonl file; 'self' lets the model write its own."
              "  [default: built-in text]")
@click.option("--group-size", type=click.Choice(["128", "64"]), help="Weights that share a scale.  [default: target's]")
@click.option("--symmetric", is_flag=True, help="No zero points: smaller kernels' work, a little less exact.")
@click.option("--workers", metavar="ray[://HOST:PORT]", help="Quantize blocks on many workers at once, with Ray.")
@click.option("--resume/--fresh", default=None, help="Insist on going on, or start over.  [default: go on if possible]")
def build(**options: Any) -> None:
    """Quantize MODEL, a Hugging Face folder or a hub id (org/name, org/name@revision), into a bundle."""
    from edge_awq.pipeline import BuildRequest
    from edge_awq.pipeline import build as run_build

    request = BuildRequest.from_options(**options)
    bundle = run_build(request, _progress())
    size_bytes = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    click.echo(f"{bundle.path}: {size_bytes / 1e6:.1f} MB, try: edge-awq run {bundle.path} -p \"Hello\"", err=True)


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
def run(bundle: Path, **options: Any) -> None:
    """Run BUNDLE on a prompt and stream what it writes; speed goes to standard error."""
    text = _read_prompt(options.pop("prompt"), options.pop("prompt_file"))
    chat, as_json, log = (options.pop(name) for name in ("chat", "as_json", "log"))
    if options.pop("greedy"):
        if options["temperature"] is not None:
            raise click.UsageError("--greedy and --temperature exclude each other")
        options["temperature"] = 0.0
    from edge_awq.runner.session import load

    with load(bundle, options.pop("threads"), options.pop("context")) as session:
        settings = session.settings(**{name: value for name, value in options.items() if value is not None})
        ids = session.encode_chat([{"role": "user", "content": text}]) if chat else session.encode(text)
        tokens = session.generate(ids, settings)
        with session.open_log(log, settings) if log else nullcontext() as run_log:
            if run_log:
                tokens = run_log.record(tokens, len(ids))
            answer = list(_echo_each(tokens, stream=not as_json))
            summary = session.summarize(answer)
            if run_log:
                run_log.summary(summary)
    if as_json:
        click.echo(json.dumps(summary.to_dict(), ensure_ascii=False))
    else:
        click.echo(f"\n{_speed(summary)}", err=True)


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


def _speed(summary: RunSummary) -> str:
    """One line: what the run did, and how fast."""
    decode = f"{summary.decode_tok_s:.1f} tok/s" if summary.decode_tok_s else "one token"
    return (f"[{summary.prompt_tokens} prompt tokens at {summary.prefill_tok_s:.1f} tok/s, {summary.tokens} tokens at "
            f"{decode}, load {summary.load_s:.2f} s, peak memory {summary.peak_rss_bytes / 1e6:.0f} MB, "
            f"energy not measured]")


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


@main.command()
def targets() -> None:
    """List what bundles can be built for."""
    from edge_awq.target import load_targets

    for target in load_targets():
        click.echo(f"{target.name:<24} {target.kind:<14} {target.description}")


def _progress() -> Progress:
    from edge_awq.progress import Bars, Lines

    return Bars() if sys.stderr.isatty() else Lines(partial(click.echo, err=True))


if __name__ == "__main__":
    main()
