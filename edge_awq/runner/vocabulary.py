"""What a bundle says about text: its tokenizer, special tokens, chat template, and how its maker would sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge_awq.errors import EdgeAwqError
from edge_awq.model.tokenizer import (
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    open_tokenizer,
    read_table,
    token_text,
)
from edge_awq.runner.chat import ChatTemplate, read_chat_template
from edge_awq.runner.sampling import SamplingSettings


@dataclass(frozen=True)
class Vocabulary:
    """Texts and token ids of one model.

    Attributes:
        bos_id: the token that a text begins with, None when the model has none.
        eos_ids: tokens with which the model ends its answer.
        sampling: what its generation_config.json asks for.
        chat: None when the model has no chat template.
    """

    tokenizer: Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    sampling: SamplingSettings
    chat: ChatTemplate | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects around it.

        Raises:
            EdgeAwqError: the text is not valid Unicode.
        """
        return self._ids(text, add_special_tokens=True) or ([] if self.bos_id is None else [self.bos_id])

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, up to where the answer begins; ``options`` as in ChatTemplate.render.

        Raises:
            EdgeAwqError: the model has no chat template, or it fails on these messages.
        """
        if self.chat is None:
            raise EdgeAwqError("this model has no chat template", hint="give a plain prompt instead")
        return self._ids(self.chat.render(messages, **options), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens have none."""
        return self.tokenizer.decode(list(ids))

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a character, as a shell passes on bytes that are not UTF-8
            raise EdgeAwqError(f"the prompt is not valid Unicode: {error.reason} at character {error.start}",
                               hint="convert it to UTF-8") from error
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read what lies beside the weights in a bundle.

    Raises:
        EdgeAwqError: a file is missing or damaged.
    """
    tokenizer = open_tokenizer(folder / TOKENIZER)
    generation, config = (read_table(folder / name) if (folder / name).is_file() else {}
                          for name in (GENERATION_CONFIG, TOKENIZER_CONFIG))
    bos_ids, eos_ids = (_token_ids(generation.get(f"{name}_token_id"), folder)
                        or _ids_of(tokenizer, token_text(config, f"{name}_token")) for name in ("bos", "eos"))
    return Vocabulary(
        tokenizer=tokenizer,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=eos_ids,
        sampling=SamplingSettings.from_generation_config(generation),
        chat=read_chat_template(folder),
    )


def _token_ids(entry: Any, folder: Path) -> tuple[int, ...]:
    """An entry of generation_config.json: nothing, one id, or a list of them."""
    ids = () if entry is None else tuple(entry) if isinstance(entry, list) else (entry,)
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise EdgeAwqError(f"{folder / GENERATION_CONFIG}: {entry!r} is neither a token id nor a list of them",
                           hint="correct it in the checkpoint and build the bundle again")
    return ids


def _ids_of(tokenizer: Tokenizer, text: str | None) -> tuple[int, ...]:
    token_id = None if text is None else tokenizer.token_to_id(text)
    return () if token_id is None else (token_id,)
