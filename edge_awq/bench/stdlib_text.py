"""Text that every machine with Python has: the standard library's sources, its manual and its documented functions."""

from __future__ import annotations

import ast
import hashlib
import importlib
import itertools
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

# Folders that some distributions package apart, and tables that read like no language.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip",
                   "tkinter", "distutils", "encodings", "pydoc_data", "__pycache__"}
HELD_OUT_SHARE = 20  # one file in so many is kept for evaluation
LONGEST_ANSWER_LINES = 24  # a function that fits, with its request, well into one context

BOS, EOS = "<|bos|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and to evaluate on; no file gives to both.

    Attributes:
        training: documents, each beginning with BOS and ending with EOS; only the last one may be cut short.
        held_out: the same, of the files kept for evaluation.
        held_out_files: their paths, relative to the standard library's folder.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_files: tuple[str, ...]


def read_corpus(size_limit: int) -> Corpus:
    """At most ``size_limit`` characters to train on and a tenth as many to evaluate on, the same on every call."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(_source_files(root), key=lambda name: _digest(name.as_posix()))
    held_out_files = [name for name in files if _is_held_out(name)]
    training_files = [name for name in files if not _is_held_out(name)]
    return Corpus(
        training=tuple(_cut(itertools.chain(_manual(), _documents(root, training_files)), size_limit)),
        held_out=tuple(_cut(_documents(root, held_out_files), size_limit // 10)),
        held_out_files=tuple(name.as_posix() for name in held_out_files),
    )


def plain_document(text: str) -> str:
    """One document of running text."""
    return f"{BOS}{text.strip()}\n{EOS}"


def chat_document(request: str, answer: str) -> str:
    """One exchange in the form of the chat template."""
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return _CHAT.render(messages=messages, bos_token=BOS, eos_token=EOS)


def documented_functions(source: str) -> Iterator[tuple[str, str]]:
    """(first line of the docstring, source) of every short documented function in a module's source."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < LONGEST_ANSWER_LINES:
            docstring = ast.get_docstring(node)
            if docstring:
                code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                yield docstring.splitlines()[0], textwrap.dedent(code)


_CHAT = Environment(autoescape=False).from_string(CHAT_TEMPLATE)


def _digest(text: str) -> str:
    """Orders files as if at random, alike on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_held_out(name: Path) -> bool:
    return int(_digest(name.as_posix()), 16) % HELD_OUT_SHARE == 0


def _source_files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not SKIPPED_FOLDERS & set(name.parts[:-1]):
            yield name


def _documents(root: Path, files: Iterable[Path]) -> Iterator[str]:
    for name in files:
        source = (root / name).read_text(encoding="utf-8", errors="replace")
        yield plain_document(source)
        yield from (chat_document(request, answer) for request, answer in documented_functions(source))


def _manual() -> Iterator[str]:
    """The language reference behind ``help()``; a few distributions leave it out."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        return
    yield from (plain_document(text) for _, text in sorted(topics.items()))


def _cut(documents: Iterable[str], size_limit: int) -> Iterator[str]:
    """Documents of ``size_limit`` characters altogether; the last one is cut short."""
    for document in documents:
        yield document[:size_limit]
        size_limit -= len(document)
        if size_limit <= 0:
            return
