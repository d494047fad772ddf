"""The numbers of an evaluation, from log probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from edge_awq.distributions import divergence, log_softmax
from edge_awq.engine.base import not_finite


@dataclass(frozen=True)
class Quality:
    """How well a model foretells a text, and how close it is to its reference.

    Every standard error is that of a mean over windows, taken as independent; None for a single window.

    Attributes:
        tokens: that were foretold.
        nll_nats: mean of -ln p(token), nats per token.
        perplexity: exp(nll_nats).
        excess_nats: nll_nats less the reference's own; None without a reference, as all that follow. Its error is that
            of the difference, which the text's own unevenness does not touch.
        kl_nats: mean KL divergence of the model's distributions from the reference's, KL(reference || model), nats per
            token.
        kl_p99_nats: what 99 % of the tokens stay below.
        top1_agreement: share of tokens at which both find the same token the likeliest.
        reference_perplexity: the reference's own, on the same tokens.
    """

    tokens: int
    nll_nats: float
    nll_error_nats: float | None
    perplexity: float
    excess_nats: float | None = None
    excess_error_nats: float | None = None
    kl_nats: float | None = None
    kl_error_nats: float | None = None
    kl_p99_nats: float | None = None
    top1_agreement: float | None = None
    reference_perplexity: float | None = None


@dataclass
class Tally:
    """Collects tokens; each list has an array [tokens] for every part of a window."""

    _windows: list[np.ndarray] = field(default_factory=list)
    _nll: list[np.ndarray] = field(default_factory=list)
    _kl: list[np.ndarray] = field(default_factory=list)
    _agrees: list[np.ndarray] = field(default_factory=list)
    _reference_nll: list[np.ndarray] = field(default_factory=list)

    def add(self, window: int, targets: np.ndarray, log_q: np.ndarray, log_p: np.ndarray | None) -> None:
        """A part of a window; all parts have a reference, or none.

        Args:
            targets: [tokens] ids that come next.
            log_q: [tokens, V] float32, the model's log probabilities.
            log_p: the same of the reference, or None.
        """
        rows = np.arange(len(targets))
        self._windows.append(np.full(len(targets), window))
        self._nll.append(-log_q[rows, targets].astype(np.float64))
        if log_p is not None:
            self._kl.append(divergence(log_p, log_q))
            self._agrees.append(log_p.argmax(1) == log_q.argmax(1))
            self._reference_nll.append(-log_p[rows, targets].astype(np.float64))

    def quality(self) -> Quality:
        """Of all that was added; at least one token."""
        windows, nll = np.concatenate(self._windows), np.concatenate(self._nll)
        own = Quality(len(nll), float(nll.mean()), _error(windows, nll), float(np.exp(nll.mean())))
        if not self._kl:
            return own
        kl, reference_nll = np.concatenate(self._kl), np.concatenate(self._reference_nll)
        excess = nll - reference_nll
        return replace(own, excess_nats=float(excess.mean()), excess_error_nats=_error(windows, excess),
                       kl_nats=float(kl.mean()), kl_error_nats=_error(windows, kl),
                       kl_p99_nats=float(np.quantile(kl, 0.99)),
                       top1_agreement=float(np.concatenate(self._agrees).mean()),
                       reference_perplexity=float(np.exp(reference_nll.mean())))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log probabilities [tokens, V] float32 of a model's logits [tokens, V] float32.

    Raises:
        EdgeAwqError: a row holds NaN, or its largest logit is infinite.
    """
    if not np.isfinite(logits.max(1)).all():
        raise not_finite()
    return log_softmax(logits)


def _error(windows: np.ndarray, values: np.ndarray) -> float | None:
    """Standard error of the mean of ``values``, each of the window that ``windows`` names."""
    means = np.bincount(windows, values) / np.bincount(windows)
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
