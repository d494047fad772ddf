"""The kernels compile for every GPU within limits of registers and instructions, counted without one."""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import sass
from kernel_harness import PLUGINS, build_kernels, need_compiler

from edge_awq.plan.speed import INSTRUCTIONS_PER_WEIGHT

REGISTERS_PER_SM, REGISTERS_PER_THREAD = 65536, 255

needs_nvrtc = pytest.mark.skipif(
    build_kernels.Nvrtc.find() is None, reason=f"no NVRTC: pip install {build_kernels.NVRTC_REQUIREMENT}")
needs_disassembler = pytest.mark.skipif(sass.tool() is None, reason=f"no disassembler: pip install {sass.REQUIREMENTS}")


@dataclass(frozen=True)
class Limits:
    """What a kernel may use; the same on every architecture.

    Attributes:
        threads: of a block.
        blocks: that shall fit a multiprocessor at once, by their registers.
        lane_values: weights (or values of the cache) in one 16-byte load.
        instructions: per such value, in the loop.
        streamed: the width of their loads, the only one in the loop beside ``other_loads``.
        other_loads: widths of loads beside those: activations, scales, zero points, bias.
        cold_loads: widths of loads outside the loop.
    """

    threads: int
    blocks: int
    lane_values: int
    instructions: float
    streamed: str = "128.CONSTANT"
    other_loads: frozenset[str] = frozenset({"128"})
    cold_loads: frozenset[str] = frozenset({"U16", "32"})


INT_LOADS = frozenset({"128", "U16.CONSTANT", "U8.CONSTANT"})
SHARED = {"other_loads": INT_LOADS - {"128"}, "cold_loads": frozenset({"128", "U16", "32"})}  # x is in shared memory
CACHE = {"lane_values": 8, "instructions": 4.0, "streamed": "128", "other_loads": frozenset(),
         "cold_loads": frozenset({"U16", "32", "64"})}
ADJUSTED = CACHE | {"instructions": 4.5}  # the cap is jumped over where there is none
BYTES = CACHE | {"lane_values": 16, "instructions": 3.9, "other_loads": frozenset({"32"})}  # their scales
ADJUSTED_BYTES = BYTES | {"instructions": 4.3}
KERNELS = {
    "int4_gemv_g128": Limits(256, 2, 32, INSTRUCTIONS_PER_WEIGHT, **SHARED),
    "int4_gemv_g64_rows4": Limits(256, 2, 32, INSTRUCTIONS_PER_WEIGHT, **SHARED),
    "int4_gemv_g64_rows8": Limits(256, 2, 32, 2.3, **SHARED),
    "int4_gemv_g128_long": Limits(256, 2, 32, 2.1, other_loads=INT_LOADS),
    "int4_gemv_g64_rows4_long": Limits(256, 2, 32, 2.1, other_loads=INT_LOADS),
    "int4_gemv_g64_rows8_long": Limits(256, 2, 32, 3.1, other_loads=INT_LOADS),
    "int8_gemv": Limits(256, 3, 16, 2.35, other_loads=INT_LOADS),
    "int8_gemv_normed": Limits(256, 2, 16, 2.35, **SHARED),
    "fp16_gemv": Limits(256, 2, 8, 1.4),
    "fp16_gemv_normed": Limits(256, 2, 8, 1.4, **SHARED | {"other_loads": frozenset()}),
    **{f"decode_attention_{size}": Limits(288, 1, **CACHE) for size in (64, 80, 96, 112, 128)},
    "decode_attention_256": Limits(128, 1, **CACHE),
    **{f"decode_attention_{size}_adjusted": Limits(288, 1, **ADJUSTED) for size in (64, 80, 96, 112, 128)},
    "decode_attention_256_adjusted": Limits(128, 1, **ADJUSTED),
    **{f"decode_attention_{size}_kv8": Limits(288, 1, **BYTES) for size in (64, 80, 96, 112, 128)},
    "decode_attention_256_kv8": Limits(128, 2, **BYTES),
    **{f"decode_attention_{size}_adjusted_kv8": Limits(288, 1, **ADJUSTED_BYTES) for size in (64, 80, 96, 112, 128)},
    "decode_attention_256_adjusted_kv8": Limits(128, 2, **ADJUSTED_BYTES),
}


