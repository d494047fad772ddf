"""INA3221, RAPL and battery over trees of files, on a clock that moves when told."""

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from trees import BOARDS, SCOPES, TOTALS, Board, add_battery, add_rapl, write

from edge_awq.detect import read_machine
from edge_awq.errors import EdgeAwqError
from edge_awq.power import battery, ina3221, rapl
from edge_awq.power.base import MeterChoice
from edge_awq.power.battery import Battery
from edge_awq.power.choose import candidates
from edge_awq.power.energy import hole_s, phase_energy
from edge_awq.power.ina3221 import Ina3221
from edge_awq.power.rapl import UDEV_RULE, Rapl
from edge_awq.power.sysfs import is_tegra
from edge_awq.runner.board import clocks, describe_board

S = 1_000_000_000


@pytest.fixture
def clock(monkeypatch):
    """All three meters' clock, 100 s after boot."""
    moved = SimpleNamespace(now_ns=100 * S)
    for module in (battery, ina3221, rapl):
        monkeypatch.setattr(module.time, "monotonic_ns", lambda: moved.now_ns)
    return moved


def choice(root, **changes):
    return MeterChoice(root=str(root), **changes)


@pytest.mark.parametrize("name", BOARDS)
def test_a_boards_rails_and_its_total(tmp_path, name):
    board = Board(tmp_path, name)
    board.set_total_w(15)
    meter = Ina3221(choice(tmp_path))
    source = meter.open()
    (reading,) = meter.read()
    assert not any(label.startswith(("NC", "sum")) for label in source.rails)
    assert (source.total.rails, source.total.scope) == (TOTALS[name], SCOPES[name])
    assert source.total_w(reading) == pytest.approx(15)
    by_rail = dict(zip(source.rails, reading.rails_mw, strict=True))
    for rail in set(source.rails) - set(TOTALS[name]):
        assert by_rail[rail] == (18000 if rail == "VIN" else 1000)
    assert source.notes == () and source.counter_min_s is None


def test_thor_has_the_boards_input_as_a_second_total(tmp_path):
    Board(tmp_path, "thor")
    (other,) = Ina3221(choice(tmp_path)).open().other_totals
    assert (other.scope, other.rails) == ("board", ("VIN",))


