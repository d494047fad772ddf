"""Which op can absorb an AWQ scale in a given model: the family's fold groups, narrowed by what config.json says."""

from __future__ import annotations

from edge_awq.model.config import DecoderConfig
from edge_awq.model.family import Family, Fold

# Activations f with f(x / s) = f(x) / s for s > 0: what is before them can absorb a scale of what is behind them.
HOMOGENEOUS = ("relu",)
ACT_SCALE = "act_scale"  # its weight, [intermediate_size], multiplies the output of a plain MLP's activation


def fold_groups(family: Family, config: DecoderConfig) -> tuple[Fold, ...]:
    """The fold groups of a block.

    The source "activation" becomes the linear before it where the activation lets a scale through, else a vector that
    multiplies the activation's output. v absorbs nothing where its outputs are clipped.
    """
    through = "up" if config.activation in HOMOGENEOUS else ACT_SCALE
    groups = (Fold(through if fold.source == "activation" else fold.source, fold.linears) for fold in family.fold)
    return tuple(fold for fold in groups if not (fold.source == "v" and config.clip_qkv))


def has_act_scale(family: Family, config: DecoderConfig) -> bool:
    """Whether quantized blocks store ``act_scale.weight``, float32 [intermediate_size]."""
    return any(fold.source == ACT_SCALE for fold in fold_groups(family, config))
