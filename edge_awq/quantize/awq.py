"""AWQ (arXiv 2306.00978), one block at a time: observe -> search scales -> fold -> search ranges -> keep the best.

A block's inputs come from the full-precision outputs of the block before, as in llm-awq. Nothing depends on what was
quantized before, and samples are drawn from a seed and the block's number, so a build that goes on after a kill gives
the same bits as one that was never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Decoder, Linear, Weights, norm, plain_linear, run_block
from edge_awq.model.family import Fold
from edge_awq.model.folds import ACT_SCALE, fold_groups, has_act_scale
from edge_awq.quantize.choice import Evidence, choose
from edge_awq.quantize.int4 import HALF_MAX, IntGrid
from edge_awq.quantize.judge import Judged, beginning, judged_attention, judged_linears, judged_mlp, judged_together
from edge_awq.quantize.report import BlockReport
from edge_awq.quantize.stats import InputStats
from edge_awq.quantize.unit import Trial, Unit, quantize_unit
from edge_awq.target import QuantSpec

PRECISIONS = ("w4a16", "fp16")
RECIPES = ("awq", "rtn", "best")
SEARCH_TOKENS = 512  # out of all calibration text: on these the scales of the MLP and of single linears are judged
HEAD_TOKENS = 256  # the same for the head, whose outputs are many
TRIAL_WORK = 5e10  # multiplications when a block with AWQ is held against one with plain rounding: about a second
HELD_OUT = 1 / 16  # of the sequences: GPTQ fits its rounding to the others, so these decide whether it is kept


@dataclass(frozen=True)
class QuantizeSettings:
    """precision: w4a16, or fp16 (nothing is quantized); recipe: awq, best (GPTQ too), or rtn (needs no text)."""

    precision: str
    recipe: str
    quant: QuantSpec
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("recipe", RECIPES)):
            if getattr(self, name) not in choices:
                raise EdgeAwqError(f"{name} = {getattr(self, name)!r} is not possible",
                                   hint=f"use one of: {', '.join(choices)}")

    @property
    def needs_calibration(self) -> bool:
        """Whether the hidden states of calibration text have to be given."""
        return self.precision == "w4a16" and self.recipe != "rtn"

    @property
    def hessians(self) -> bool:
        """Whether the correlations of all input channels are needed, for GPTQ."""
        return self.recipe == "best"

    @property
    def head_bits(self) -> int:
        """Bits of the head's weights."""
        return self.quant.head_bits if self.precision == "w4a16" else 16

    def grid(self, bits: int) -> IntGrid:
        """How weights of so many bits are quantized."""
        return IntGrid(bits, self.quant.group_size, self.quant.symmetric)


@dataclass(frozen=True)
class QuantizedBlock:
    """tensors: what is stored, by name; report: how it came about."""

    tensors: dict[str, torch.Tensor]
    report: BlockReport


def quantize_block(
    decoder: Decoder, index: int, hidden: torch.Tensor | None, settings: QuantizeSettings
) -> tuple[QuantizedBlock, torch.Tensor | None]:
    """Quantize block ``index``; tensors are named as in the weights file, without "blocks.{index}.".

    Args:
        hidden: the block's inputs in full precision, float32 [sequences, tokens, hidden_size]; not looked at unless
            ``settings.needs_calibration``.

    Returns:
        The block, and its outputs in full precision, which are the next block's inputs (None where not needed).

    Raises:
        EdgeAwqError: a weight cannot be stored, or the block's outputs overflow.
    """
    name, family, config = f"blocks.{index}", decoder.family, decoder.config
    weights = decoder.block(index)
    if settings.precision == "fp16":
        return QuantizedBlock(_store_halves(weights, f"{name}."), BlockReport(name, "fp16")), None
    if has_act_scale(family, config):
        weights[f"{ACT_SCALE}.weight"] = torch.ones(config.intermediate_size)
    folds = fold_groups(family, config)
    unit = Unit(name, weights, family.linears, folds, settings.grid(4), partial(_run_block, config, index))
    plain = quantize_unit(unit)
    if not settings.needs_calibration:
        return QuantizedBlock(plain.tensors(), BlockReport(name, "rtn", clipped=plain.clipped)), None
    generator = torch.Generator().manual_seed(settings.seed + index)
    fitted = _fitted(hidden, settings)
    stats, outputs = _observe(unit, hidden, fitted, generator, settings.hessians)
    judge = _BlockJudge(config, index, unit, hidden[:fitted], generator)
    seen = _trial(unit, hidden[:fitted], outputs[:fitted])
    trial = seen if fitted == len(hidden) else _trial(unit, hidden[fitted:], outputs[fitted:])
    evidence = Evidence(stats, judge, trial, seen, config.head_size, generator)
    kept, report = choose(unit, plain, evidence)
    return QuantizedBlock(kept.tensors(), report), outputs


def _fitted(hidden: torch.Tensor, settings: QuantizeSettings) -> int:
    """How many of the sequences scales, ranges and integers are fitted to; the rest, if any, is held out."""
    sequences = len(hidden)
    return sequences - int(HELD_OUT * sequences) if settings.hessians else sequences


def _trial(unit: Unit, hidden: torch.Tensor, outputs: torch.Tensor) -> Trial:
    tokens = beginning(hidden, sum(tensor.numel() for tensor in unit.weights.values()), TRIAL_WORK)
    return Trial(hidden[:, :tokens], outputs[:, :tokens])


