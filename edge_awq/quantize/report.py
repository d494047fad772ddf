"""What quantization measured and chose; ``dataclasses.asdict`` makes it JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FoldReport:
    """One fold group.

    Attributes:
        ratio: s = mean|x| ** ratio was folded into ``source``; 0 changes nothing; None where nothing was searched.
        loss_before: squared error that plain rounding leaves in the judged output, relative to its square, on a sample.
        loss_after: the same with the scales of ``ratio``.
        skipped: why there was no search; None when there was.
        gptq_ratios: for GPTQ mean|x| ** first / mean|w| ** second was folded instead; None where it was not tried.
    """

    source: str
    linears: tuple[str, ...]
    ratio: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    skipped: str | None = None
    gptq_ratios: tuple[float, float] | None = None


@dataclass(frozen=True)
class BlockReport:
    """One block, or the head.

    Attributes:
        name: "blocks.0", "head".
        kept: "awq", "gptq" (GPTQ's rounding, with scales for it), "rtn" (plain rounding), "fp16" (not quantized) or
            "import" (quantized by another tool).
        loss_rtn: squared error of the output with plain rounding, relative to the output's square: mean over some
            tokens of the calibration text, which recipe best holds out; None where it was not measured.
        loss_awq: the same with AWQ's scales and ranges.
        folds: what the scale search chose.
        clipped: per linear, how many of its weights lie outside the range that was kept.
        imported: per linear, how many of its weights were taken over and found equal to the bit, which is all of them.
        loss_gptq: the same as loss_awq with GPTQ's rounding; None where it was not tried.
    """

    name: str
    kept: str
    loss_rtn: float | None = None
    loss_awq: float | None = None
    folds: tuple[FoldReport, ...] = ()
    clipped: dict[str, int] = field(default_factory=dict)
    imported: dict[str, int] = field(default_factory=dict)
    loss_gptq: float | None = None
