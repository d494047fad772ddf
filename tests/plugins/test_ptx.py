"""The kernels' PTX, as NVRTC makes it and a newer GPU would compile it, executed by a machine of our own (ptx/).

The machine knows nothing of the kernels' source and its bodies for a CPU: it has each instruction's meaning from the
PTX ISA. So what the gpu lane asks of a GPU is asked of the PTX: inline assembly, fragments, copies, barriers, launches.
"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import KernelError, guarded
from library_harness import (
    DRIVER_VARIABLE,
    HERE,
    Device,
    build_kernels,
    built_ptx_driver,
    built_ptx_library,
    folder,
    ptx_texts,
)
from matmul_harness import pack
from test_sample import OFF, SETTINGS

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


# ---- the same library over fibers: the same bits where arithmetic is exact ----

PLANS = {"int4_matmul": "int4_(gemv|matmul)", "int8_matmul": "int8_(gemv|matmul)", "fp16_matmul": "fp16_(gemv|matmul)",
         "decode_attention": "decode_attention", "append_kv": "append_kv", "prefill_attention": "prefill_attention",
         "embedding": "embedding", "rms_norm": "rms_norm", "layer_norm": "layer_norm", "argmax": "argmax",
         "sample": "sample", "read": "read_sum"}


@pytest.fixture(scope="module")
def devices():
    made = Device.make_ptx(), Device.make()
    for device in made:
        device.reset()
    return made


def assert_same_bits(devices, op, attributes, inputs, shape, dtype):
    results = []
    for device in devices:
        output = guarded(np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -1, dtype))
        handle = device.create(op, **attributes)
        handle.run([guarded(np.ascontiguousarray(each)) for each in inputs], [output])
        handle.close()
        results.append(output)
    is_unwritten = np.isnan(results[0]) if np.issubdtype(dtype, np.floating) else results[0] == -1
    assert not is_unwritten.any()
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 40, 100])
def test_sums_of_whole_numbers(devices, rng, bits, rows):
    """Below 2^24: no order of additions, and no cut of a tensor core, can change them."""
    q, x = rng.integers(0, 1 << min(bits, 8), (40, 256)).astype(np.uint8), rng.integers(-4, 5, (rows, 256))
    inputs, attributes = [x.astype(np.float16), q.astype(np.float16)], {"K": 256, "N": 40, "fp32_output": 1}
    if bits < 16:
        packed = pack if bits == 4 else np.asarray
        zeros = packed(rng.integers(0, 1 << bits, (40, 4)).astype(np.uint8))
        inputs = [inputs[0], packed(q), np.full((40, 4), 0.5, np.float16), zeros]
        attributes["group_size"] = 64
    op = "Fp16MatMul" if bits == 16 else f"Int{bits}MatMul"
    assert_same_bits(devices, op, attributes, inputs, (rows, 40), np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_halves_of_weights(devices, rng, bits):
    packed = pack if bits == 4 else np.asarray
    q, zeros = (packed(rng.integers(0, 1 << bits, (30, size)).astype(np.uint8)) for size in (192, 4))
    scales = np.exp(rng.normal(0, 2, (30, 3))).astype(np.float16)
    inputs = [rng.permutation(30)[None], q, scales, zeros[:, :2 if bits == 4 else 3]]
    attributes = {"vocabulary": 30, "size": 192, "bits": bits, "group_size": 64}
    assert_same_bits(devices, "TokenEmbedding", attributes, inputs, (1, 30, 192), np.float16)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_draws_of_whole_scores(devices, rng, settings):
    """Scores that are equal or far apart: no approximation decides."""
    values = np.array([(OFF | settings)[name] for name in OFF], np.float32)
    inputs = [rng.integers(0, 9, (4, 700)).astype(np.float32), values, np.array([7]), np.array([3])]
    assert_same_bits(devices, "SampleToken", {}, inputs, (4,), np.int64)


@pytest.mark.parametrize("plan", PLANS)
def test_parameters_are_as_large_as_the_host_thinks(devices, plan):
    class Nothing(ctypes.Structure):
        _fields_ = (("byte", ctypes.c_char),)

    with pytest.raises(KernelError, match=r"1 bytes of arguments, not \d+") as refused:
        devices[0].launch(plan, Nothing())
    texts = "".join(ptx_texts(build_kernels.PTX_ARCHITECTURE).values())
    found = re.findall(r"\.entry (\w+)\(\s*\.param \.align 8 \.b8 \w+\[(\d+)\]\s*\)", texts)
    assert all(any(re.match(pattern, name) for pattern in PLANS.values()) for name, _ in found)
    sizes = {int(size) for name, size in found if re.match(PLANS[plan], name)}
    assert sizes == {int(str(refused.value).split()[-1])}
