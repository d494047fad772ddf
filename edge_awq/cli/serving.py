"""The command that puts a bundle behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_awq.cli.options import loading_options, meter_options, opened


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all of this "
              "machine's.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--name", help="The model's name for clients.  [default: the bundle's]")
@click.option("--key", envvar="EDGE_AWQ_SERVER_KEY", help="Key that clients must send, better given by "
              "EDGE_AWQ_SERVER_KEY, as others can see options.  [default: none]")
@click.option("--waiting", type=click.IntRange(min=1), default=64, show_default=True,
              help="Requests that may wait; they are answered one after another.")
@loading_options
@click.option("--log", type=click.Path(path_type=Path), help="Folder for the run logs, one an answer.")
@meter_options
def serve(bundle: Path, **options: Any) -> None:
    """Serve BUNDLE to clients of OpenAI's API, until Ctrl-C.

    \b
      /v1/chat/completions   /v1/completions   /v1/models   /health
    """
    from edge_awq.lazy import require

    listen = require("edge_awq.server.listen", "serve")
    from edge_awq.runner.answer import Observers
    from edge_awq.server.app import Served
    from edge_awq.server.jobs import Jobs

    if options["log"] is not None:
        options["log"].mkdir(parents=True, exist_ok=True)
    bound = listen.bind(options.pop("host"), options.pop("port"))
    name, key, log = (options.pop(each) for each in ("name", "key", "log"))
    jobs = Jobs(options.pop("waiting"))
    with bound, opened(bundle, options) as (session, meter):
        served = Served(name or session.loaded.manifest.name, session.engine.context, jobs, key or None)
        meter.ready()
        meter.forget()  # between answers there is nothing to measure, for days perhaps
        with listen.listening(bound, served):
            click.echo(f"{served.model} at {listen.url(bound)}/v1; Ctrl-C ends it", err=True)
            try:
                jobs.work(session, Observers(meter, log), lambda line: click.echo(line, err=True))
            except KeyboardInterrupt:
                click.echo("stopped", err=True)
