"""What the READMEs promise: commands and options that exist, links that lead somewhere, Python that runs."""

import ast
import re
from pathlib import Path

import click
import pytest

from edge_awq.cli import main

TOP = Path(__file__).resolve().parent.parent
PAGES = [TOP / "README.md", TOP / "plugins" / "README.md", *sorted((TOP / "edge_awq").rglob("README.md"))]
INDENTED = re.compile(r"^    edge-awq .*$(?:\n {12,}\S.*$)*", re.MULTILINE)  # a command with its further lines
INLINE = re.compile(r"`(edge-awq [^`]+)`")


def named(path):
    return str(path.relative_to(TOP))


def commands_in(text):
    """(words, options) of every edge-awq command on a page; inline code may name just a command."""
    for code in (*INDENTED.findall(text), *INLINE.findall(text)):
        line = " ".join(part.partition("#")[0] for part in code.splitlines())
        yield line.split()[1:3], re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)


def find(words):
    """The command that begins with ``words``; a word that is no command is an argument."""
    command = main.commands[words[0]]
    return command.commands[words[1]] if isinstance(command, click.Group) and len(words) > 1 else command


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_exists(page):
    for words, options in commands_in(page.read_text(encoding="utf-8")):
        known = {name for parameter in find(words).params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, words


def test_every_command_is_in_the_readme():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    assert {words[0] for words, _ in commands_in(text)} >= set(main.commands)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_python_in_the_readme_uses_what_there_is():
    from edge_awq.runner.session import Session

    block, client = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    ast.parse(client)
    used = {node.attr for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "session"}
    assert used and all(callable(getattr(Session, name)) for name in used)
