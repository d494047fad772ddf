"""The command that runs a bundle."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.cli.common import Finite, form_options, progress
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.power.base import MeterChoice
    from edge_awq.power.monitor import Monitor
    from edge_awq.runner.energy import RequestEnergy
    from edge_awq.runner.generate import GenerationSettings, Token
    from edge_awq.runner.metrics import RunSummary
    from edge_awq.runner.session import Session

PROMPT_NEEDED = "give a prompt: -p TEXT, --prompt-file FILE, or text on standard input"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="The prompt's text.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file that holds the prompt.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: instructions to the model, which stand before the prompt.")
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
@form_options
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]")
@click.option("--lookup", type=click.IntRange(1, 7), metavar="N", help="Guess up to N tokens from the text so far; "
              "faster where it repeats itself.  [default: no guesses]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@click.option("--log", type=click.Path(path_type=Path), help="Folder for the run log.")
@click.option("--log-text", is_flag=True, help="Log the prompt and the answer too, not only their numbers of tokens.")
@click.option("--meter", metavar="NAME", envvar="EDGE_AWQ_METER", help="Power meter: auto, jtop, ina3221, nvml, rapl, "
              "battery or none.  [default: auto]")
@click.option("--meter-interval", type=Finite(), metavar="S", help="Seconds between its samples.  [default: 0.1]")
@click.option("--meter-idle", type=Finite(min=0), metavar="S", default=0.0,
              help="Seconds to measure idle power first, for joules above it.  [default: 0]")
@click.option("--meter-root", envvar="EDGE_AWQ_METER_ROOT", type=click.Path(file_okay=False, exists=True),
              help="Where a container has the machine's /sys, /proc and /etc.  [default: /]")
def run(bundle: Path, **options: Any) -> None:
    """Run BUNDLE on a prompt and stream what it writes; speed goes to standard error."""
    text = _read_prompt(options.pop("prompt"), options.pop("prompt_file"))
    chat, as_json, log, idle_s = (options.pop(name) for name in ("chat", "as_json", "log", "meter_idle"))
    logged_prompt = text if options.pop("log_text") else None
    if logged_prompt is not None and log is None:
        raise click.UsageError("--log-text needs --log")
    if options.pop("greedy"):
        if options["temperature"] is not None:
            raise click.UsageError("--greedy and --temperature exclude each other")
        options["temperature"] = 0.0
    messages = _conversation(text, options.pop("system"), chat)
    from edge_awq.power.monitor import start_meter
    from edge_awq.runner.one_line import speed_line
    from edge_awq.runner.session import load

    meter = start_meter(_meter_choice(bundle, options))
    if meter.asked_for:
        meter.ready()  # it must measure: say so before anything long begins
    load_options = {name: options.pop(name) for name in ("threads", "context", "kv_bits", "plugin_free")}
    lookup = options.pop("lookup") or 0
    with meter, load(bundle, **load_options, progress=progress(), lookup=lookup) as session:
        settings = session.settings(**{name: value for name, value in options.items() if value is not None})
        ids = session.encode_chat(messages) if messages else session.encode(text)
        if meter.ready() is not None and idle_s:
            meter.measure_idle(idle_s)
        summary, energy = _answer(session, ids, settings, meter, (log, as_json, logged_prompt))
        bandwidth_gb_s = session.memory_bandwidth_gb_s()
        guesses = session.guesses()
    if as_json:
        click.echo(json.dumps(summary.to_dict(), ensure_ascii=False))
    else:
        click.echo(f"\n{speed_line(summary, energy, bandwidth_gb_s)}", err=True)
        if guesses:
            click.echo(f"[{guesses[1]} of {guesses[0]} guessed tokens were right]", err=True)


def _conversation(text: str, system: str | None, chat: bool) -> list[dict[str, str]]:
    """The messages that the chat template gets; none without --chat."""
    if not chat:
        if system is not None:
            raise click.UsageError("--system needs --chat")
        return []
    instructions = [] if system is None else [{"role": "system", "content": system}]
    return [*instructions, {"role": "user", "content": text}]


def _meter_choice(bundle: Path, options: dict[str, Any]) -> MeterChoice:
    from edge_awq.power.base import MeterChoice
    from edge_awq.runner.session import measuring_device

    wanted = {"name": options.pop("meter"), "interval_s": options.pop("meter_interval"),
              "root": options.pop("meter_root")}
    given = {key: value for key, value in wanted.items() if value is not None}
    return MeterChoice(device=measuring_device(bundle), **given)


def _answer(session: Session, ids: list[int], settings: GenerationSettings, meter: Monitor,
            places: tuple[Path | None, bool, str | None]) -> tuple[RunSummary, RequestEnergy]:
    """Generate, print, log and measure.

    Args:
        places: the log's folder, whether only one JSON object is printed, and the prompt where it may be logged.
    """
    from edge_awq.runner.energy import measure_request
    from edge_awq.runner.live import live_status

    log, as_json, logged_prompt = places
    tokens = session.generate(ids, settings)
    run_tokens = len(ids) - session.reused_tokens
    with session.open_log(log, settings, meter) if log else nullcontext() as run_log:
        if run_log:
            tokens = run_log.record(tokens, run_tokens, session.reused_tokens)
        started_ns = time.monotonic_ns()
        with live_status(meter, not as_json) as live:
            answer = list(_echo_each(live.watch(tokens), stream=not as_json))
        energy = run_log.energy if run_log else measure_request(meter, started_ns, answer, run_tokens)
        summary = session.summarize(answer, energy)
        if run_log:
            if logged_prompt is not None:
                run_log.text(logged_prompt, summary.text)
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
            click.echo(token.text, nl=False)  # flushes
        yield token
