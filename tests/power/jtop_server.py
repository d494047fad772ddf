"""The real jtop service over a fake sensor tree, without privileges: jtop_server.py I2C_FOLDER SOCKET.

Runs in an environment with jetson-stats and nothing else. Only what needs root or a Jetson's own files is replaced: the
socket's place and group, the hardware's description, the settings' folder, and where the power sensors are looked for.
"""

import os
import sys
import time
import types
from pathlib import Path

from jtop import service
from jtop.core import config, power

i2c_folder, socket = sys.argv[1:]
service.JTOP_PIPE = socket
config.get_config_service = lambda *_: str(Path(socket).parent / "settings")
service.getgrnam = lambda _: types.SimpleNamespace(gr_gid=os.getgid())
service.get_hardware = lambda: {"Model": "stand-in", "Module": "p3767", "L4T": "36.4.3", "Jetpack": "6.2",
                                "Serial Number": "0123456789"}
if os.getuid() != 0:
    service.os = types.SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    service.os.getuid = lambda: 0
    service.os.chown = lambda *_: None

server = service.JtopServer(force=True)
server.power._power_sensor = power.find_all_i2c_power_monitor(i2c_folder)
first_s, read_rails = [float(os.environ.get("STAND_IN_FIRST_S", "0"))], server.power.get_status


def read_slowly_at_first():
    """A board's tools take their time when they are first asked."""
    time.sleep(first_s.pop() if first_s else 0)
    return read_rails()


server.power.get_status = read_slowly_at_first
server.start()
sys.stdout.write("ready\n")
sys.stdout.flush()
while True:
    time.sleep(60)
