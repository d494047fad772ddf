"""The candidates for a unit - plain rounding, AWQ, GPTQ - and which of them is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from edge_awq.model.family import Fold
from edge_awq.quantize.feedback import round_with_feedback, search_feedback_scales
from edge_awq.quantize.gptq import factorize
from edge_awq.quantize.heads import head_couplings
from edge_awq.quantize.judge import Judged
from edge_awq.quantize.report import BlockReport, FoldReport
from edge_awq.quantize.search import search_scales
from edge_awq.quantize.stats import InputStats
from edge_awq.quantize.unit import RISKY, Candidate, Trial, Unit, fold_scales, quantize_unit, requantize

# Judge(fold, statistics of every input) -> by whose output the fold's scales are judged
Judge = Callable[[Fold, dict[str, InputStats]], Judged]


@dataclass(frozen=True)
class Evidence:
    """What calibration knows of a unit.

    Attributes:
        stats: of every input; with Hessians where GPTQ is to be tried.
        judge: of the scales that AWQ searches.
        trial: decides between the candidates.
        probes: inputs and outputs on which the rows of a head are seen to act together; None where no linear has heads.
        head_size: rows per head.
        generator: of the probes.
    """

    stats: dict[str, InputStats]
    judge: Judge
    trial: Trial
    probes: Trial | None = None
    head_size: int = 0
    generator: torch.Generator | None = None


def choose(unit: Unit, plain: Candidate, evidence: Evidence) -> tuple[Candidate, BlockReport]:
    """Search and fold scales, search ranges, and keep the result where it is better than ``plain`` rounding.

    With Hessians GPTQ is tried too. Weights of the unit are changed.
    """
    stats, trial = dict(evidence.stats), evidence.trial
    folded: dict[str, torch.Tensor] = {}
    folds = tuple(_search_and_fold(unit, fold, stats, evidence.judge, folded) for fold in unit.folds)
    losses = {"rtn": trial.loss(unit, plain)}
    candidates = {"rtn": plain, "awq": quantize_unit(unit, stats)}
    losses["awq"] = trial.loss(unit, candidates["awq"])
    if risky := [linear for linear in unit.linears if linear in RISKY]:
        riskier = candidates["awq"]
        for linear in risky:
            riskier = requantize(unit, riskier, linear, stats)
        if (loss := trial.loss(unit, riskier)) < losses["awq"]:
            candidates["awq"], losses["awq"] = riskier, loss
    if all(seen.hessian for seen in stats.values()):
        folds = tuple(_fold_for_feedback(unit, fold, report, stats, folded)
                      for fold, report in zip(unit.folds, folds, strict=True))
        couplings = head_couplings(unit, evidence.probes, evidence.head_size, evidence.generator) \
            if evidence.probes else {}
        candidates["gptq"] = round_with_feedback(unit, plain, stats, couplings)
        losses["gptq"] = trial.loss(unit, candidates["gptq"])
    kept = min(("awq", "rtn", "gptq"), key=lambda name: losses.get(name, torch.inf))
    report = BlockReport(unit.name, kept, losses["rtn"], losses["awq"], folds, candidates[kept].clipped,
                         loss_gptq=losses.get("gptq"))
    return candidates[kept], report


def _search_and_fold(
    unit: Unit, fold: Fold, stats: dict[str, InputStats], judge: Judge, folded: dict[str, torch.Tensor]
) -> FoldReport:
    """AWQ's search for one fold; notes in ``folded`` what was folded, by the first linear."""
    linear = fold.linears[0]
    outputs, inputs = len(unit.weights[f"{fold.source}.weight"]), unit.weights[f"{linear}.weight"].shape[1]
    if outputs != inputs:
        return FoldReport(fold.source, fold.linears, skipped=f"{outputs} outputs do not match {inputs} inputs")
    judged = judge(fold, stats)
    choice = search_scales(judged.weights, stats[linear].mean_abs, unit.grid_of(linear), judged.output)
    if choice.ratio > 0:
        _fold(unit, fold, choice.scales, stats)
        folded[linear] = choice.scales
    return FoldReport(fold.source, fold.linears, choice.ratio, choice.error_before, choice.error_after)


def _fold_for_feedback(
    unit: Unit, fold: Fold, report: FoldReport, stats: dict[str, InputStats], folded: dict[str, torch.Tensor]
) -> FoldReport:
    """Put the scales that are best for GPTQ in the place of AWQ's."""
    if report.skipped:
        return report
    linear = fold.linears[0]
    if linear in folded:
        _fold(unit, fold, 1 / folded[linear], stats)
    factors = [factorize(hessian) for hessian in stats[linear].hessian]
    weights = {name: unit.weights[f"{name}.weight"] for name in fold.linears}
    choice = search_feedback_scales(weights, stats[linear], factors, unit.grid_of(linear))
    _fold(unit, fold, choice.scales, stats)
    return replace(report, gptq_ratios=choice.ratios)


def _fold(unit: Unit, fold: Fold, scales: torch.Tensor, stats: dict[str, InputStats]) -> None:
    fold_scales(unit.weights, fold, scales)
    stats[fold.linears[0]] = stats[fold.linears[0]].divided(scales)