@dataclass(frozen=True)
class TileLimits:
    """What a kernel of common/tile.h may use; the same on every architecture.

    Attributes:
        threads: of a block.
        blocks: that shall fit a multiprocessor at once, by their registers.
        products: of the tensor cores, per warp and stage: its 32 x 64 weights times its rows of x.
        copies: of 16 bytes, per thread and stage.
        instructions: per weight of a lane, of which there are 64 in a stage, whatever the number of rows.
    """

    threads: int
    blocks: int
    products: int
    copies: int
    instructions: float


TILES = {
    "int4_matmul_16": TileLimits(256, 2, 16, 3, 4.0),
    "int4_matmul_32": TileLimits(256, 1, 32, 4, 4.6),
    "int4_matmul_64": TileLimits(128, 2, 64, 6, 6.4),
    "int4_matmul_128": TileLimits(256, 1, 64, 5, 6.4),
    "int8_matmul_16": TileLimits(256, 2, 16, 5, 3.5),
    "int8_matmul_32": TileLimits(256, 1, 32, 6, 4.1),
    "int8_matmul_64": TileLimits(128, 2, 64, 8, 5.4),
    "fp16_matmul_16": TileLimits(128, 4, 16, 9, 2.0),
    "fp16_matmul_32": TileLimits(128, 3, 32, 10, 2.4),
    "fp16_matmul_64": TileLimits(128, 2, 64, 12, 4.2),
    "fp16_matmul_128": TileLimits(256, 1, 64, 8, 3.3),
}


@dataclass(frozen=True)
class PrefillLimits:
    """What a kernel of attention/prefill.cu may use; the same on every architecture.

    Attributes:
        products: of the tensor cores, per warp and tile of keys, as they stand in the loop.
        copies: of 16 bytes, per thread and tile.
        instructions: per product, with those for a soft-cap, slopes and partly hidden tiles, which others jump over.
        other_loads: widths of loads in the loop: of scales.
    """

    products: int
    copies: int
    instructions: float
    other_loads: frozenset[str] = frozenset()


PREFILL_THREADS, PREFILL_BLOCKS = 128, 2  # of a block; that shall fit a multiprocessor at once, by their registers
SCALES = frozenset({"32"})
PREFILL = {
    "prefill_attention_64": PrefillLimits(64, 8, 17.5),
    "prefill_attention_80": PrefillLimits(80, 10, 14.5),
    "prefill_attention_96": PrefillLimits(96, 12, 12.7),
    "prefill_attention_112": PrefillLimits(112, 14, 11.4),
    "prefill_attention_128": PrefillLimits(128, 16, 10.5),
    "prefill_attention_256": PrefillLimits(80, 16, 11.4),  # a loop in the loop has 16 of the 64 with keys
    "prefill_attention_64_kv8": PrefillLimits(64, 4, 19.5, SCALES),
    "prefill_attention_80_kv8": PrefillLimits(80, 8, 18.3, SCALES),
    "prefill_attention_96_kv8": PrefillLimits(96, 8, 15.8, SCALES),
    "prefill_attention_112_kv8": PrefillLimits(112, 8, 13.9, SCALES),
    "prefill_attention_128_kv8": PrefillLimits(128, 8, 12.3, SCALES),
    "prefill_attention_256_kv8": PrefillLimits(80, 8, 14.9, SCALES),
}
SMALL_KERNELS = {  # bound by latency: widths of loads
    "rms_norm": {"128", "128.CONSTANT"},
    "layer_norm": {"128", "128.CONSTANT"},
    "embedding_fp16": {"32", "64", "128"},  # ids, table
    "embedding_int8": {"32", "64", "U16.CONSTANT", "U8.CONSTANT"},
    "embedding_int4": {"32", "64", "U16.CONSTANT", "U8.CONSTANT"},
    "argmax": {"32", "64"},  # logits, candidates
    "sample": {"128", "32", "64"},  # logits, those before and after; the seed
    "read_sum": {"128.CONSTANT"},
    "append_kv": {"U16", "32", "64"},  # the length
    "append_kv8": {"U16", "32", "64"},
}


