"""`python -m edge_awq` is `edge-awq`."""

from edge_awq.cli import main

main(prog_name="edge-awq")
