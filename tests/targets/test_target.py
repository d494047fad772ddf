"""Profiles: those that ship, the user's own, and what is refused."""

import dataclasses

import pytest

from edge_awq.describe import describe_targets
from edge_awq.detect import Machine
from edge_awq.errors import EdgeAwqError
from edge_awq.gpus import Gpu
from edge_awq.target import QuantSpec, find_target, load_targets, own_profile_folders, profile_folder, read_target

JETSON = "jetson-orin-nano-8gb"
# ecosystem's table: name -> (compute capability, SMs, GB/s, L2 MiB, memory GB that the name promises)
DEVICES = {
    "jetson-agx-orin-64gb": ("8.7", 16, 204.8, 4, 64),
    "jetson-agx-orin-32gb": ("8.7", 14, 204.8, 4, 32),
    "jetson-agx-orin-devkit-32gb": ("8.7", 16, 204.8, 4, 32),
    "jetson-orin-nx-16gb": ("8.7", 8, 102.4, 2, 16),
    "jetson-orin-nx-8gb": ("8.7", 8, 102.4, 2, 8),
    "jetson-orin-nano-8gb": ("8.7", 8, 102.4, 2, 8),
    "jetson-orin-nano-4gb": ("8.7", 4, 51.2, 2, 4),
    "jetson-thor-t5000": ("11.0", 20, 273, 32, 128),
    "jetson-thor-t4000": ("11.0", 12, 273, None, 64),
    "rtx-4090": ("8.9", 128, 1008, 72, 24),
    "rtx-4070-laptop": ("8.9", 36, 256, 32, 8),
    "rtx-4060-laptop": ("8.9", 24, 256, 32, 8),
    "rtx-5090": ("12.0", 170, 1792, 96, 32),
    "rtx-5070-ti-laptop": ("12.0", 46, 672, 48, 12),
    "h200": ("9.0", 132, 4800, 50, 141),
}


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_AWQ_PROFILES", str(tmp_path))
    return tmp_path


def changed(folder, old, new, name=JETSON):
    text = (profile_folder() / f"{name}.toml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "own.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_device(name):
    device = find_target(name).device
    capability, sm_count, bandwidth_gb_s, l2_mib, memory_gb = DEVICES[name]
    assert (device.compute_capability, device.sm_count) == (capability, sm_count)
    assert (device.bandwidth_gb_s, device.l2_mib) == (bandwidth_gb_s, l2_mib)
    assert 0.85 * memory_gb < device.memory_mib / 1024 <= memory_gb


@pytest.mark.parametrize("target", load_targets(), ids=lambda target: target.name)
def test_profile_is_whole(target):
    assert (profile_folder() / f"{target.name}.toml").is_file()
    if target.device is None:
        return
    assert target.reserve and target.forecast and target.forecast.source
    device = target.device
    for mode in target.modes.values():
        assert (mode.gpu_mhz or 0) <= (device.gpu_mhz or float("inf"))
        assert (mode.bandwidth_gb_s or 0) <= device.bandwidth_gb_s
        assert (mode.sm_count or 0) <= device.sm_count


def test_every_match_rule_belongs_to_one_profile():
    rules = [rule for target in load_targets() for rule in (*target.match.modules, *target.match.gpus)]
    assert len(rules) == len(set(rules)) > 10


def test_own_profile_is_added(profiles):
    changed(profiles, f'"{JETSON}"', '"robot"')
    assert find_target("robot").device == find_target(JETSON).device


def test_own_profile_replaces_a_shipped_one(profiles):
    changed(profiles, "prefill_chunk = 512", "prefill_chunk = 128")
    assert find_target(JETSON).limits.prefill_chunk == 128


def test_profile_by_its_file(tmp_path):
    path = changed(tmp_path, f'"{JETSON}"', '"robot"')
    assert find_target(str(path)).name == "robot"


def test_profile_that_is_not_utf_8(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(EdgeAwqError, match=r"latin\.toml: not UTF-8"):
        find_target(str(tmp_path / "latin.toml"))


def test_own_profiles_lie_in_the_config_folder(monkeypatch):
    monkeypatch.delenv("EDGE_AWQ_PROFILES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/somebody/.config")
    assert [str(folder) for folder in own_profile_folders()] == ["/home/somebody/.config/edge-awq/profiles"]


def test_several_own_folders(monkeypatch):
    monkeypatch.setenv("EDGE_AWQ_PROFILES", "/one:/two")
    assert [str(folder) for folder in own_profile_folders()] == ["/one", "/two"]


@pytest.mark.parametrize(("old", "new", "words"), [
    ("memory_mib         = 7618", "memory_mb = 8000", ["own.toml: device", "memory_mb, memory_mib"]),
    ("memory_mib         = 7618", 'memory_mib = "8 GB"', ["own.toml: device: memory_mib = '8 GB'", "whole number"]),
    ("unified_memory     = true", "unified_memory = 1", ["unified_memory = 1", "true or false"]),
    ("watts   = 25", "watt = 25", ["own.toml: modes.25W", "watt"]),
    ('default_mode       = "25W"', 'default_mode = "30W"', ["30W", "its modes"]),
    ("efficiency = 0.79", "efficiency = 79", ["79", "share"]),
    ("group_size = 128", "group_size = 32", ["group_size = 32", "128, 64"]),
    ('modules = ["p3767-0003", "p3767-0005"]', 'modules = "p3767-0005"', ["modules", "list"]),
    ("[limits]", "[limits", ["not valid TOML", "own.toml"]),
], ids=["key", "type", "bool", "mode-key", "default-mode", "share", "group", "list", "syntax"])
def test_refused(tmp_path, old, new, words):
    with pytest.raises(EdgeAwqError) as caught:
        read_target(changed(tmp_path, old, new))
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(word in text for word in words), text


@pytest.mark.parametrize(("name", "word"),
                         [("jetson-nano", "jetson-orin-nano-8gb"), ("nowhere.toml", "edge-awq targets")])
def test_unknown(name, word):
    with pytest.raises(EdgeAwqError, match=name) as caught:
        find_target(name)
    assert word in caught.value.hint


def test_this_machine_is_marked_in_the_list():
    machine = Machine("NVIDIA Jetson", ("nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"), (), 1 << 36, "30W", None)
    lines = list(describe_targets(machine))
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["jetson-agx-orin-64gb", "this"]
    assert lines[-1] == "* this machine, NVIDIA Jetson, power mode MODE_30W: --target auto"
    assert all(any(name in line for line in lines) for name in DEVICES)


def test_unknown_gpu_is_listed_too():
    gpu = Gpu("NVIDIA RTX A2000", (8, 6), 26, 6 << 30, False, 288.0, 3 << 20, 1200.0)
    lines = list(describe_targets(Machine(None, (), (gpu,), 1 << 34, None, None)))
    assert any(line.startswith("*   nvidia-rtx-a2000") and "288" in line for line in lines)


def test_targets_are_values():
    target = find_target("cpu")
    assert dataclasses.asdict(target)["quant"] == dataclasses.asdict(QuantSpec(128, False, 8))
