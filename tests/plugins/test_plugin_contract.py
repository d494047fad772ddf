"""include/contract.h says what edge_awq/export/ops.py says."""

from kernel_harness import library

from edge_awq.export import ops


def test_header_and_python_agree():
    expected = [f"{ops.DOMAIN} {ops.CONTRACT_VERSION}"]
    expected += [op.name + "".join(f"({', '.join(names)})" for names in (op.inputs, op.outputs, op.attributes))
                 for op in ops.OPS]
    assert library().edge_awq_contract().decode().splitlines() == expected
