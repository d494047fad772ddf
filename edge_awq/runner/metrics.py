"""What every number means: rates, energy per token, memory and bytes read are defined here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_awq.memory import peak_rss_bytes
from edge_awq.runner.generate import Token
from edge_awq.weights import StoredTensor

# Stored tables of which a token reads one row: too little to count.
ROW_BY_ROW = ("embed.", "positions.", "rope.", "local_rope.")


@dataclass(frozen=True)
class RunSummary:
    """One run in numbers; None means not known or not measured, never 0.

    Attributes:
        text: the answer.
        tokens: number of generated tokens.
        prompt_tokens: number of tokens of the prompt.
        reused_tokens: those of them that were in the KV cache already; prefill ran the others.
        prefill_tok_s: tokens that prefill ran / seconds to the first logits.
        decode_tok_s: (tokens - 1) / seconds from the first to the last token; None for fewer than two tokens.
        ttft_s: seconds from the start of prefill to the first token.
        load_s: seconds to open the bundle, check its files, and have the engine ready.
        peak_rss_bytes: the most memory that the process had resident, mapped weights included.
        weight_bytes_per_token: bytes of stored weights that one decoded token reads.
        energy: what a meter measured, as edge_awq.runner.energy.RequestEnergy names it; None without a meter.
    """

    text: str
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    prefill_tok_s: float | None
    decode_tok_s: float | None
    ttft_s: float | None
    load_s: float | None
    peak_rss_bytes: int | None
    weight_bytes_per_token: int | None
    energy: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``edge-awq run --json`` prints."""
        return asdict(self)


def summarize(tokens: Sequence[Token], prompt_tokens: int, load_s: float | None = None,
              weight_bytes_per_token: int | None = None, energy: dict[str, Any] | None = None,
              reused_tokens: int = 0) -> RunSummary:
    """The summary of a run that is over; peak memory is read now."""
    return RunSummary(
        text="".join(token.text for token in tokens),
        tokens=len(tokens),
        prompt_tokens=prompt_tokens,
        reused_tokens=reused_tokens,
        prefill_tok_s=prefill_tok_s(tokens, prompt_tokens - reused_tokens),
        decode_tok_s=decode_tok_s(tokens),
        ttft_s=tokens[0].t_s if tokens else None,
        load_s=load_s,
        peak_rss_bytes=peak_rss_bytes(),
        weight_bytes_per_token=weight_bytes_per_token,
        energy=energy,
    )


def prefill_tok_s(tokens: Sequence[Token], run_tokens: int) -> float | None:
    """Tokens of the prompt that were run, not found in the KV cache / time to first logits."""
    return _rate(run_tokens, tokens[0].logits_s) if tokens else None


def decode_tok_s(tokens: Sequence[Token]) -> float | None:
    """(n - 1) / (t_last - t_first): the first token belongs to prefill. None for n < 2."""
    return _rate(len(tokens) - 1, decode_s(tokens)) if len(tokens) > 1 else None


def decode_s(tokens: Sequence[Token]) -> float:
    """The decode window: seconds from the first token to the last."""
    return tokens[-1].t_s - tokens[0].t_s if tokens else 0.0


def joules_per_token(decode_energy_j: float | None, tokens: int) -> float | None:
    """Energy over the decode window / (n - 1), the tokens that fall into it. None without a meter or for n < 2."""
    return decode_energy_j / (tokens - 1) if decode_energy_j is not None and tokens > 1 else None


def roof_tok_s(weight_bytes_per_token: int | None, bandwidth_gb_s: float | None) -> float | None:
    """Tokens/s at which reading the weights alone takes all of the memory's bandwidth. GB are 1e9 bytes."""
    if not weight_bytes_per_token or not bandwidth_gb_s:
        return None
    return bandwidth_gb_s * 1e9 / weight_bytes_per_token


def share_of_roof(weight_bytes_per_token: int | None, tok_s: float | None,
                  bandwidth_gb_s: float | None) -> float | None:
    """Bytes read per token * tokens/s / memory bandwidth: 1 is as fast as memory allows."""
    roof = roof_tok_s(weight_bytes_per_token, bandwidth_gb_s)
    return None if tok_s is None or roof is None else tok_s / roof


def weight_bytes_per_token(layout: Mapping[str, StoredTensor]) -> int:
    """Bytes of stored weights that one decoded token reads: all blocks, final norm, head, one row of the embedding.

    Where the head is the embedding (tied, float16), all of it is read. Tables of positions, one row of which is used,
    and the KV cache are not weights.
    """
    embedding = layout["embed.weight"]
    tied = not any(name.startswith("head.") for name in layout)
    total = embedding.nbytes if tied else embedding.nbytes // embedding.shape[0]
    return total + sum(tensor.nbytes for name, tensor in layout.items() if not name.startswith(ROW_BY_ROW))


def _rate(amount: int, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
