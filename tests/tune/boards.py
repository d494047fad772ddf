"""An Orin NX with power modes: its files, and an nvpmodel for PATH that acts on them as the real one does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("power", "e2e")]
from trees import Board, write  # noqa: E402

MODES = {"MAXN": 0, "10W": 1, "15W": 2, "REBOOT": 3, "BROKEN": 4}
WATTS = {"MAXN": 400, "10W": 2, "15W": 20}  # so far apart that no busy machine turns their order around
TEMP_C = {"MAXN": 80, "10W": 45, "15W": 55}
WATTS_TO_MA = 200  # at the tree's 5 V

NVPMODEL = """#!/bin/sh
board={root}
case $1 in
-q) mode=$(sed 's/pmode:0*\\([0-9]*[0-9]\\).*/\\1/' $board/var/lib/nvpmodel/status)
    echo "NV Power Mode: $(sed -n "s/.*ID=$mode NAME=\\([^ ]*\\).*/\\1/p" $board/etc/nvpmodel.conf)"
    echo $mode; exit ;;
-p) sed -n 's/.*POWER_MODEL ID=\\([0-9]*\\) NAME=\\([^ ]*\\).*/NVPM VERB: POWER_MODEL: ID=\\1 NAME=\\2/p' \\
        $board/etc/nvpmodel.conf
    echo 'NVPM VERB: PM_CONFIG: DEFAULT=15W(2)'; exit ;;
-m) echo "$@" >> $board/calls ;;
*) exit 1 ;;
esac
put() {{ printf '%s\\n' "$2" > "$1.new" && mv "$1.new" "$1"; }}
if [ -e $board/stuck ]; then echo 'NVPM ERROR: failed to set power mode!'; exit 255; fi
case $2 in
{modes}
3) echo 'NVPM WARN: Golden image context is already created'
   echo "NVPM WARN: Reboot required for changing to this power mode: $2"
   echo 'NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:'
   read answer; case $answer in YES|yes) touch $board/rebooted ;; esac
   exit 0 ;;
*) echo 'NVPM VERB: parsing done'; echo 'NVPM ERROR: Error writing 0 to max_freq: 13'; exit 255 ;;
esac
put $board/sys/bus/i2c/devices/1-0040/hwmon/hwmon0/curr1_input $ma
put $board/sys/class/thermal/thermal_zone0/temp $temp
put $board/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq $((1000000 + $2))
put $board/var/lib/nvpmodel/status "$(printf 'pmode:%04d fmode:quiet' $2)"
"""


class ModedBoard:
    """Its files are below ``root``; MAXN is set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        Board(root, "orin-nx").set_total_w(WATTS["MAXN"])
        models = "\n".join(f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1"
                           for name, number in MODES.items())
        write(root / "etc/nvpmodel.conf", f"{models}\n< PM_CONFIG DEFAULT=2 >")
        write(root / "var/lib/nvpmodel/status", "pmode:0000 fmode:quiet")
        write(root / "proc/device-tree/model", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0")
        write(root / "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
        write(root / "sys/class/thermal/thermal_zone0/type", "tj-thermal")
        write(root / "sys/class/thermal/thermal_zone0/temp", "80000")
        write(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1000000")
        modes = "\n".join(f"{MODES[name]}) ma={watts * WATTS_TO_MA} temp={TEMP_C[name] * 1000} ;;"
                          for name, watts in WATTS.items())
        self._program("nvpmodel", NVPMODEL.format(root=root, modes=modes))
        self._program("sudo", '#!/bin/sh\nexec "$@"\n')  # only used where the tests do not run as root

    @property
    def path(self) -> str:
        """PATH with its programs first."""
        return f"{self.root / 'bin'}:{os.environ['PATH']}"

    @property
    def mode(self) -> int:
        """The number of the mode that is set."""
        return int((self.root / "var/lib/nvpmodel/status").read_text().split()[0].removeprefix("pmode:"))

    @property
    def calls(self) -> list[str]:
        """What nvpmodel was called with."""
        calls = self.root / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def _program(self, name: str, text: str) -> None:
        write(self.root / "bin" / name, text)
        (self.root / "bin" / name).chmod(0o755)
