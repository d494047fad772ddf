"""The rules that keep the code small, honest and free of special cases."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_awq.model.family import load_families
from edge_awq.target import load_targets

TOP = Path(__file__).resolve().parent.parent
PACKAGE = sorted((TOP / "edge_awq").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE}
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 6  # the aim is 300 and 40


def named(path):
    return str(path.relative_to(TOP))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", PACKAGE, ids=named)
def test_files_and_functions_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    for function in functions(TREES[path]):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        parameters = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name
        assert len(parameters) <= PARAMETERS, function.name


@pytest.mark.parametrize("path", PACKAGE, ids=named)
def test_only_the_command_line_prints(path):
    calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert "print" not in names
    attributes = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    assert "cli" in path.parts or "echo" not in attributes


@pytest.mark.parametrize("path", PACKAGE, ids=named)
def test_no_family_or_target_is_decided_by_name(path):
    names = {family.name for family in load_families()} | {target.name for target in load_targets()} - {"cpu"}
    names |= {kind for family in load_families() for kind in family.model_types}
    compared = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Compare)]
    for node in compared:
        constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        assert not names & {value for value in constants if isinstance(value, str)}
    assert not re.search(r"model_type\s*(==|in\s*[(\[{\"'])", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PACKAGE, ids=named)
def test_no_failure_is_swallowed_wholesale(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler):
            caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {None}
            raises_again = isinstance(node.body[-1], ast.Raise)
            assert raises_again or not caught & {None, "Exception", "BaseException"}


@pytest.mark.parametrize("path", PACKAGE, ids=named)
def test_public_names_are_documented(path):
    tree = TREES[path]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def imported_by(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", ["edge_awq", "edge_awq.cli", "edge_awq.engine", "edge_awq.runner.session",
                                    "edge_awq.engine.ort", "edge_awq.evaluate.evaluate", "edge_awq.bundle"])
def test_a_device_that_runs_bundles_imports_nothing_heavy(module):
    assert not imported_by(f"import {module}") & {"torch", "transformers", "onnx", "onnx_graphsurgeon", "pycuda"}


def test_help_starts_with_click_alone():
    assert not imported_by("import edge_awq.cli") & {"numpy", "rich", "onnxruntime", "tokenizers", "jinja2"}


def test_families_and_targets_load():
    assert load_families() and load_targets()
