"""What a rule answers when it leaves a match as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Declined:
    """``reason`` is for the lowering report: what was found, and what the rule needs."""

    reason: str
