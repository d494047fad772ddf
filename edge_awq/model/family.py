"""Model families: what config.json cannot say, as data in ``families/*.toml``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.model.expression import lookup, parse_expression
from edge_awq.toml import from_table, load_toml

FOLDER = Path(__file__).parent / "families"

# The words a family file may use. Each names one implementation in decoder.py and one in export/graph.py.
WORDS = {
    "norm": ("rms", "layer"),
    "mlp": ("gated", "plain"),
    "position": ("rope", "alibi", "learned"),
    "residual": ("sequential", "parallel", "parallel_two_norms", "sandwich", "norm_after"),
}
SPLITS = ("blocks", "grouped")  # how fused linears lie in one matrix; see naming.split_fused
QK_NORMS = ("head", "row")  # what q_norm and k_norm normalize together: one head, or all of them
PAIRS = ("halves", "interleaved")  # what is rotated together: elements half a rotation apart, or neighbours

# Canonical configuration names: those that every family gives, by a key or a default, and those that some have.
NEEDED = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "vocab_size", "max_positions", "norm_eps",
          "activation")
OPTIONAL = ("num_kv_heads", "head_size", "tied_head", "rope_theta", "local_rope_theta", "rotary_fraction",
            "rope_layers", "window_pattern", "alibi_max_bias", "position_offset", "clip_qkv", "attention_scale",
            "attention_softcap", "logit_softcap", "logit_scale", "embed_scale")
OUTER = ("embed", "positions", "final_norm", "head")
NORMS = ("attn_norm", "q_norm", "k_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
FOLD_SOURCES = (*NORMS, *LINEARS, "activation")
ABSENT = "none"  # in [match] and [require]: config.json has no such key, or null


@dataclass(frozen=True)
class Fold:
    """One AWQ fold group: ``source`` absorbs 1/s into its output channels, ``linears`` take s into their inputs."""

    source: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Fused:
    """Linears that a checkpoint stores as one module; ``split`` is a word of SPLITS."""

    into: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Family:
    """One model family, read from ``families/<name>.toml``.

    Attributes:
        model_types: the values of ``model_type`` in config.json that belong here.
        norm, mlp, position, residual: words of WORDS.
        config: canonical configuration name -> expressions over keys of config.json, tried in order.
        names: canonical name -> module name in the checkpoint, outside the blocks.
        block: the same inside a block, with ``prefix`` holding ``{i}``; fused linears share a module.
        fold: the AWQ fold groups, in the order in which they are searched. The source "activation" is the output of
            a plain MLP's activation: see folds.py.
        defaults: canonical configuration name -> value where config.json is silent.
        fused: module name -> the linears that it holds.
        match: key of config.json -> values with which a model belongs here, for families of one model type.
        require: key of config.json -> values that this family can run; others are refused.
        norm_offset: added to the stored gains of every norm.
        rotary_pairs, qk_norm: words of PAIRS and of QK_NORMS.
    """

    name: str
    model_types: tuple[str, ...]
    norm: str
    mlp: str
    position: str
    residual: str
    config: dict[str, tuple[str, ...]]
    names: dict[str, str]
    block: dict[str, str]
    fold: tuple[Fold, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    fused: dict[str, Fused] = field(default_factory=dict)
    match: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    require: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    norm_offset: float = 0.0
    rotary_pairs: str = PAIRS[0]
    qk_norm: str = QK_NORMS[0]

    @property
    def linears(self) -> tuple[str, ...]:
        """Canonical names of the linear layers in a block, in the order of the forward pass."""
        return tuple(name for name in self.block if name in LINEARS)

    @property
    def norms(self) -> tuple[str, ...]:
        """Canonical names of the norms in a block."""
        return tuple(name for name in self.block if name in NORMS)

    def fits(self, raw: Mapping[str, Any]) -> bool:
        """Whether a config.json belongs to this family."""
        return raw.get("model_type") in self.model_types and not _contradictions(self.match, raw)

    def check(self, raw: Mapping[str, Any]) -> None:
        """Refuse a config.json that asks for something that this family's words do not describe.

        Raises:
            EdgeAwqError: a key has a value outside ``require``.
        """
        for key, found in _contradictions(self.require, raw):
            possible = " or ".join("absent" if value == ABSENT else repr(value) for value in self.require[key])
            raise EdgeAwqError(f"config.json: {key} = {found!r} is not supported for family '{self.name}'",
                               hint=f"models with {key} {possible} work")


def _contradictions(conditions: Mapping[str, tuple[Any, ...]], raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Keys whose value in ``raw``, or an entry of it where it is a list, is none of those listed; and that value."""
    found = {key: lookup(raw, key) for key in conditions}
    entries = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    return [(key, found[key]) for key, values in entries.items()
            if any((ABSENT if value is None else value) not in conditions[key] for value in values)]


