"""Stands where engines.py does: sleeps in place of work, and the machine's power follows what it is at.

    playing_engine.py NAME FOLDER THREADS CONTEXT DEVICE

FOLDER/power.json: the file that takes the power, and its unit per watt; without it, power stands still.
FOLDER/victim.json: processes to kill in the second decode.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

IDLE_W, PREFILL_W, DECODE_W = 5, 20, 12
PREFILL_S, STEP_S = 0.4, 0.05


def main(folder: Path) -> None:
    power, decodes = _load(folder / "power.json"), 0

    def draw(watts):
        if power is not None:
            file = Path(power["file"])
            temporary = file.with_name(file.name + ".new")
            temporary.write_text(f"{round(watts * power['per_w'])}\n")
            temporary.replace(file)

    draw(IDLE_W)
    say({"load_s": 0.1, "versions": {"edge-awq": "0.1.0"}})
    for line in sys.stdin:
        work = json.loads(line)
        draw(PREFILL_W if work["do"] == "prefill" else DECODE_W)
        began_ns, steps_s = time.monotonic_ns(), []
        if work["do"] == "prefill":
            time.sleep(PREFILL_S)
        else:
            steps_s = [timed_step() for _ in range(work["count"])]
            decodes += 1
        if decodes == 3 and (folder / "victim.json").exists():  # the first is the warm-up
            for victim in _load(folder / "victim.json"):
                os.kill(victim, signal.SIGKILL)
            (folder / "victim.json").unlink()
        ended_ns = time.monotonic_ns()
        draw(IDLE_W)
        say({"wall_s": (ended_ns - began_ns) / 1e9, "cpu_s": 0.0, "span_ns": [began_ns, ended_ns], "steps_s": steps_s,
             "peak_rss_bytes": 1})


def timed_step():
    began_s = time.perf_counter()
    time.sleep(STEP_S)
    return time.perf_counter() - began_s


def say(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _load(path):
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main(Path(sys.argv[2]))
