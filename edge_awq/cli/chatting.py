"""The command that talks with a model, turn by turn."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.cli.common import STDIN, decoded, go_on_after_ctrl_c, say_error
from edge_awq.cli.options import loading_options, meter_options, opened, sampling_options, take_sampling
from edge_awq.cli.running import show
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.runner.answer import Observers
    from edge_awq.runner.conversation import Conversation
    from edge_awq.runner.generate import GenerationSettings
    from edge_awq.runner.session import Session

HELP = """/clear begins anew, /exit or Ctrl-D ends the chat, Ctrl-C ends an answer.
A line that ends in \\ goes on in the next one. Where a chat outgrows the context its oldest turns are forgotten."""
_ENDS = ("/exit", "/quit", "/bye")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="Instructions to the model, which stand before the first message.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="Tokens of an answer at most.  [default: what the "
              "context has room for]")
@sampling_options
@loading_options
@click.option("--log", type=click.Path(path_type=Path), help="Folder for the run logs, one an answer.")
@meter_options
def chat(bundle: Path, **options: Any) -> None:
    """Talk with the model of BUNDLE. Turns that it has answered stay in the KV cache and are not run again.

    On a terminal a line is a message, and /help tells what else there is. Otherwise every line of standard input that
    is not blank is a message, and standard output gets the answers.
    """
    system, log = options.pop("system"), options.pop("log")
    changes = {"max_tokens": None, **take_sampling(options)}
    from edge_awq.runner.answer import Observers
    from edge_awq.runner.conversation import Conversation

    with opened(bundle, options) as (session, meter):
        settings = session.settings(**changes)
        talk = _Talk(session, settings, Conversation(session, system, settings.max_tokens), Observers(meter, log))
        if sys.stdin.isatty() and sys.stdout.isatty():
            meter.ready()
            meter.forget()  # who knows when the first message comes
            power = f"; energy not measured ({meter.refusal})" if meter.refusal else ""
            click.echo(f"{session.loaded.manifest.name}, {session.engine.context} tokens of context; "
                       f"/help for help{power}", err=True)
            _converse(talk)
        else:
            for number, line in enumerate(sys.stdin.buffer, start=1):
                if text := decoded(line, f"{STDIN}, line {number}").strip():
                    talk.say(text)


class _Talk:
    """One chat on a terminal or through pipes."""

    def __init__(self, session: Session, settings: GenerationSettings, conversation: Conversation,
                 observers: Observers) -> None:
        self._session = session
        self._settings = settings
        self._observers = observers
        self.conversation = conversation

    def say(self, text: str, can_go_on: bool = False) -> None:
        """A message and its answer.

        Args:
            can_go_on: whether Ctrl-C ends just the answer.
        """
        from edge_awq.runner.answer import Answer
        from edge_awq.runner.one_line import chat_line

        ids = self.conversation.ask(text)
        if forgotten := self.conversation.forgotten:
            click.echo(f"[the context is full: the oldest {forgotten} messages are forgotten]", err=True)
        answer = Answer(self._session, ids, self._settings, self._observers)
        try:
            show(answer, self._observers.meter)
        except KeyboardInterrupt as interrupt:
            if not can_go_on:
                raise
            go_on_after_ctrl_c(interrupt)
        finally:
            if answer.tokens:
                self.conversation.answered("".join(token.text for token in answer.tokens))
        click.echo()
        if answer.summary is not None:
            click.echo(chat_line(answer.summary, answer.energy, self._session.engine.context,
                                 answer.tokens[-1].finish_reason), err=True)


def _converse(talk: _Talk) -> None:
    """Until the user ends it."""
    with suppress(ImportError):
        import_module("readline")  # a history, and the usual keys
    going_on = True
    while going_on:
        try:
            going_on = _turn(talk, _read_message())
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt as interrupt:
            go_on_after_ctrl_c(interrupt)
            click.echo("\n[Ctrl-D or /exit ends the chat]", err=True)
        except EdgeAwqError as error:
            say_error(error.message, error.hint)


def _turn(talk: _Talk, text: str) -> bool:
    """What one message asks for; returns whether the chat goes on."""
    if text in _ENDS:
        return False
    if text == "/clear":
        talk.conversation.clear()
    elif text.startswith("/"):
        click.echo(HELP if text == "/help" else f"{text.split(maxsplit=1)[0]} is not known; /help for help", err=True)
    elif text:
        talk.say(text, can_go_on=True)
    return True


def _read_message() -> str:
    """What the user types: a line, and further ones as long as they end in a backslash."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... "))
    return "\n".join(lines).strip()