@functools.cache
def kernels(architecture):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in build_kernels.build_cubins(Path(folder), [architecture]):
            found |= sass.read_cubin(path)
    return found


def width(opcode):
    """``LDG.E.NA.LTC128B.128.CONSTANT`` -> ``128.CONSTANT``; a plain 4-byte load has none: ``32``."""
    parts = [part for part in opcode.split(".") if part in {"U8", "U16", "S8", "S16", "64", "128", "CONSTANT"}]
    return ".".join(parts if parts and parts[0] != "CONSTANT" else ["32", *parts])


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_stays_within_its_limits(architecture, name):
    kernel, limits = kernels(architecture)[name], KERNELS[name]
    assert kernel.local_bytes == 0, "registers are spilled"
    fitting = REGISTERS_PER_SM // limits.blocks // limits.threads // 8 * 8  # registers are given out in eights
    assert kernel.registers <= min(fitting, REGISTERS_PER_THREAD)
    assert {width(load) for load in kernel.loads(kernel.loop)} == {limits.streamed} | limits.other_loads
    assert {width(load) for load in kernel.loads()} <= {limits.streamed} | limits.other_loads | limits.cold_loads
    values = limits.lane_values * sum(width(load) == limits.streamed for load in kernel.loads(kernel.loop))
    assert 0 < len(kernel.loop) / values <= limits.instructions


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("int4_gemv")])
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_int4_gemvs_unpack_with_masks_alone(architecture, name):
    """Per word of 8 weights a shift and four masks; no arithmetic in halves, but for scales on their way to fp32."""
    kernel = kernels(architecture)[name]
    opcodes = [text.split()[0] for text in kernel.loop]
    words = 4 * kernel_streams(kernel)
    tiles = 2 if "rows8" in name else 1
    assert sum("0xf000f" in text for text in kernel.loop) == 4 * words
    assert sum(opcode.startswith("HMMA.16816.F32") for opcode in opcodes) == tiles * 3 * words / 2
    assert not [opcode for opcode in opcodes if opcode.startswith(("HFMA2", "HADD2", "HMUL2")) and
                not opcode.endswith((".F32", ".MMA"))]


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_tiles_stay_within_their_limits(architecture, name):
    kernel, limits = kernels(architecture)[name], TILES[name]
    assert kernel.local_bytes == 0, "registers are spilled"
    fitting = REGISTERS_PER_SM // limits.blocks // limits.threads // 8 * 8
    assert kernel.registers <= min(fitting, REGISTERS_PER_THREAD)
    opcodes = [instruction.split()[0] for instruction in kernel.loop]
    assert sum(opcode.startswith("HMMA.16816.F32") for opcode in opcodes) == limits.products
    copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
    assert len(copies) == limits.copies and all(opcode.endswith(".128") for opcode in copies)
    assert {width(load) for load in kernel.loads(kernel.loop)} <= {"U16.CONSTANT", "U8.CONSTANT"}
    assert len(kernel.loop) / 64 <= limits.instructions


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", [name for name in TILES if name.startswith("int")])
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_tiles_do_not_wait_for_scales_in_the_stage_that_asks_for_them(architecture, name):
    loop = kernels(architecture)[name].loop
    loads = [place for place, text in enumerate(loop) if text.startswith("LDG.")]
    assert len(loads) == 2
    for place in loads:
        register = re.search(r" (R\d+), ", loop[place])[1]
        assert not any(re.search(rf"\b{register}\b", text) for text in loop[place + 1:])
        assert any(re.search(rf"\b{register}\b", text) for text in loop[:place])


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", PREFILL)
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_prefill_stays_within_its_limits(architecture, name):
    kernel, limits = kernels(architecture)[name], PREFILL[name]
    assert kernel.local_bytes == 0, "registers are spilled"
    fitting = REGISTERS_PER_SM // PREFILL_BLOCKS // PREFILL_THREADS // 8 * 8
    assert kernel.registers <= min(fitting, REGISTERS_PER_THREAD)
    opcodes = [instruction.split()[0] for instruction in kernel.loop]
    assert sum(opcode.startswith("HMMA.16816.F32") for opcode in opcodes) == limits.products
    copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
    assert len(copies) == limits.copies and all(opcode.endswith(".128") for opcode in copies)
    assert {width(load) for load in kernel.loads(kernel.loop)} == limits.other_loads
    assert len(kernel.loop) / limits.products <= limits.instructions


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", SMALL_KERNELS)
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_small_kernels_stay_small(architecture, name):
    kernel = kernels(architecture)[name]
    assert kernel.local_bytes == 0 and kernel.registers <= 64
    assert {width(load) for load in kernel.loads()} == SMALL_KERNELS[name]