def read_family(path: Path) -> Family:
    """Read one family file; an unknown or missing key, or a value of another type, is an error that names it."""
    table: dict[str, Any] = load_toml(path)
    _check_keys(path, "the file", table, [entry.name for entry in fields(Family) if entry.name != "fused"],
                [entry.name for entry in fields(Family)
                 if entry.default is MISSING and entry.default_factory is MISSING])
    for name in ("config", "names", "block", "defaults", "match", "require"):
        _check_table(path, f"[{name}]", table.get(name, {}))
    for word, choices in WORDS.items():
        _check_word(path, word, table[word], choices)
    for word, choices in (("rotary_pairs", PAIRS), ("qk_norm", QK_NORMS)):
        _check_word(path, word, table.get(word, choices[0]), choices)
    block, fused = _read_block(path, table["block"])
    _check_keys(path, "[config] and [defaults]", {**table["config"], **table.get("defaults", {})}, (*NEEDED, *OPTIONAL),
                NEEDED)
    _check_keys(path, "[names]", table["names"], OUTER, ("embed", "final_norm", "head"))
    listed = {name: {key: entry if isinstance(entry, list) else [entry] for key, entry in table.get(name, {}).items()}
              for name in ("config", "match", "require")}
    family = from_table(Family, {**table, **listed, "block": block, "fused": fused}, path.name)
    for fold in family.fold:
        _check_word(path, "[[fold]]: source", fold.source, FOLD_SOURCES)
        for linear in fold.linears:
            _check_word(path, "[[fold]]: linears", linear, LINEARS)
    for expressions in family.config.values():
        for expression in expressions:
            parse_expression(expression, path.name)
    return family


def _read_block(path: Path, table: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Canonical name -> module, and the modules that hold several, as tables of Fused."""
    block, fused = {}, {}
    for name, entry in table.items():
        if isinstance(entry, str):
            block[name] = entry
            continue
        _check_table(path, f"[block] {name}", entry)
        _check_keys(path, f"[block] {name}", entry, ("from", "into", "split"), ("from", "into", "split"))
        _check_word(path, f"[block] {name}: split", entry["split"], SPLITS)
        if not isinstance(entry["from"], str):
            raise EdgeAwqError(f"{path.name}: [block] {name}: from = {entry['from']!r}, a module's name is expected",
                               hint="see edge_awq/model/families/mpt.toml")
        parts = {"into": entry["into"], "split": entry["split"]}
        block |= dict.fromkeys(from_table(Fused, parts, f"{path.name}: [block] {name}").into, entry["from"])
        fused[entry["from"]] = parts
    _check_keys(path, "[block]", block, ("prefix", *NORMS, *LINEARS), ("prefix", "q", "k", "v", "o", "up", "down"))
    return block, fused


def _check_table(path: Path, where: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise EdgeAwqError(f"{path.name}: {where} = {value!r}, a table is expected",
                           hint="see edge_awq/model/families/llama.toml")


def _check_keys(path: Path, where: str, table: Mapping[str, Any], known: Any, needed: Any) -> None:
    if unknown := sorted(set(table) - set(known)):
        raise EdgeAwqError(f"{path.name}: {where} has unknown keys: {', '.join(unknown)}",
                           hint=f"known: {', '.join(known)}")
    if missing := [name for name in needed if name not in table]:
        raise EdgeAwqError(f"{path.name}: {where} lacks keys: {', '.join(missing)}",
                           hint="see edge_awq/model/families/llama.toml, which has them all")


def _check_word(path: Path, where: str, word: Any, choices: tuple[str, ...]) -> None:
    if word not in choices:
        raise EdgeAwqError(f"{path.name}: {where} = '{word}' is not known", hint=f"use one of: {', '.join(choices)}")


@functools.cache
def load_families() -> tuple[Family, ...]:
    """All families that ship with edge-awq, by file name."""
    return tuple(read_family(path) for path in sorted(FOLDER.glob("*.toml")))


def find_family(raw: Mapping[str, Any]) -> Family:
    """The family that a config.json belongs to.

    Raises:
        EdgeAwqError: none lists its model type, or none of those that do fits its other values.
    """
    families = load_families()
    for family in families:
        if family.fits(raw):
            return family
    kind = raw.get("model_type")
    if relatives := [family for family in families if kind in family.model_types]:
        asked = ", ".join(f"{key} = {lookup(raw, key)!r}" for key in dict.fromkeys(
            key for family in relatives for key in family.match))
        variants = "; ".join(f"{family.name} ({_words(family.match)})" for family in relatives)
        raise EdgeAwqError(f"config.json: no family of model type '{kind}' has {asked}", hint=f"known: {variants}")
    known = ", ".join(sorted({kind for family in families for kind in family.model_types}))
    raise EdgeAwqError(
        f"model type '{kind}' belongs to no known family",
        hint=f"known model types: {known}; a new family is one TOML file in edge_awq/model/families",
    )


def _words(conditions: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{key} = {' or '.join(map(str, values))}" for key, values in conditions.items())
