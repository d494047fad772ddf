"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.cli.common import Finite, decoded, form_options, progress
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.power.base import MeterChoice
    from edge_awq.power.monitor import Monitor
    from edge_awq.runner.session import Session

Command = Callable[..., None]
_LOADING = ("threads", "context", "kv_bits", "plugin_free")
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
             "json_schema", "regex")


def _all(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """One decorator for several; help lists them in this order."""
    return lambda command: reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def read_schema(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """A JSON schema that is given, or lies in a file."""
    if value is None:
        return None
    is_here = value.lstrip().startswith("{")
    raw, place = (value, "--json-schema") if is_here else (decoded(Path(value).read_bytes(), value), value)
    try:
        schema = json.loads(raw)
    except (json.JSONDecodeError, RecursionError) as error:
        raise EdgeAwqError(f"{place}: not JSON ({error})", hint="see https://json-schema.org") from error
    if not isinstance(schema, dict):
        raise EdgeAwqError(f"{place}: not a JSON object, so no schema", hint="see https://json-schema.org")
    return schema


sampling_options = _all([
    click.option("--greedy", is_flag=True, help="Always take the likeliest token."),
    click.option("--temperature", type=float, help="Flattens (> 1) or sharpens (< 1) the choice."),
    click.option("--top-k", type=int, help="Choose among the k likeliest."),
    click.option("--top-p", type=float, help="Choose among the likeliest that make up this probability."),
    click.option("--min-p", type=float, help="Leave out tokens less likely than this share of the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1: tokens already seen become less likely."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, help="Stop before this text; may be given again."),
    click.option("--json-schema", metavar="FILE", callback=read_schema, help="The answer is JSON of this schema, which "
                 "may also stand here itself."),
    click.option("--regex", metavar="PATTERN", help="The answer is what this regular expression matches."),
])

loading_options = _all([
    click.option("--context", type=click.IntRange(min=1), help="Tokens in the KV cache.  [default: the bundle's]"),
    form_options,
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]"),
    click.option("--lookup", type=click.IntRange(1, 7), metavar="N", help="Guess up to N tokens from the text so far; "
                 "faster where it repeats itself.  [default: no guesses]"),
])

meter_options = _all([
    click.option("--meter", metavar="NAME", envvar="EDGE_AWQ_METER", help="Power meter: auto, jtop, ina3221, nvml, "
                 "rapl, battery or none.  [default: auto]"),
    click.option("--meter-interval", type=Finite(), metavar="S", help="Seconds between its samples.  [default: 0.1]"),
    click.option("--meter-root", envvar="EDGE_AWQ_METER_ROOT", type=click.Path(file_okay=False, exists=True),
                 help="Where a container has the machine's /sys, /proc and /etc.  [default: /]"),
])


def take_sampling(options: dict[str, Any]) -> dict[str, Any]:
    """What of ``options`` changes the model's own settings, for Session.settings; they are taken out.

    Raises:
        click.UsageError: two that exclude each other.
    """
    greedy = options.pop("greedy")
    given = {name: options.pop(name) for name in _SAMPLING}
    if greedy and given["temperature"] is not None:
        raise click.UsageError("--greedy and --temperature exclude each other")
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    return {**changes, "temperature": 0.0} if greedy else changes


@contextmanager
def opened(bundle: Path, options: dict[str, Any]) -> Iterator[tuple[Session, Monitor]]:
    """A session of ``bundle`` and a meter where it runs, as ``options`` ask; they are taken out."""
    from edge_awq.power.monitor import start_meter
    from edge_awq.runner.session import load

    loading = {**{name: options.pop(name) for name in _LOADING}, "lookup": options.pop("lookup") or 0}
    meter = start_meter(_meter_choice(bundle, options))
    if meter.asked_for:
        meter.ready()  # it must measure: say so before anything long begins
    with meter, load(bundle, progress=progress(), **loading) as session:
        yield session, meter


def _meter_choice(bundle: Path, options: dict[str, Any]) -> MeterChoice:
    from edge_awq.power.base import MeterChoice
    from edge_awq.runner.session import measuring_device

    wanted = {"name": options.pop("meter"), "interval_s": options.pop("meter_interval"),
              "root": options.pop("meter_root")}
    given = {key: value for key, value in wanted.items() if value is not None}
    return MeterChoice(device=measuring_device(bundle), **given)
