"""The right-hand sides of a family file's [config] table: a key of config.json, a number, or a product of powers.

    "num_attention_heads"     "attn_config.clip_qkv"     "expansion_ratio * d_model"     "query_pre_attn_scalar ^ -0.5"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_awq.errors import EdgeAwqError

_FACTOR = re.compile(r"\s*(?P<what>[A-Za-z_][\w.]*|\d+(?:\.\d+)?)\s*(?:\^\s*(?P<power>-?\d+(?:\.\d+)?)\s*)?")


@dataclass(frozen=True)
class Factor:
    """``what`` is a key or a number, raised to ``power``."""

    what: str | int | float
    power: float | None


def parse_expression(text: str, where: str) -> tuple[Factor, ...]:
    """The factors of an expression.

    Raises:
        EdgeAwqError: it is none; ``where`` names the file.
    """
    matches = [_FACTOR.fullmatch(part) for part in text.split("*")]
    if not all(matches):
        raise EdgeAwqError(f"{where}: '{text}' is no expression over keys of config.json",
                           hint="write a key, a number, or a product such as 'expansion_ratio * d_model ^ 0.5'")
    return tuple(Factor(_number(match["what"]), float(match["power"]) if match["power"] else None)
                 for match in matches)


def _number(text: str) -> str | int | float:
    if text[0].isdigit():
        return float(text) if "." in text else int(text)
    return text


def lookup(raw: Mapping[str, Any], key: str) -> Any:
    """The value of ``key`` in config.json, dots reaching into nested tables; None where there is none."""
    found: Any = raw
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def evaluate(text: str, raw: Mapping[str, Any]) -> Any:
    """The value of an expression; None where config.json has not all of its keys.

    A single key has whatever value config.json gives it.

    Raises:
        EdgeAwqError: a factor of a product is no number.
    """
    factors = parse_expression(text, "config.json")
    values = [lookup(raw, factor.what) if isinstance(factor.what, str) else factor.what for factor in factors]
    if None in values:
        return None
    if len(factors) == 1 and factors[0].power is None:
        return values[0]
    product: int | float = 1
    for factor, value in zip(factors, values, strict=True):
        usable = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not usable or (factor.power is not None and value <= 0):
            raise EdgeAwqError(f"config.json: {factor.what} = {value!r}, a positive number is expected",
                               hint="download config.json again, or correct it")
        product *= value if factor.power is None else value**factor.power
    return product
