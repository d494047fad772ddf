"""The files of a Hugging Face folder beside its weights, and the atomic way to write one."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edge_awq.bench.stdlib_text import BOS, CHAT_TEMPLATE, EOS, SPECIAL_TOKENS
from edge_awq.model.config import parse_config
from edge_awq.model.family import find_family


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when the block ends without an error."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer (GPT-2's splitting) that puts BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(documents, trainer)
    opening = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=opening)
    return tokenizer


def hf_config(shape: dict[str, Any], dtype: str) -> dict[str, Any]:
    """config.json: ``shape`` in the keys of that file, and what the models made here have in common."""
    return {
        "hidden_act": "silu",
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "torch_dtype": dtype,
        **shape,
    }


def write_text_files(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Everything in a model folder but the weights."""
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {**ends, "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    write_json(folder / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": parse_config(config, find_family(config)).max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    })


def write_json(path: Path, value: object) -> None:
    """Readable JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote; None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
