"""`edge-awq`, and `python -m edge_awq`."""

import signal


def main() -> None:
    """The command line. While it is imported Ctrl-C just ends the process: nothing has begun."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edge_awq.cli import main as commands

    signal.signal(signal.SIGINT, before)
    commands(prog_name="edge-awq")


if __name__ == "__main__":
    main()
