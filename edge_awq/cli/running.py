"""The command that runs a bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.cli.common import STDIN, Finite, decoded
from edge_awq.cli.options import loading_options, meter_options, opened, sampling_options, take_sampling

if TYPE_CHECKING:
    from edge_awq.power.monitor import Monitor
    from edge_awq.runner.generate import Token

PROMPT_NEEDED = "give a prompt: -p TEXT, --prompt-file FILE, or text on standard input"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="The prompt's text.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file that holds the prompt.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: instructions to the model, which stand before the prompt.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="Tokens to generate at most.  [default: 128]")
@sampling_options
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token.")
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@click.option("--log", type=click.Path(path_type=Path), help="Folder for the run log.")
@click.option("--log-text", is_flag=True, help="Log the prompt and the answer too, not only their numbers of tokens.")
@click.option("--meter-idle", type=Finite(minimum=0), metavar="S", default=0.0,
              help="Seconds to measure idle power first, for joules above it.  [default: 0]")
@meter_options
def run(bundle: Path, **options: Any) -> None:
    """Run BUNDLE on a prompt and stream what it writes; speed goes to standard error."""
    text = _read_prompt(options.pop("prompt"), options.pop("prompt_file"))
    chat, as_json, log, log_text, idle_s = (
        options.pop(name) for name in ("chat", "as_json", "log", "log_text", "meter_idle"))
    if log_text and log is None:
        raise click.UsageError("--log-text needs --log")
    changes = take_sampling(options)
    if options.pop("ignore_eos"):
        changes["ignore_eos"] = True
    messages = _conversation(text, options.pop("system"), chat)
    from edge_awq.runner.answer import Answer, Observers
    from edge_awq.runner.one_line import speed_line

    with opened(bundle, options) as (session, meter):
        settings = session.settings(**changes)
        ids = session.encode_chat(messages) if messages else session.encode(text)
        if meter.ready() is not None and idle_s:
            meter.measure_idle(idle_s)
        answer = Answer(session, ids, settings, Observers(meter, log, log_text), text)
        show(answer, meter, not as_json)
        bandwidth_gb_s = session.memory_bandwidth_gb_s()
        guesses = session.guesses()
    if as_json:
        click.echo(json.dumps(answer.summary.to_dict(), ensure_ascii=False))
    else:
        click.echo(f"\n{speed_line(answer.summary, answer.energy, bandwidth_gb_s)}", err=True)
        if guesses:
            click.echo(f"[{guesses[1]} of {guesses[0]} guessed tokens were right]", err=True)


def show(answer: Iterable[Token], meter: Monitor, stream: bool = True) -> None:
    """Run an answer until it ends or something is raised; with ``stream`` its text is written as it comes."""
    from edge_awq.runner.live import live_status

    with live_status(meter, stream) as live, closing(iter(answer)) as tokens:
        for token in live.watch(tokens):
            if stream:
                click.echo(token.text, nl=False)  # flushes


def _conversation(text: str, system: str | None, chat: bool) -> list[dict[str, str]]:
    """The messages that the chat template gets; none without --chat."""
    if not chat:
        if system is not None:
            raise click.UsageError("--system needs --chat")
        return []
    instructions = [] if system is None else [{"role": "system", "content": system}]
    return [*instructions, {"role": "user", "content": text}]


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt: given, in a file, or on standard input when that is not a terminal."""
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("-p and --prompt-file exclude each other")
    if prompt is not None:
        return prompt
    if prompt_file is None and sys.stdin.isatty():
        raise click.UsageError(PROMPT_NEEDED)
    raw = sys.stdin.buffer.read() if prompt_file is None else prompt_file.read_bytes()
    return decoded(raw, str(prompt_file or STDIN))
