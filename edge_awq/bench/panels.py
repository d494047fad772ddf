"""The figure as data: a panel per device, a group per model, a slot per bar; none both measured and predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edge_awq.bench.results import BASELINE_ENGINE, FIGURE_PROTOCOL, OWN_ENGINE, Result, StoredResult
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.counts import Counts, counts_of_shape
from edge_awq.plan.figure import BARS, MEAN_CONTEXT, NEW_TOKENS, PROMPT_TOKENS, Seed, read_figure
from edge_awq.plan.memory import memory_for
from edge_awq.plan.sizes import sizes_of
from edge_awq.plan.speed import pick_mode, speed_at
from edge_awq.shapes import find_shape, shape_names
from edge_awq.target import Target, find_target, load_targets


@dataclass(frozen=True)
class Slot:
    """One bar's place.

    Attributes:
        bar: a key of BARS.
        measured: the result that was measured here; then nothing is predicted.
        paper: the AWQ figure's bar.
        limit_tok_s: what memory allows in our own format; None where the device's bandwidth is not known.
        predicted_tok_s: for our own engine, where it fits and was not measured.
    """

    bar: str
    measured: Result | None = None
    paper: Seed | None = None
    limit_tok_s: float | None = None
    predicted_tok_s: float | None = None

    @property
    def is_oom(self) -> bool:
        """Out of memory, as measured, else as the figure says."""
        return self.measured.oom if self.measured else self.paper is not None and self.paper.tok_s is None


@dataclass(frozen=True)
class Panel:
    """One device in one power mode: model -> its three slots."""

    title: str
    target: Target | None
    groups: dict[str, tuple[Slot, ...]]


def make_panels(stored: Sequence[StoredResult]) -> tuple[Panel, ...]:
    """The figure's three devices, then every other device and power mode that was measured by its protocol.

    Raises:
        EdgeAwqError: two results cannot stand in one figure; the message says why.
    """
    check_comparable(stored)
    figured = [one.result for one in stored if _bar(one.result) and one.result.protocol == FIGURE_PROTOCOL]
    usable = [result for result in figured if result.valid]
    panels, left = [], list(usable)
    for name in dict.fromkeys(seed.target for seed in read_figure()):
        target = find_target(name)
        mine = [result for result in left if result.profile == name and _is_default_mode(result, target)]
        left = [result for result in left if result not in mine]
        panels.append(_figure_panel(target, mine))
    places = dict.fromkeys((result.device, result.profile, result.provenance.power_mode) for result in left)
    for place in places:
        panels.append(_measured_panel(place, [result for result in left if _place(result) == place]))
    return tuple(panels)


def check_comparable(stored: Iterable[StoredResult]) -> None:
    """Refuse results that would stand for the same bar, or that were not made by the protocol that they name."""
    seen: dict[tuple[object, ...], StoredResult] = {}
    profiles: dict[str, StoredResult] = {}
    for one in stored:
        result = one.result
        tokens = (result.prompt_tokens, result.generated_tokens)
        if result.protocol == FIGURE_PROTOCOL and tokens != (PROMPT_TOKENS, NEW_TOKENS):
            raise EdgeAwqError(
                f"{one.path}: {result.model} was measured with {tokens[0]} + {tokens[1]} tokens, protocol "
                f"'{FIGURE_PROTOCOL}' is {PROMPT_TOKENS} + {NEW_TOKENS}",
                hint="leave it out, or name another protocol in it: it is then drawn against context")
        other = profiles.setdefault(result.device, one)
        if other.result.profile != result.profile:
            raise EdgeAwqError(f"{other.path} and {one.path}: {result.device} has profile '{other.result.profile}' in "
                               f"one and '{result.profile}' in the other, so their limits differ",
                               hint="report them into separate folders")
        key = (*_place(result), result.group, result.engine, result.form, result.protocol, *tokens)
        if key in seen:
            raise EdgeAwqError(f"{seen[key].path} and {one.path}: both measure {result.group}, {result.engine} "
                               f"{result.form}, on {result.device} by protocol '{result.protocol}'; they "
                               "cannot be one bar", hint="leave one of them out, or report them into separate folders")
        seen[key] = one


def _figure_panel(target: Target, measured: list[Result]) -> Panel:
    seeds = [seed for seed in read_figure() if seed.target == target.name]
    groups = {}
    for shape in dict.fromkeys(seed.shape for seed in seeds):
        papers = {seed.bar: seed for seed in seeds if seed.shape == shape}
        slots = tuple(_slot(target, shape, bar, measured, papers[bar]) for bar in BARS)
        groups[papers["awq_w4a16"].model] = slots
    extra = [model for model in dict.fromkeys(result.group for result in measured)
             if model not in {seed.shape for seed in seeds}]
    for model in extra:
        groups[model] = tuple(_slot(target, model, bar, measured, None) for bar in BARS)
    return Panel(_title(seeds[0].device, target, pick_mode(target, None)[0]), target, groups)


def _measured_panel(place: tuple[str, str, str | None], measured: list[Result]) -> Panel:
    device, profile, mode = place
    target = next((target for target in load_targets() if target.name == profile), None)
    if target is not None and target.device is not None and mode in target.modes:
        target = replace(target, device=replace(target.device, default_mode=mode))
    models = dict.fromkeys(result.group for result in measured)
    groups = {model: tuple(_slot(target, model, bar, measured, None) for bar in BARS) for model in models}
    return Panel(_title(device, target, mode), target, groups)


def _slot(target: Target | None, model: str, bar: str, measured: list[Result], paper: Seed | None) -> Slot:
    found = next((result for result in measured if (result.group, _bar(result)) == (model, bar)), None)
    slot = Slot(bar, found, paper)
    if target is None or model not in shape_names():
        return slot
    limit, predicted = _forecast(target, counts_of_shape(find_shape(model)), BARS[bar][1])
    ours = bar != "hf_fp16"
    return replace(slot, limit_tok_s=limit, predicted_tok_s=predicted if ours and found is None else None)


def _forecast(target: Target, counts: Counts, precision: str) -> tuple[float | None, float | None]:
    """Limit and prediction in the profile's own format; neither where the model does not fit."""
    context = PROMPT_TOKENS + NEW_TOKENS
    sizes = sizes_of(counts, precision, target.quant, context)
    if memory_for(sizes, target, context).fits is False:
        return None, None
    speed = speed_at(MEAN_CONTEXT, sizes, target, pick_mode(target, None)[1])
    return speed.limit_tok_s, speed.predicted_tok_s


def _bar(result: Result) -> str | None:
    """The bar that a result is; None for another engine or form, which stands in the table alone."""
    kinds = {(BASELINE_ENGINE, "fp16"): "hf_fp16", (OWN_ENGINE, "fp16"): "own_fp16", (OWN_ENGINE, "w4a16"): "awq_w4a16"}
    return kinds.get((result.engine, result.form))


def _place(result: Result) -> tuple[str, str, str | None]:
    return result.device, result.profile, result.provenance.power_mode


def _is_default_mode(result: Result, target: Target) -> bool:
    return result.provenance.power_mode in (None, pick_mode(target, None)[0])


def _title(device: str, target: Target | None, mode: str | None) -> str:
    bandwidth = pick_mode(target, None)[1].bandwidth_gb_s if target else None
    has_modes = mode and not (target and target.device and not target.device.unified_memory)
    words = [device, f"{bandwidth:g} GB/s" if bandwidth else None, f"power mode {mode}" if has_modes else None]
    return ", ".join(word for word in words if word)
