"""Whole tiny models, tokenizer included, for the tests that go through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from click.testing import CliRunner

from edge_awq.cli import main
from tiny import make_tiny
from tokenizers_made_here import train_byte_level

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def make_model(folder: Path, architecture: str = "llama3", template: str = TEMPLATE,
               **changes: Any) -> transformers.PreTrainedModel:
    """A checkpoint with float16 values, byte-level tokenizer, chat template and generation config."""
    tokenizer = train_byte_level()
    model = make_tiny(folder, architecture, **{"vocab_size": tokenizer.get_vocab_size(), **changes})
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template, "eos_token": "<|end|>", "bos_token": "<|begin|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    end = tokenizer.token_to_id("<|end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    # Read again, because half() has rounded the rotary frequencies too, which a checkpoint does not hold.
    return type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def greedy(model: transformers.PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """What transformers generates, token by token over the whole text; EOS does not end it."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def command(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """One command in this process; anything but a clean exit is an error of the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def spawn(*arguments: object) -> subprocess.Popen:
    """The same in a process of its own, which can be killed."""
    command = [sys.executable, "-m", "edge_awq", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 1, one error that names the words, a hint, nothing on standard output."""
    assert result.code == 1, result
    assert result.err.count("Error: ") == 1 and "Traceback" not in result.err
    assert "Hint: " in result.err and result.out == ""
    for word in words:
        assert word in result.err
