"""``python -m edge_awq.tune.ask_jtop NUMBER NAME SOCKET``: let jetson-stats' service set a power mode.

Prints {"refused": null}, or why it was not set. Needs the standard library and jetson-stats alone.
"""

from __future__ import annotations

import json
import os
import sys
import time

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import INTERVAL_S
from edge_awq.power.jtop import connect, refused

_QUIET_S = 3.0  # the service is at nothing, and the mode is another one


def main() -> None:
    """Ask, and say what came of it."""
    try:
        reason = set_mode(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    except EdgeAwqError as error:
        reason = f"{error.message} ({error.hint})"
    sys.stdout.write(json.dumps({"refused": reason}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the client's threads may not end


def set_mode(number: int, name: str, socket: str) -> str | None:
    """Why the mode was not set; None when it was.

    The service takes a place in its list for a mode's number, so both must agree. It refuses without a word what powers
    other units than the mode that is set.

    Raises:
        EdgeAwqError: the service does not answer.
    """
    client, failures, _ = connect(INTERVAL_S, socket)  # a meter's own interval, which the first client decides
    modes = client.nvpmodel
    if modes is None:
        return "jtop: its service knows no power modes"
    if modes.models[number : number + 1] != [name]:
        return f"jtop: its service has other modes ({', '.join(modes.models)})"
    try:
        modes.set_nvpmodel_id(number)
        busy_s = time.monotonic()
        while time.monotonic() - busy_s < _QUIET_S:
            time.sleep(INTERVAL_S)
            client.ok(spin=True)
            if modes.is_running():
                busy_s = time.monotonic()
            elif modes.id == number:
                return None
    except failures as error:
        raise refused(error) from error
    return f"jtop: its service did not do it, the mode is still {modes.name}; it may need a reboot"


if __name__ == "__main__":
    main()
