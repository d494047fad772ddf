"""Python and what a device installs, for aarch64, run here by qemu-user.

Python comes from Debian's packages, which apt-get unpacks nowhere: it only downloads, with folders of its own, so that
neither root nor a change to this system is needed. The wheels are those that ``pip install .`` takes on a device. Both
are kept in the folder that $EDGE_AWQ_REGISTRIES names.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from wheels import kept_folder, made_once, unpacked

TOP = Path(__file__).resolve().parent.parent
QEMU = "qemu-aarch64"
ORIN, NEWEST = "cortex-a76", "max,pauth-impdef=on"  # with dot products as an Orin's A78AE; with i8mm, bf16 and SVE too
OLDER = "onnxruntime==1.23.2"  # the last for Python 3.10, so that of JetPack 6
PLATFORMS = [option for tag in ("2014", "_2_17", "_2_26", "_2_27", "_2_28")
             for option in ("--platform", f"manylinux{tag}_aarch64")]
# What a Jetson's kernel says. An emulator older than 8.1 shows this machine's own, of which onnxruntime makes nothing.
CPU_INFO = """processor\t: {}
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""


@dataclass(frozen=True)
class Emulated:
    """``python`` is a command that behaves as an aarch64 machine's own Python.

    Attributes:
        sites: the folders that its packages lie in, first found first taken.
        wheels: pip's options for more of them.
    """

    python: Path
    sites: tuple[Path, ...]
    wheels: tuple[str, ...]

    def run(self, *arguments: object, stdin: str | None = None, cpu: str = ORIN) -> subprocess.CompletedProcess[str]:
        """Run it to its end, in the top folder of this repository."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, (TOP, *self.sites))), "QEMU_CPU": cpu,
                        "PYTHONPYCACHEPREFIX": str(self.python.parent / "compiled")}
        return subprocess.run([self.python, *map(str, arguments)], input=stdin, env=environment, cwd=TOP, text=True,
                              capture_output=True, check=False, timeout=300)


def emulated(folder: Path) -> Emulated:
    """The machine, with its command in ``folder``; skips the test where something for it is missing."""
    emulator = shutil.which(QEMU) or shutil.which(f"{QEMU}-static")
    if emulator is None:
        pytest.skip(f"no {QEMU}: apt-get install qemu-user")
    known = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, check=False).stdout.split()
    if ORIN not in known:
        pytest.skip(f"{emulator} does not know {ORIN}: QEMU 7.1 is the first that does")
    system = _system()
    [binary] = [path for path in system.glob("usr/bin/python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    version = binary.name.removeprefix("python")
    needed = [need for need in importlib.metadata.requires("edge-awq") or () if "extra ==" not in need]
    wheels = (*PLATFORMS, "--python-version", version)
    site = unpacked(f"aarch64-{version}", needed, "60 MB", wheels)
    command = folder / "python"  # as "sys.executable" it starts further processes
    command.write_text(f"#!/bin/sh\nPYTHONHOME={system}/usr exec {emulator} -0 {command} -L {system} {binary} \"$@\"\n")
    command.chmod(0o755)
    return Emulated(command, (site,), wheels)


def with_older_onnxruntime(machine: Emulated) -> Emulated:
    """The same machine with OLDER in place of the newest onnxruntime."""
    wheels = unpacked(f"{machine.sites[0].name}-{OLDER}", [OLDER], "20 MB", [*machine.wheels, "--no-deps"])
    return replace(machine, sites=(wheels, *machine.sites))


def _system() -> Path:
    """The folder with Debian's Python for aarch64 and its libraries."""
    return made_once(kept_folder("Python for aarch64", "25 MB") / "aarch64-system", _make_system)


def _make_system(partial: Path) -> None:
    for archive in _packages(partial / "apt"):
        subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
    shutil.rmtree(partial / "apt")
    if not (partial / "lib").exists():  # since Debian 13 no package has it
        (partial / "lib").symlink_to("usr/lib")
    (partial / "sys/class/drm/card0/device").mkdir(parents=True)  # without "vendor": no PCI device
    (partial / "proc").mkdir(exist_ok=True)
    cpus = range(os.cpu_count() or 1)
    (partial / "proc/cpuinfo").write_text("".join(map(CPU_INFO.format, cpus)))


def _packages(folder: Path) -> list[Path]:
    """Debian's packages that make a Python, downloaded into ``folder``."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no Python for aarch64: no apt-get here to download Debian's")
    for part in ("lists", "cache/archives"):
        (folder / part / "partial").mkdir(parents=True)
    settings = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State::lists": folder / "lists",
                "Dir::Cache": folder / "cache", "Dir::State::status": "/dev/null", "Debug::NoLocking": "1",
                "APT::Sandbox::User": ""}
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    install = ["install", "-y", "--download-only", "--no-install-recommends", "python3", "libstdc++6"]
    for command in (["update"], install):
        done = subprocess.run([*apt, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no Python for aarch64 in apt's sources: {done.stderr.strip()[-300:]}")
    return sorted((folder / "cache/archives").glob("*.deb"))
