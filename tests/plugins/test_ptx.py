"""The kernels' PTX, as NVRTC makes it and a newer GPU would compile it, executed by a machine of our own (ptx/).

The machine knows nothing of the kernels' source and its bodies for a CPU: it has each instruction's meaning from the
PTX ISA. So what the gpu lane asks of a GPU is asked of the PTX: inline assembly, fragments, copies, barriers, launches.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from library_harness import (
    DRIVER_VARIABLE,
    HERE,
    build_kernels,
    built_ptx_driver,
    built_ptx_library,
    folder,
    ptx_texts,
)

from edge_awq.plugins import OVERRIDE

LANE = HERE.parent / "gpu" / "test_kernels.py"
FEW = "softcap and 37 or test_integer_matmul and 17x192 or sample and 5003 or norms or embedding or everything"

COMMENT = re.compile("//.*")


@dataclass(frozen=True)
class Machine:
    """The machine, and a plugin library with PTX for it.

    Attributes:
        texts: the PTX that is in the library.
        is_dependent: launches may begin while those before end.
    """

    driver: Path
    library: Path
    texts: tuple[str, ...]
    is_dependent: bool

    def run(self, select="", edit=None, settings=""):
        """The gpu lane's tests, perhaps with PTX that is edited, or with settings of the driver.

        Returns:
            How it went, and the kernels that ran.
        """
        where = Path(tempfile.mkdtemp(dir=folder().name))
        library = self.library if edit is None else self.with_edited(edit, where / self.library.name)
        environment = os.environ | {DRIVER_VARIABLE: str(self.driver), OVERRIDE: str(library),
                                    "EDGE_AWQ_REQUIRE": "gpu", "EDGE_AWQ_PDL": str(int(self.is_dependent)),
                                    "EDGE_AWQ_PTX_LOG": str(where / "ran"), "EDGE_AWQ_FAKE_SETTINGS": settings}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", LANE]
        done = subprocess.run([*command, *(["-k", select] if select else [])], env=environment, capture_output=True,
                              text=True, check=False)
        log = where / "ran"
        return done, set(log.read_text().split()) if log.exists() else set()

    def with_edited(self, edit, path):
        """A copy of the library; what replaces a text has its length, as comments make room."""
        content = self.library.read_bytes()
        for text in self.texts:
            new = COMMENT.sub("", edit(text)).ljust(len(text))
            assert content.count(text.encode()) == 1 and len(new) == len(text)
            content = content.replace(text.encode(), new.encode())
        path.write_bytes(content)
        return path


def machine_for(architecture):
    """With all kernels; ``compute_80`` has no dependent launches."""
    texts = tuple(ptx_texts(architecture).values())
    is_dependent = architecture == build_kernels.PTX_ARCHITECTURE
    return Machine(built_ptx_driver(), built_ptx_library(architecture), texts, is_dependent)


@pytest.fixture(scope="module")
def machine():
    return machine_for(build_kernels.PTX_ARCHITECTURE)


def test_the_gpu_lane_passes_and_runs_every_kernel(machine):
    done, ran = machine.run()
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout
    assert ran == {name for text in machine.texts for name in re.findall(r"\.entry (\w+)", text)}


def test_ptx_for_the_oldest_gpus():
    """Warps and blocks come in another order, and there are many multiprocessors."""
    done, ran = machine_for("compute_80").run(FEW, settings="schedule=3 multiprocessors=108")
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(ran) > 20


def edited(pattern, replacement, count=0):
    def edit(text):
        return re.sub(pattern, replacement, text, count=count)
    return edit


TILE = "test_integer_matmul and 17x192 and 4-64 and 33"
MUTATIONS = {  # what is broken: tests that must see it, the edit, what they say
    "copies are not waited for": (TILE, edited(r"cp\.async\.wait_group \d+;", ""), "a copy has yet to land"),
    "barriers are gone": (TILE, edited(r"bar\.sync[^;]*;", ""), "shared memory"),
    "a product's operands are swapped": (
        TILE, edited(r"(mma\.sync\S+ \{[^}]*\}, \{)(%r\d+), ?(%r\d+)", r"\1\3,\2"), "AssertionError"),
    "the previous kernel is not waited for": (
        "attention_of_a_prompt and 2x2x64-37", edited(r"griddepcontrol\.wait;", ""), "griddepcontrol.wait"),
    "vectors are not aligned": (
        "norms", edited(r"(ld\.global\S*v4\S+ \t?\{[^}]*\}, \[%rd\d+)", r"\1+4"), "is not a multiple of 16"),
    "an instruction is not known": ("argmax", edited(r"\tadd\.s32", "\tadd.sat.s32"), "not known: add.sat.s32"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_broken_is_seen(machine, name):
    select, edit, words = MUTATIONS[name]
    assert any(edit(text) != text for text in machine.texts)
    done, _ = machine.run(select, edit)
    assert done.returncode == 1 and words in done.stdout, done.stdout[-2000:]
