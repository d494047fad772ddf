"""`edge-awq`, and `python -m edge_awq`."""

import os
import signal
import sys


def main() -> None:
    """The command line. While it is imported Ctrl-C just ends the process: nothing has begun."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edge_awq.cli import main as commands

    signal.signal(signal.SIGINT, before)
    commands(prog_name="edge-awq")


if __name__ == "__main__":
    main()