def _run_block(config: DecoderConfig, index: int, x: torch.Tensor, weights: Weights, linear: Linear) -> torch.Tensor:
    return run_block(config, index, weights, x, linear=linear)


def _observe(
    unit: Unit, hidden: torch.Tensor, fitted: int, generator: torch.Generator, hessians: bool
) -> tuple[dict[str, InputStats], torch.Tensor]:
    """Statistics of every input in the unit over the first ``fitted`` sequences, and its outputs for all of them.

    One sequence at a time, so that memory stays small.
    """
    observer = unit.observer(_sample(hidden[:fitted], SEARCH_TOKENS, generator), hessians)
    outputs = torch.empty_like(hidden)
    for sequence, x in enumerate(hidden.split(1)):
        linear = observer.linear if sequence < fitted else plain_linear
        outputs[sequence] = unit.forward(x, unit.weights, linear)[0]
    if not torch.isfinite(outputs).all():
        raise EdgeAwqError(f"{unit.name}: outputs overflow on the calibration text",
                           hint="the checkpoint is damaged; get another copy")
    return observer.stats(), outputs


@dataclass(frozen=True)
class _BlockJudge:
    """Judges the fold groups of a block on inputs [sequences, tokens, hidden_size] of it."""

    config: DecoderConfig
    index: int
    unit: Unit
    hidden: torch.Tensor
    generator: torch.Generator

    def __call__(self, fold: Fold, stats: dict[str, InputStats]) -> Judged:
        weights, x = self.unit.weights, stats[fold.linears[0]].sample
        parts = []
        if "q" in fold.linears:
            parts.append(judged_attention(self.config, self.index, weights, self.hidden))
        if "up" in fold.linears:
            inner_square = stats[self.unit.input_of("down")].mean_square
            parts.append(judged_mlp(self.config, weights, x, inner_square))
        return judged_together(parts) if parts else judged_linears(weights, fold.linears, x, self.generator)


def _sample(hidden: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Which of all tokens are sampled: [sequences * tokens] bool, at most ``count`` of them true."""
    tokens = hidden.shape[0] * hidden.shape[1]
    sampled = torch.zeros(tokens, dtype=torch.bool)
    sampled[torch.randperm(tokens, generator=generator)[:count]] = True
    return sampled


def quantize_head(decoder: Decoder, hidden: torch.Tensor | None, settings: QuantizeSettings) -> QuantizedBlock:
    """Quantize the head, and fold its scales into the last norm; tensors are named as in the weights file.

    A tied head of 16 bits stores nothing but vectors: the embedding is its weight. With fewer bits a
    tied head has tensors of its own.

    Args:
        hidden: outputs of the last block in full precision, float32 [sequences, tokens, hidden_size]; not looked at
            unless ``settings.needs_calibration``.
    """
    weights = decoder.final_vectors()
    if settings.head_bits == 16:
        if not decoder.tied_head:
            weights["head.weight"] = decoder.head()
        return QuantizedBlock(_store_halves(weights), BlockReport("head", "fp16"))
    weights["head.weight"] = decoder.head()
    fold = Fold("final_norm", ("head",))
    forward = partial(_run_head, decoder.config)
    unit = Unit("head", weights, fold.linears, (fold,), settings.grid(settings.head_bits), forward)
    plain = quantize_unit(unit)
    if not settings.needs_calibration:
        return QuantizedBlock(plain.tensors(), BlockReport("head", "rtn", clipped=plain.clipped))
    generator = torch.Generator().manual_seed(settings.seed + decoder.config.num_layers)
    with_hessian = settings.hessians and settings.head_bits == 4  # 255 levels need no feedback
    fitted = _fitted(hidden, settings) if with_hessian else len(hidden)
    sampled = _sample(hidden[:fitted], HEAD_TOKENS, generator)
    observer = unit.observer(sampled, with_hessian)
    for x in hidden[:fitted].split(1):
        observer.count("head", norm(decoder.config, "final_norm", x, weights))
    inputs = hidden[:fitted].flatten(0, 1)[sampled][None]
    if fitted < len(hidden):
        inputs = hidden[fitted:].flatten(0, 1)[_sample(hidden[fitted:], HEAD_TOKENS, generator)][None]
    trial = Trial(inputs, unit.forward(inputs, weights, plain_linear))

    def judge(fold: Fold, seen: dict[str, InputStats]) -> Judged:
        return judged_linears(weights, fold.linears, seen["head"].sample, generator)

    kept, report = choose(unit, plain, Evidence(observer.stats(), judge, trial))
    return QuantizedBlock(kept.tensors(), report)


def _run_head(config: DecoderConfig, x: torch.Tensor, weights: Weights, linear: Linear) -> torch.Tensor:
    return linear("head", norm(config, "final_norm", x, weights), weights)


def _store_halves(weights: Weights, prefix: str = "") -> dict[str, torch.Tensor]:
    """Matrices as float16, vectors (gains, biases) as they are; ``prefix`` is for messages."""
    return {
        name: to_half(f"{prefix}{name}", tensor) if tensor.ndim == 2 else tensor for name, tensor in weights.items()
    }


def to_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` as float16.

    Raises:
        EdgeAwqError: a value lies beyond float16.
    """
    low, high = (float(value) for value in torch.aminmax(tensor))
    if max(-low, high) > HALF_MAX:
        raise EdgeAwqError(f"{name}: the value {max(low, high, key=abs):.6g} lies beyond float16 (65504)",
                           hint="the weight cannot be stored with 16 bits; build with --precision w4a16")
    return tensor.half()
