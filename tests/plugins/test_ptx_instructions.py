"""The machine that executes PTX (ptx/), instruction by instruction, against numpy: what test_ptx.py rests on."""

import numpy as np
import pytest
from ptx_harness import Driver, FaultError

HEAD = """.version 8.5
.target sm_90
.address_size 64
.visible .entry probe(.param .align 8 .b8 p[32])
.maxntid 1024, 1, 1
{
\t.reg .pred %p<4>;
\t.reg .b16 %rs<16>;
\t.reg .f32 %f<32>;
\t.reg .b32 %r<64>;
\t.reg .b64 %rd<32>;
"""
PLACE = """\tmov.u32 %r0, %tid.x;
\tmov.u32 %r1, %ctaid.x;
\tmov.u32 %r2, %ntid.x;
\tmad.lo.s32 %r3, %r1, %r2, %r0;
"""
WORDS = {"b16": ("rs", "u16", 2), "b32": ("r", "u32", 4), "f32": ("f", "f32", 4)}  # registers, loads, bytes


@pytest.fixture(scope="module")
def driver():
    return Driver()


def elementwise(driver, instruction, kinds, *inputs, last=None):
    """One instruction on every element; ``kinds`` are those of the result and the operands, ``last`` a constant."""
    lines = [HEAD, PLACE]
    names = []
    for index, kind in enumerate(kinds[1:]):
        register, load, size = WORDS[kind]
        names.append(f"%{register}{8 + index}")
        lines += [f"\tld.param.u64 %rd{index}, [p+{8 * index}];", f"\tmul.wide.s32 %rd{10 + index}, %r3, {size};",
                  f"\tadd.s64 %rd{20 + index}, %rd{index}, %rd{10 + index};",
                  f"\tld.global.{load} {names[-1]}, [%rd{20 + index}];"]
    register, load, size = WORDS[kinds[0]]
    place = len(inputs)
    operands = ", ".join([*names, last] if last else names)
    lines += [f"\t{instruction} %{register}12, {operands};", f"\tld.param.u64 %rd{place}, [p+{8 * place}];",
              f"\tmul.wide.s32 %rd8, %r3, {size};", f"\tadd.s64 %rd9, %rd{place}, %rd8;",
              f"\tst.global.{load} [%rd9], %{register}12;", "\tret;", "}"]
    count = len(inputs[0])
    assert count % 256 == 0
    output = np.zeros(count, {"b16": np.uint16, "b32": np.uint32, "f32": np.float32}[kinds[0]])
    return driver.run("\n".join(lines), [*inputs, output], blocks=count // 256, threads=256)[-1]


@pytest.fixture
def rng():
    return np.random.default_rng(12)


@pytest.fixture
def halves(rng):
    """Three arrays of 65536 float16: every value there is, in orders of their own."""
    bits = np.arange(1 << 16).astype(np.uint16)
    return [rng.permutation(bits).view(np.float16) for _ in range(3)]


def assert_same_halves(found, exact):
    """Bits, but for NaN, which has many."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = exact.astype(np.float16)
    found, is_number = found.view(np.float16), ~np.isnan(expected)
    np.testing.assert_array_equal(~np.isnan(found), is_number)
    np.testing.assert_array_equal(found[is_number].view(np.uint16), expected[is_number].view(np.uint16))


def test_halves_to_floats(driver, halves):
    found = elementwise(driver, "cvt.f32.f16", ("f32", "b16"), halves[0].view(np.uint16))
    np.testing.assert_array_equal(found, halves[0].astype(np.float32))


def test_floats_to_halves(driver, rng):
    """Any bits, and those about which rounding decides: halves and what lies between them."""
    anything = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    near = (np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
            + rng.integers(0, 3, 1 << 16).astype(np.uint32) * 0x0FFF).view(np.float32)
    for floats in (anything, near):
        assert_same_halves(elementwise(driver, "cvt.rn.f16.f32", ("b16", "f32"), floats), floats)


def test_pairs_of_halves(driver, halves):
    """float64 holds the difference of halves exactly, and products with a sum where exponents are not far apart."""
    a, b, c = halves
    with np.errstate(invalid="ignore", over="ignore"):
        found = elementwise(driver, "sub.rn.f16x2", ("b32",) * 3, *(x.view(np.uint32) for x in (a, b)))
        assert_same_halves(found, a.astype(np.float64) - b.astype(np.float64))
        exponents = np.abs(np.frexp(a.astype(np.float64))[1] + np.frexp(b.astype(np.float64))[1]
                           - np.frexp(c.astype(np.float64))[1])
        a = np.where(exponents < 28, a, np.float16(0))
        found = elementwise(driver, "fma.rn.f16x2", ("b32",) * 4, *(x.view(np.uint32) for x in (a, b, c)))
        assert_same_halves(found, a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64))


def test_floats(driver, rng):
    """Products of 24 bits by 24 and a sum below 2^50: float64 holds them exactly, before they are rounded once."""
    a, b = ((rng.integers(-(1 << 24), 1 << 24, 1 << 16)).astype(np.float32) for _ in range(2))
    c = np.ldexp(rng.integers(-(1 << 20), 1 << 20, 1 << 16), 5).astype(np.float32)
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    np.testing.assert_array_equal(elementwise(driver, "fma.rn.f32", ("f32",) * 4, a, b, c), exact.astype(np.float32))
    for name, operation in (("add.f32", np.add), ("mul.f32", np.multiply), ("sub.f32", np.subtract)):
        np.testing.assert_array_equal(elementwise(driver, name, ("f32",) * 3, a, b), operation(a, b))
    found = elementwise(driver, "ex2.approx.ftz.f32", ("f32", "f32"), a / 2**18)
    np.testing.assert_allclose(found, np.exp2(a.astype(np.float64) / 2**18), rtol=2**-22)


def test_integers(driver, rng):
    a, b, c = rng.integers(0, 1 << 32, (3, 1 << 14), dtype=np.uint32)
    for name, exact in (("and.b32", a & b), ("xor.b32", a ^ b), ("add.s32", a + b), ("sub.s32", a - b),
                        ("mul.lo.s32", a * b), ("shr.u32", np.where(b % 40 < 32, a >> b % 40, 0))):
        operands = (a, b % np.uint32(40)) if name == "shr.u32" else (a, b)
        np.testing.assert_array_equal(elementwise(driver, name, ("b32",) * 3, *operands), exact, err_msg=name)
    found = elementwise(driver, "lop3.b32", ("b32",) * 4, a, b, c, last="0xea")
    np.testing.assert_array_equal(found, a & b | c)


GROUP, THREAD = np.divmod(np.arange(32), 4)  # of a lane, as the PTX ISA names them (section mma.m16n8k16)


def fragments(a, b):
    """Registers of A [16, 16] and B [16, 8] float16 by lane: uint32 [32, 4] and [32, 2]."""
    rows = np.stack([GROUP, GROUP + 8, GROUP, GROUP + 8], 1)
    columns = 2 * np.stack([THREAD, THREAD, THREAD + 4, THREAD + 4], 1)
    of_a = np.stack([a[rows, columns], a[rows, columns + 1]], 2)
    inner = 2 * np.stack([THREAD, THREAD + 4], 1)
    of_b = np.stack([b[inner, GROUP[:, None]], b[inner + 1, GROUP[:, None]]], 2)
    return (np.ascontiguousarray(each).view(np.uint32)[..., 0] for each in (of_a, of_b))


def test_product_of_a_tensor_core(driver, rng):
    """Whole numbers, so that the sums are exact however they are added."""
    a, b = (rng.integers(-31, 32, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.float32)
    of_a, of_b = fragments(a, b)
    rows, columns = np.stack([GROUP, GROUP, GROUP + 8, GROUP + 8], 1), 2 * THREAD[:, None] + np.array([0, 1, 0, 1])
    of_c = np.ascontiguousarray(c[rows, columns])
    lines = [HEAD, PLACE]
    for index, words in enumerate((4, 2, 4)):
        kind, register = (("f32", "f"), ("u32", "r"))[index < 2]
        lines += [f"\tld.param.u64 %rd{index}, [p+{8 * index}];", f"\tmul.wide.s32 %rd8, %r0, {4 * words};",
                  f"\tadd.s64 %rd{10 + index}, %rd{index}, %rd8;"]
        lines += [f"\tld.global.{kind} %{register}{8 * (index + 1) + word}, [%rd{10 + index}+{4 * word}];"
                  for word in range(words)]
    lines += ["\tmma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r8, %r9, %r10, %r11}, "
              "{%r16, %r17}, {%f24, %f25, %f26, %f27};"]
    lines += [f"\tst.global.f32 [%rd12+{4 * word}], %f{word};" for word in range(4)] + ["\tret;", "}"]
    found = driver.run("\n".join(lines), [of_a, of_b, of_c])[-1]
    product = np.zeros((16, 8))
    product[rows, columns] = found
    np.testing.assert_array_equal(product, a.astype(np.float64) @ b.astype(np.float64) + c)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_from_shared_memory(driver, transposed):
    """Four of 8 x 8: lane l has the address of row l % 8 of matrix l / 8, and gets row l / 4 of each, or column."""
    matrices = np.arange(256).reshape(4, 8, 8).astype(np.uint16)
    lines = [HEAD.replace(".visible", ".shared .align 16 .b8 tile[512];\n.visible"), PLACE, "\tld.param.u64 %rd0, [p];",
             "\tmul.wide.s32 %rd1, %r0, 16;", "\tadd.s64 %rd2, %rd0, %rd1;",
             "\tld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%rd2];", "\tmov.u32 %r4, tile;",
             "\tshl.b32 %r5, %r0, 4;", "\tadd.s32 %r6, %r4, %r5;",
             "\tst.shared.v4.u32 [%r6], {%r8, %r9, %r10, %r11};", "\tbar.sync \t0;",
             f"\tldmatrix.sync.aligned.m8n8.x4{'.trans' * transposed}.shared.b16 {{%r12, %r13, %r14, %r15}}, [%r6];",
             "\tld.param.u64 %rd3, [p+8];", "\tadd.s64 %rd4, %rd3, %rd1;",
             "\tst.global.v4.u32 [%rd4], {%r12, %r13, %r14, %r15};", "\tret;", "}"]
    found = driver.run("\n".join(lines), [matrices, np.zeros((32, 4), np.uint32)])[-1]
    read = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = read[:, GROUP[:, None], 2 * THREAD[:, None] + np.arange(2)]  # [matrix, lane, 2]
    np.testing.assert_array_equal(found.view(np.uint16).reshape(32, 4, 2), pairs.transpose(1, 0, 2))


@pytest.mark.parametrize(("body", "words"), [
    ("ld.global.u32 %r8, [%rd0+4096];", "4096"), ("ld.global.v2.u32 {%r8, %r9}, [%rd0+4];", "is not a multiple of 8"),
    ("add.s32 %r8, %r9, %r9;", "%r9"), ("setp.eq.s32 %p0, %r0, 3; @%p0 ret; bar.sync 0;", "bar.sync"),
    ("rem.f32 %f0, %f1, %f2;", "not known")])
def test_faults_say_what_and_where(driver, body, words):
    lines = [HEAD, PLACE, "\tld.param.u64 %rd0, [p];", *(f"\t{each.strip()};" for each in body[:-1].split(";")),
             "\tret;", "}"]
    with pytest.raises(FaultError) as caught:
        driver.run("\n".join(lines), [np.zeros(256, np.uint32)], threads=64)
    assert words in str(caught.value)