WAIT, LET_NEXT_START = "ACQBULK", "PREEXIT"  # griddepcontrol.wait and .launch_dependents
READS_NOTHING_OF_OTHERS = {"read_sum"}


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("architecture", build_kernels.ARCHITECTURES)
def test_dependent_launch(architecture):
    """On sm_90 every kernel waits once before it stores, or loads anything but weights; these, where there are any."""
    for name, kernel in kernels(architecture).items():
        opcodes = [text.split()[0] for text in kernel.instructions]
        waits = architecture == "sm_90" and name not in READS_NOTHING_OF_OTHERS
        assert opcodes.count(WAIT) == opcodes.count(LET_NEXT_START) == waits, name
        if not waits:
            continue
        before = opcodes[: opcodes.index(WAIT)]
        assert not [opcode for opcode in before if opcode.startswith(("ST.", "STG", "ATOM", "RED"))], name
        loads = [opcode for opcode in before if opcode.startswith(("LD.", "LDG"))]
        weights = [opcode for opcode in loads if width(opcode) == "128.CONSTANT" or opcode.startswith("LDGSTS")]
        assert bool(weights) == (name in TILES or "gemv" in name), name
        assert {width(opcode) for opcode in loads if opcode not in weights} <= {"U16.CONSTANT", "U8.CONSTANT"}, name
        assert opcodes.index(WAIT) < opcodes.index(LET_NEXT_START), name
        if "gemv" in name:
            assert len(weights) == kernel_streams(kernel), name


def kernel_streams(kernel):
    """Loads of weights in the loop: as many are on their way before it."""
    return sum(width(load) == "128.CONSTANT" for load in kernel.loads(kernel.loop))


@needs_nvrtc
@needs_disassembler
def test_every_kernel_has_limits():
    assert set(kernels("sm_80")) == {*KERNELS, *TILES, *PREFILL, *SMALL_KERNELS}


@needs_nvrtc
def test_ptx_for_newer_gpus(tmp_path):
    files = build_kernels.build_cubins(tmp_path, [build_kernels.PTX_ARCHITECTURE])
    assert [path.name for path in files] == [
        f"{source.parent.name}_{source.stem}.compute_90.ptx" for source in build_kernels.KERNELS]
    for path in files:
        ptx = path.read_text()
        assert ".target sm_90" in ptx and ".entry" in ptx
        assert {int(each) for each in re.findall(r"\.shared \.align (\d+)", ptx)} <= {16}, "loads of 16 bytes"


@needs_nvrtc
def test_a_source_that_does_not_compile_says_where(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void broken() { missing(); }")
    with pytest.raises(build_kernels.BuildError, match=r"broken\.cu for sm_80 (.|\n)*missing"):
        build_kernels.Nvrtc.find().compile(source, "sm_80")


def test_command_line_builds_for_the_cpu(tmp_path):
    need_compiler()
    script = PLUGINS / "build_kernels.py"
    built = subprocess.run([script, "cpu", "-o", tmp_path], check=True, capture_output=True, text=True).stdout
    assert Path(built.strip()) == tmp_path / build_kernels.HARNESS and (tmp_path / build_kernels.HARNESS).exists()


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build_kernels.BuildError, match="no-such-compiler is not installed"):
        build_kernels.build_cpu(tmp_path)


def test_a_missing_nvrtc_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(build_kernels.Nvrtc, "find", lambda: None)
    with pytest.raises(build_kernels.BuildError, match=build_kernels.NVRTC_REQUIREMENT):
        build_kernels.build_cubins(tmp_path)
