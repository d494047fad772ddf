"""The tokenizer of a checkpoint: read as it is, converted from SentencePiece where need be, put into a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from edge_awq.errors import EdgeAwqError
from edge_awq.model.sentencepiece import SentencePieceModel, convert_sentencepiece, read_sentencepiece

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# Copied as they are, where the checkpoint has them.
COMPANIONS = (TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG, CHAT_TEMPLATE)
_SENTENCEPIECE = "tokenizer.model"
_GET_AGAIN = "download the checkpoint, or build the bundle, again"


def copy_tokenizer(source: Path, out: Path) -> tuple[str, ...]:
    """Put everything about text that a checkpoint holds into the folder of a bundle; returns the names written.

    tokenizer.json is made where there is none; so is generation_config.json, from the token ids of config.json.

    Raises:
        EdgeAwqError: no tokenizer, or a damaged one.
    """
    text = read_tokenizer(source).to_str()
    original = source / TOKENIZER
    if original.is_file() and open_tokenizer(original).to_str() == text:
        shutil.copyfile(original, out / TOKENIZER)
    else:
        (out / TOKENIZER).write_text(text, encoding="utf-8")
    names = [TOKENIZER]
    for name in COMPANIONS:
        if (source / name).is_file():
            if name.endswith(".json"):
                read_table(source / name)  # so that a damaged one is found now, not on the device
            shutil.copyfile(source / name, out / name)
            names.append(name)
    if GENERATION_CONFIG not in names and (ids := _special_ids(source)):
        (out / GENERATION_CONFIG).write_text(json.dumps(ids, indent=1) + "\n", encoding="utf-8")
        names.append(GENERATION_CONFIG)
    return tuple(names)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or a bundle: tokenizer.json, else tokenizer.model converted.

    What tokenizer_config.json says about the beginning-of-sequence token (``add_bos_token``) holds.

    Raises:
        EdgeAwqError: no tokenizer, or a damaged one.
    """
    config = read_table(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    if (folder / TOKENIZER).is_file():
        tokenizer = open_tokenizer(folder / TOKENIZER)
        _set_bos(tokenizer, token_text(config, "bos_token"), config.get("add_bos_token"))
        return tokenizer
    if (folder / _SENTENCEPIECE).is_file():
        model = read_sentencepiece(folder / _SENTENCEPIECE)
        tokenizer = convert_sentencepiece(model, continues=config.get("legacy") is False)
        _add_tokens(tokenizer, _added_tokens(folder, config), folder)
        _set_bos(tokenizer, token_text(config, "bos_token") or _bos_piece(model), config.get("add_bos_token", True))
        return tokenizer
    raise EdgeAwqError(f"{folder}: no tokenizer; looked for {TOKENIZER} and {_SENTENCEPIECE}",
                       hint="download the checkpoint completely, or save the tokenizer in the fast format")


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; lengths are never cut or padded, whatever it says.

    Raises:
        EdgeAwqError: missing or damaged.
    """
    text = _read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise EdgeAwqError(f"{path}: not a tokenizer, or damaged ({error})", hint=_GET_AGAIN) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        EdgeAwqError: unreadable or something else.
    """
    try:
        table = json.loads(_read_text(path))
    except ValueError as error:
        raise EdgeAwqError(f"{path}: damaged ({error})", hint=_GET_AGAIN) from error
    if not isinstance(table, dict):
        raise EdgeAwqError(f"{path}: one JSON object is expected", hint=_GET_AGAIN)
    return table


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeAwqError(f"{path}: cannot be read ({error})", hint=_GET_AGAIN) from error


def token_text(config: dict[str, Any], name: str) -> str | None:
    """A special token of a tokenizer_config.json, which writes it as text or as a table with its text."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _set_bos(tokenizer: Tokenizer, bos: str | None, wanted: bool | None) -> None:
    """Make encoding begin with ``bos``, or not; None leaves it as it is."""
    bos_id = None if bos is None else tokenizer.token_to_id(bos)
    if bos_id is None or wanted is None or (tokenizer.encode("a").ids[:1] == [bos_id]) == wanted:
        return
    # An offsets-only post-processor, as byte-level BPE has it, changes no ids: nothing is lost without it.
    template = f"{bos}:0 $A:0" if wanted else "$A:0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B:1", special_tokens=[(bos, bos_id)] if wanted else [],
    )


def _bos_piece(model: SentencePieceModel) -> str | None:
    return model.pieces[model.bos_id].text if model.bos_id >= 0 else None


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, Any]:
    """Tokens that the checkpoint adds to those of the SentencePiece model, by id."""
    added: dict[int, Any] = {}
    try:
        if (folder / "added_tokens.json").is_file():
            added.update({int(index): text for text, index in read_table(folder / "added_tokens.json").items()})
        added.update({int(index): token for index, token in config.get("added_tokens_decoder", {}).items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise EdgeAwqError(f"{folder}: the added tokens cannot be read ({error})", hint=_GET_AGAIN) from error
    return added


def _add_tokens(tokenizer: Tokenizer, added: dict[int, Any], folder: Path) -> None:
    for index, token in sorted(added.items()):
        table = token if isinstance(token, dict) else {"content": token, "special": True, "normalized": False}
        flags = {key: bool(table.get(key)) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(str(table.get("content")), **flags)])
        if tokenizer.token_to_id(str(table.get("content"))) != index:
            raise EdgeAwqError(f"{folder}: the added token {table.get('content')!r} cannot have id {index}",
                               hint="the ids of added tokens must follow the vocabulary without a gap; "
                                    "use a checkpoint that has a tokenizer.json")


def _special_ids(source: Path) -> dict[str, Any]:
    config = read_table(source / "config.json") if (source / "config.json").is_file() else {}
    return {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