@pytest.mark.parametrize("name", BOARDS)
def test_a_played_trace_comes_back_on_the_samples_own_clock(tmp_path, clock, name):
    """5 W idle, 20 W for a 0.4 s prefill, 12 W for 3 s of decode, sampled every 0.1 s: 1 % and, repeated, 8 %."""
    board, meter = Board(tmp_path, name), Ina3221(choice(tmp_path))
    board.set_total_w(5)
    source, readings, prefill, decode = meter.open(), [], [], []
    for tick in range(8 * 50):
        at = tick % 50  # tenths of a second in this round
        if at == 10:
            prefill.append((clock.now_ns, clock.now_ns + 4 * S // 10))
            decode.append((prefill[-1][1], prefill[-1][1] + 3 * S))
        if at in (10, 14, 44):
            board.set_total_w({10: 20, 14: 12, 44: 5}[at])
        clock.now_ns += (tick * 37 % 100) * S // 1000  # the meter's beat drifts against the load's
        readings += meter.read()
        clock.now_ns += S // 10 - (tick * 37 % 100) * S // 1000
    energies = [phase_energy(source, readings, spans).energy_j for spans in (prefill, decode)]
    assert energies[0] == pytest.approx(8 * 20 * 0.4, rel=0.08)
    assert energies[1] == pytest.approx(8 * 12 * 3, rel=0.01)


@pytest.mark.parametrize("kind", ["trailing", "windows"])
def test_monitors_that_average_take_nothing_from_before_a_phase(tmp_path, clock, kind):
    """5 W, then 20 W for 6 s, through a chip that shows means over 0.43 s, as Jetson Linux sets it: 1 %, not 7 %."""
    board, shown_w, window_w = Board(tmp_path, "agx-orin"), 5.0, []
    for chip in (tmp_path / "sys/class/hwmon").iterdir():
        write(chip / "update_interval", "430")
    meter = Ina3221(choice(tmp_path))
    board.set_total_w(5)
    source, readings = meter.open(), []
    for tick in range(1200):  # hundredths of a second
        power_w = 20 if 300 <= tick < 900 else 5
        window_w = [*window_w, power_w] if len(window_w) < 43 else [power_w]
        if kind == "trailing":
            shown_w += (power_w - shown_w) / 43
        elif len(window_w) == 43:
            shown_w = sum(window_w) / 43
        board.set_total_w(shown_w)
        clock.now_ns += S // 100
        if tick % 10 == 7:
            readings += meter.read()
    energy = phase_energy(source, readings, [(103 * S, 109 * S)])
    assert energy.energy_j == pytest.approx(20 * 6, rel=0.01)
    assert "the first 1.3 s of a phase" in source.notes[0]
    assert phase_energy(source, readings, [(103 * S, 104 * S)]).problem == "phase_too_short"


def test_a_monitor_whose_reading_takes_long_is_no_lost_one(tmp_path, monkeypatch):
    """The kernel may wait for a conversion in each of its reads."""
    Board(tmp_path, "orin-nx")
    now_s = itertools.count(100.0, 2.6)
    monkeypatch.setattr(ina3221.time, "monotonic", lambda: next(now_s))
    source = Ina3221(choice(tmp_path)).open()
    assert source.interval_s == pytest.approx(2.6) and hole_s(source) > 2.6


def test_unknown_rails_have_no_total_and_say_so(tmp_path):
    folder = tmp_path / "sys/class/hwmon/hwmon3"
    for name, text in {"name": "ina3221", "in1_label": "VDD_ODD", "in1_input": "5000", "curr1_input": "200"}.items():
        write(folder / name, text)
    meter = Ina3221(choice(tmp_path))
    source = meter.open()
    (reading,) = meter.read()
    assert reading.rails_mw == (1000,)
    assert source.total.scope is None and source.total_w(reading) is None
    assert "VDD_ODD" in source.notes[0]


def test_a_sensor_that_stops_answering_is_missing_not_zero(tmp_path):
    board, meter = Board(tmp_path, "orin-nx"), Ina3221(choice(tmp_path))
    source = meter.open()
    (board.i2c / "1-0040/hwmon/hwmon0/curr1_input").unlink()
    (reading,) = meter.read()
    assert reading.rails_mw[0] is None and source.total_w(reading) is None


def test_clocks_and_temperatures_are_read_beside_power(tmp_path):
    Board(tmp_path, "orin-nx")
    write(tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq", "918000000")
    zones = {"gpu-thermal": "51250", "tj-thermal": "53000", "cv0-thermal": "-256000"}
    for index, (zone, value) in enumerate(zones.items()):
        write(tmp_path / f"sys/class/thermal/thermal_zone{index}/type", zone)
        write(tmp_path / f"sys/class/thermal/thermal_zone{index}/temp", value)
    meter = Ina3221(choice(tmp_path))
    meter.open()
    (reading,) = meter.read()
    assert (reading.gpu_mhz, reading.temp_gpu_c, reading.temp_tj_c) == (918, 51.25, 53)


def test_a_thors_clocks_are_those_of_its_own_devfreq_entries(tmp_path):
    Board(tmp_path, "thor")
    for name, mhz in {"bwmgr": 4266, "gpu-gpc-0": 1386, "gpu-nvd-0": 1692}.items():
        write(tmp_path / f"sys/class/devfreq/{name}/cur_freq", str(mhz * 10**6))
        write(tmp_path / f"sys/class/devfreq/{name}/max_freq", str(mhz * 10**6))
    meter = Ina3221(choice(tmp_path))
    meter.open()
    (reading,) = meter.read()
    assert (reading.gpu_mhz, reading.emc_mhz, clocks(tmp_path)["emc_max_mhz"]) == (1386, 4266, 4266)
    assert read_machine(tmp_path, query=lambda: ()).gpu_max_mhz == 1386


@pytest.mark.parametrize(("cap", "root_only", "limit"), [("2133000000", None, 2133), ("0", None, None),
                                                         ("2133000000", "3199000000", 2133), ("0", "3199000000", 3199)])
def test_the_modes_cap_of_the_memory_clock_needs_no_privilege(tmp_path, cap, root_only, limit):
    write(tmp_path / "sys/kernel/nvpmodel_clk_cap/emc", cap)
    if root_only:
        write(tmp_path / "sys/kernel/debug/bpmp/debug/clk/emc/max_rate", root_only)
    assert clocks(tmp_path)["emc_max_mhz"] == limit


@pytest.mark.parametrize(("release", "l4t", "jetpack"), [
    ("R36 (release), REVISION: 3.0", "36.3.0", "6.0"), ("R36 (release), REVISION: 5.0", "36.5.0", "6.2.2"),
    ("R38 (release), REVISION: 2.1", "38.2.1", "7.0"), ("R39 (release), REVISION: 2.0", "39.2.0", "7.2"),
    ("R35 (release), REVISION: 4.1", "35.4.1", None)])
def test_a_release_of_jetson_linux_names_its_jetpack(tmp_path, release, l4t, jetpack):
    write(tmp_path / "etc/nv_tegra_release", f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64")
    board = describe_board(tmp_path)
    assert (board["l4t"], board["jetpack"]) == (l4t, jetpack)


def test_rapl_counts_packages_and_survives_the_wrap_around(tmp_path, clock):
    range_uj = 1_000_000_000
    folder = add_rapl(tmp_path, {"package-0": 0, "package-1": range_uj - 12_500_000}, range_uj)
    meter = Rapl(choice(tmp_path))
    source, readings = meter.open(), []
    assert source.rails == ("package-0", "package-1") and source.total.scope == "cpu-package"
    for tenth in range(61):  # 30 W and 20 W
        write(folder / "intel-rapl:0/energy_uj", str(3_000_000 * tenth))
        write(folder / "intel-rapl:1/energy_uj", str((range_uj - 12_500_000 + 2_000_000 * tenth) % range_uj))
        readings += meter.read()
        clock.now_ns += S // 10
    energy = phase_energy(source, readings, [(100 * S + S // 4, 100 * S + 5 * S)])
    assert energy.method == "counter"
    assert energy.energy_j == pytest.approx(50 * 4.75)
    assert energy.rails_j == pytest.approx({"package-0": 30 * 4.75, "package-1": 20 * 4.75})


def test_a_counter_that_began_anew_is_no_wrap_around(tmp_path, clock):
    """A machine that slept: the clock stood still, and the counter is near 0 again."""
    folder = add_rapl(tmp_path, {"package-0": 200_000_000_000})
    meter = Rapl(choice(tmp_path))
    meter.open()
    for energy_uj, power_mw in ((200_002_000_000, 20_000), (1_000_000, None)):
        clock.now_ns += S // 10
        write(folder / "intel-rapl:0/energy_uj", str(energy_uj))
        if power_mw is not None:
            assert meter.read()[0].rails_mw == (power_mw,)
    with pytest.raises(EdgeAwqError, match="began anew"):
        meter.read()


def test_a_failed_read_of_a_counter_is_missing_and_loses_nothing(tmp_path, clock):
    folder = add_rapl(tmp_path, {"package-0": 0})
    meter = Rapl(choice(tmp_path))
    meter.open()
    counted = []
    for tenth in range(1, 6):
        text = "" if tenth == 3 else str(3_000_000 * tenth)
        clock.now_ns += S // 10
        write(folder / "intel-rapl:0/energy_uj", text)
        counted += meter.read()
    assert [reading.counter_j for reading in counted] == pytest.approx([3, 6, None, 12, 15])
    assert [reading.rails_mw[0] for reading in counted] == pytest.approx([30e3, 30e3, None, 30e3, 30e3])


def test_a_counter_that_stands_still_is_missing_not_zero(tmp_path, clock):
    add_rapl(tmp_path, {"package-0": 0})
    meter = Rapl(choice(tmp_path))
    source, readings = meter.open(), []
    for _ in range(30):
        clock.now_ns += S // 10
        readings += meter.read()
    assert {reading.counter_j for reading in readings} == {None}
    assert phase_energy(source, readings, [(101 * S, 102 * S)]).energy_j is None


def test_a_counter_that_goes_back_without_a_known_range_is_missing(tmp_path, clock):
    folder = add_rapl(tmp_path, {"package-0": 9_000_000})
    (folder / "intel-rapl:0/max_energy_range_uj").unlink()
    meter = Rapl(choice(tmp_path))
    meter.open()
    clock.now_ns += S
    write(folder / "intel-rapl:0/energy_uj", "1000000")
    (reading,) = meter.read()
    assert reading.counter_j is None and reading.rails_mw == (None,)


def test_rapl_without_permission_prints_the_udev_rule(tmp_path, monkeypatch):
    add_rapl(tmp_path, {"package-0": 0})
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(EdgeAwqError, match="energy_uj may not be read") as caught:
        Rapl(choice(tmp_path)).open()
    assert UDEV_RULE in caught.value.hint


def test_rapl_is_never_polled_slower_than_it_can_wrap(tmp_path):
    add_rapl(tmp_path, {"package-0": 0})
    assert Rapl(choice(tmp_path, interval_s=30)).open().interval_s == 1


@pytest.mark.parametrize("values", [{"power_now": 9_000_000}, {"current_now": -750_000, "voltage_now": 12_000_000}],
                         ids=["power", "current"])
def test_a_battery_that_is_emptied(tmp_path, values):
    folder = add_battery(tmp_path, **values)
    meter = Battery(choice(tmp_path))
    source = meter.open()
    (reading,) = meter.read()
    assert (source.total.scope, source.interval_s) == ("system-battery", 1.0)
    assert source.total_w(reading) == pytest.approx(9)
    write(folder / "status", "Charging")
    (reading,) = meter.read()
    assert source.total_w(reading) is None


def test_a_charging_battery_and_a_mouses_are_refused(tmp_path):
    add_battery(tmp_path, "BAT0", "Charging", power_now=9_000_000)
    add_battery(tmp_path, "mouse", scope="Device")
    with pytest.raises(EdgeAwqError, match=r"does not run on it \(BAT0 Charging\)"):
        Battery(choice(tmp_path)).open()


@pytest.mark.parametrize("kind, words", [
    (Ina3221, "no power monitor"), (Rapl, "no energy counter"), (Battery, "none in"),
])
def test_a_machine_without_one_is_one_clear_error(tmp_path, kind, words):
    with pytest.raises(EdgeAwqError, match=words) as caught:
        kind(choice(tmp_path)).open()
    assert caught.value.hint


def test_the_platform_decides_what_auto_tries(tmp_path):
    assert candidates(choice(tmp_path)) == ("nvml",)
    assert candidates(choice(tmp_path, device="cpu")) == ("rapl", "battery")
    assert not is_tegra(tmp_path)
    write(tmp_path / "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    assert is_tegra(tmp_path)
    for device in ("gpu", "cpu"):
        assert candidates(choice(tmp_path, device=device)) == ("jtop", "ina3221")
    assert candidates(choice(tmp_path, name="rapl")) == ("rapl",)
    assert candidates(choice(tmp_path, name="none")) == ()
    with pytest.raises(EdgeAwqError, match="wattmeter") as caught:
        candidates(choice(tmp_path, name="wattmeter"))
    assert "jtop" in caught.value.hint


def test_the_release_file_alone_makes_a_jetson(tmp_path):
    write(tmp_path / "etc/nv_tegra_release", "# R36")
    assert is_tegra(Path(tmp_path))


def test_a_battery_that_tells_no_power_takes_nothing_from_the_others(tmp_path, clock):
    add_battery(tmp_path, "BAT0", power_now=12_000_000)
    add_battery(tmp_path, "BAT1", status="Unknown", present=0)
    meter = Battery(choice(tmp_path))
    source = meter.open()
    (reading,) = meter.read()
    assert source.rails == ("BAT0",) and source.total_w(reading) == 12
    (tmp_path / "sys/class/power_supply/BAT0/power_now").unlink()
    with pytest.raises(EdgeAwqError, match="tells its power"):
        meter.open()
