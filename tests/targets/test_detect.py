"""Detection over made-up system trees and a made-up driver."""

from pathlib import Path

import pytest

from edge_awq.detect import detect_target, mode_named, read_machine
from edge_awq.gpus import Gpu, query_gpus
from edge_awq.target import find_target

CONF = "< POWER_MODEL ID=0 NAME=15W >\nGPU MAX_FREQ -1\n< POWER_MODEL ID=1 NAME=25W >\n< PM_CONFIG DEFAULT=1 >\n"
# what boards have in /proc/device-tree/compatible -> the profile
BOARDS = {
    ("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"): "jetson-agx-orin-64gb",
    ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234"): "jetson-agx-orin-devkit-32gb",
    ("nvidia,p3737-0000+p3701-0004", "nvidia,p3701-0004", "nvidia,tegra234"): "jetson-agx-orin-32gb",
    ("nvidia,p3768-0000+p3767-0002", "nvidia,p3767-0002", "nvidia,tegra234"): "jetson-orin-nx-16gb",
    ("nvidia,p3768-0000+p3767-0000-super", "nvidia,p3767-0000", "nvidia,tegra234"): "jetson-orin-nx-16gb",
    ("nvidia,p3768-0000+p3767-0001", "nvidia,tegra234"): "jetson-orin-nx-8gb",
    ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"): "jetson-orin-nano-8gb",
    ("nvidia,p3509-0000+p3767-0004", "nvidia,p3767-0004", "nvidia,tegra234"): "jetson-orin-nano-4gb",
    ("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"): "jetson-thor-t5000",
    ("nvidia,p4071-0000+p3834-0000", "nvidia,p3834-0000", "nvidia,tegra264"): "jetson-thor-t4000",
}
ORIN = Gpu("Orin", (8, 7), 8, 7618 << 20, True, None, 2 << 20, 1020.0)


def board(root, compatible, status="pmode:0001"):
    files = {
        "proc/device-tree/compatible": "\0".join(compatible) + "\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/meminfo": "MemTotal:        7803336 kB\nMemFree: 100 kB\n",
        "var/lib/nvpmodel/status": status,
        "etc/nvpmodel.conf": CONF,
        "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
        "sys/class/devfreq/15340000.vic/max_freq": "729600000\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("compatible", BOARDS, ids=lambda names: names[0])
def test_board_is_recognised(tmp_path, compatible):
    machine = read_machine(board(tmp_path, compatible), query=lambda: (ORIN,))
    assert machine.is_tegra
    assert detect_target(machine).name == BOARDS[compatible]


def test_what_a_board_says(tmp_path):
    root = board(tmp_path, ("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"))
    machine = read_machine(root, query=lambda: ())
    assert machine.model.endswith("Developer Kit Super")
    assert machine.memory_bytes == 7803336 * 1024
    assert (machine.power_mode, machine.gpu_max_mhz) == ("25W", 918.0)


def test_a_container_has_the_board_elsewhere(tmp_path, monkeypatch):
    root = board(tmp_path, ("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"))
    (root / "proc/meminfo").unlink()
    monkeypatch.setenv("EDGE_AWQ_METER_ROOT", str(root))
    machine = read_machine(query=lambda: (ORIN,))
    assert machine.is_tegra and machine.power_mode == "25W"
    assert machine.memory_bytes == read_machine(Path("/"), query=lambda: ()).memory_bytes  # as the container has it


@pytest.mark.parametrize("status", ["", "pmode:0007", "nonsense"])
def test_unknown_power_mode_is_none(tmp_path, status):
    root = board(tmp_path, ("nvidia,tegra234",), status=status)
    assert read_machine(root, query=lambda: ()).power_mode is None


@pytest.mark.parametrize(("name", "mode"), [("30W", "MODE_30W"), ("MODE_30W", "MODE_30W"), ("MAXN", "MAXN"),
                                            ("7W", None), (None, None)])
def test_modes_by_either_spelling(name, mode):
    assert mode_named(find_target("jetson-agx-orin-64gb"), name) == mode


def test_unknown_module_gets_a_profile_without_bandwidth(tmp_path):
    machine = read_machine(board(tmp_path, ("nvidia,p3701-0008", "nvidia,tegra234")), query=lambda: (ORIN,))
    target = detect_target(machine)
    assert (target.name, target.device.bandwidth_gb_s, target.device.unified_memory) == ("orin", None, True)
    assert "driver says" in target.description


def rtx(name="NVIDIA GeForce RTX 3060", capability=(8, 6)):
    return Gpu(name, capability, 28, 12288 << 20, False, 360.0, 3 << 20, 1777.0)


@pytest.mark.parametrize(("gpus", "expected"), [
    ((), "cpu"),
    ((rtx("NVIDIA GeForce RTX 4090"),), "rtx-4090"),
    ((rtx("NVIDIA GeForce RTX 4070 Laptop GPU"),), "rtx-4070-laptop"),
    ((rtx(),), "nvidia-geforce-rtx-3060"),
    ((rtx("NVIDIA GeForce GTX 1080", (6, 1)),), "cpu"),
    ((rtx("NVIDIA GeForce GTX 1080", (6, 1)), rtx("NVIDIA H200")), "h200"),
], ids=["none", "4090", "laptop", "unknown", "too-old", "second"])
def test_computers(tmp_path, gpus, expected):
    assert detect_target(read_machine(tmp_path, query=lambda: gpus)).name == expected


def test_profile_made_from_the_driver(tmp_path):
    device = detect_target(read_machine(tmp_path, query=lambda: (rtx(),))).device
    assert (device.compute_capability, device.sm_count, device.memory_mib) == ("8.6", 28, 12288)
    assert (device.bandwidth_gb_s, device.l2_mib, device.unified_memory) == (360.0, 3, False)


ATTRIBUTES = {13: 1777000, 16: 28, 18: 0, 36: 7501000, 37: 192, 38: 2359296, 75: 8, 76: 6}


class Driver:
    """libcuda's answers for one RTX 3060; ``broken`` names the call that fails."""

    def __init__(self, broken=None, count=1):
        self.broken, self.count = broken, count

    def __getattr__(self, name):
        return (lambda *_: 999) if name == self.broken else object.__getattribute__(self, "do_" + name)

    def do_cuInit(self, flags):
        return 0

    def do_cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def do_cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def do_cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA GeForce RTX 3060"
        return 0

    def do_cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = 12 << 30
        return 0

    def do_cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = ATTRIBUTES[which]
        return 0


def test_driver_is_asked():
    (gpu,) = query_gpus(Driver())
    assert (gpu.name, gpu.compute_capability, gpu.sm_count) == ("NVIDIA GeForce RTX 3060", (8, 6), 28)
    assert gpu.memory_bytes == 12 << 30
    assert gpu.bandwidth_gb_s == 360.0  # NVIDIA's figure for this card


@pytest.mark.parametrize("broken", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName",
                                    "cuDeviceTotalMem_v2"])
def test_driver_that_fails_means_no_gpu(broken):
    assert query_gpus(Driver(broken)) == ()
