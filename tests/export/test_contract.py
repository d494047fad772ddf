"""What others may rely on: names, signatures, and that reading them needs no heavy package."""

import subprocess
import sys

import pytest

from edge_awq.export import ops


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_function_has_the_signature_of_the_contract(op):
    function = ops.function(op)
    assert (function.domain, function.name) == ("edge_awq", op.name)
    assert tuple(function.input) == op.inputs
    assert tuple(function.output) == op.outputs
    assert tuple(function.attribute) == op.attributes
    assert function.doc_string.startswith("y = ")


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_body_is_standard_and_reads_every_input(op):
    nodes = ops.function(op).node
    assert {node.domain for node in nodes} == {""}
    assert set(op.inputs) <= {name for node in nodes for name in node.input}


@pytest.mark.parametrize(
    ("module", "without"), [("edge_awq.export.ops", "onnx"), ("edge_awq.export.graph", "torch")], ids=["ops", "graph"]
)
def test_imports_stay_light(module, without):
    code = f"import sys; sys.modules['{without}'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True)
