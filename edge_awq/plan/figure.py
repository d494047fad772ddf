"""The speed figure of the AWQ paper (arXiv 2306.00978) as data, and its values as shares of what memory allows."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

from edge_awq.plan.counts import counts_of_shape
from edge_awq.plan.sizes import sizes_of
from edge_awq.plan.speed import Speed, pick_mode, speed_at
from edge_awq.shapes import find_shape
from edge_awq.target import QuantSpec, Target, find_target

FIGURE = Path(__file__).parent / "awq_figure.csv"
PROMPT_TOKENS, NEW_TOKENS = 4, 200
MEAN_CONTEXT = PROMPT_TOKENS + NEW_TOKENS // 2  # tokens in the cache, over the steps of the protocol
OOM = "OOM"
# Bars of a group: what ran -> (words, precision)
BARS = {"hf_fp16": ("HF FP16", "fp16"), "own_fp16": ("own FP16", "fp16"), "awq_w4a16": ("own W4A16", "w4a16")}


@dataclass(frozen=True)
class Seed:
    """One bar of the figure.

    Attributes:
        target: our profile of the device.
        bar: a key of BARS; "own" is TinyChat there.
        tok_s: None where the figure says OOM.
        group_size: of the int4 weights; the head is float16.
    """

    target: str
    device: str
    shape: str
    model: str
    bar: str
    group_size: int
    tok_s: float | None

    @property
    def precision(self) -> str:
        """ "w4a16" or "fp16"."""
        return BARS[self.bar][1]

    def limit_tok_s(self) -> float:
        """What the device's memory allows for these weights at the protocol's mean context."""
        return figure_speed(self.shape, find_target(self.target), self.precision, self.group_size).limit_tok_s

    def share_of_limit(self) -> float | None:
        """The value as a share of that; None for OOM."""
        return None if self.tok_s is None else self.tok_s / self.limit_tok_s()


@functools.cache
def read_figure() -> tuple[Seed, ...]:
    """Every bar of the figure, in its order."""
    with FIGURE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return tuple(
        Seed(row["target"], row["device"], row["shape"], row["model"], bar, int(row["group_size"]),
             None if row[bar] == OOM else float(row[bar]))
        for row in rows for bar in BARS)


def figure_speed(shape: str, target: Target, precision: str, group_size: int, head_bits: int = 16) -> Speed:
    """Limit and prediction of an exact shape at the figure's mean context."""
    sizes = sizes_of(counts_of_shape(find_shape(shape)), precision, QuantSpec(group_size, False, head_bits), 1)
    return speed_at(MEAN_CONTEXT, sizes, target, pick_mode(target, None)[1])
