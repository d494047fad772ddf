"""The machine of ptx/: what lanes do together, against the tables of the PTX ISA; and that it sees what is wrong."""

import numpy as np
import pytest
from ptx_harness import Driver, FaultError, module
from test_fibers import of_a, of_b, of_c

SCHEDULES = (0, 1, 5)


@pytest.fixture(scope="module")
def shared_driver():
    return Driver()


@pytest.fixture
def driver(shared_driver):
    shared_driver.set(schedule=0, rounds_once=0, compute_capability=100)
    yield shared_driver
    shared_driver.set(schedule=0, rounds_once=0)
    shared_driver.free_all()


# ---- tensor cores ----

PRODUCT = module("product", """
    .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .b32 %c<4>; .reg .b64 %o<3>;
    shl.b64 %o0, %t64, 4; add.s64 %o1, %p0, %o0; ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%o1];
    add.s64 %o1, %p2, %o0; ld.global.v4.u32 {%c0, %c1, %c2, %c3}, [%o1];
    shl.b64 %o2, %t64, 3; add.s64 %o2, %p1, %o2; ld.global.v2.u32 {%b0, %b1}, [%o2];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%a0, %a1, %a2, %a3}, {%b0, %b1},
        {%c0, %c1, %c2, %c3};
    st.global.v4.u32 [%o1], {%c0, %c1, %c2, %c3};""", 3)


def multiply(driver, a, b, c):
    """a @ b + c through the registers that the ISA's tables name."""
    fragments = [np.ascontiguousarray(matrix[place(np.arange(count)[None])]) for matrix, place, count in (
        (a, of_a, 8), (b, of_b, 4), (c, of_c, 4))]
    result = np.full_like(c, np.nan)
    result[of_c(np.arange(4)[None])] = driver.run(PRODUCT, fragments)[2]
    return result


def test_product_is_rounded_once_or_cut(driver, rng):
    """Cut: each of 17 terms, and the sum, loses less than 2^-22 of the largest term."""
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    products = (a[:, :, None] * b[None].astype(np.float64)).transpose(1, 0, 2)
    terms = np.concatenate([products, c[None].astype(np.float64)])
    driver.set(rounds_once=1)
    np.testing.assert_array_equal(multiply(driver, a, b, c), terms.sum(0).astype(np.float32))
    driver.set(rounds_once=0)
    errors = np.abs(multiply(driver, a, b, c) - terms.sum(0))
    assert (errors <= 18 * np.abs(terms).max(0) * 2.0**-22).all() and errors.max() > 2.0**-23


def test_product_of_small_halves_and_of_what_is_not_finite(driver):
    """A subnormal half is kept beside nothing larger, and lost beside 1024."""
    a, b, c = np.zeros((16, 16), np.float16), np.ones((16, 8), np.float16), np.zeros((16, 8), np.float32)
    a[0, 0], a[1, :2] = 3 * 2.0**-24, (2.0**-24, 1024)
    a[2, 0], a[3, 0], c[4] = np.inf, np.nan, 5e-42
    result = multiply(driver, a, b, c)
    assert (result[0] == 3 * 2.0**-24).all() and (result[1] == 1024).all() and np.isinf(result[2]).all()
    assert (result[3].view(np.uint32) == 0x7FFFFFFF).all() and (result[4] == c[4]).all()


# ---- lanes and copies ----

@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("kind", "b", "c"), [("bfly", 5, 31), ("idx", 7, 31), ("bfly", 9, 0x1807), ("idx", 6, 0x1803)])
def test_shuffles(driver, kind, b, c, schedule):
    """Also where lanes come to it one after another, and in segments of 8 lanes whose last is 7 or 3."""
    driver.set(schedule=schedule)
    text = module("shuffled", f"""
        .reg .b32 %v<3>; .reg .b64 %o; .reg .pred %q<2>;
        and.b32 %v1, %t, 1; setp.eq.u32 %q0, %v1, 0; mul.lo.u32 %v0, %t, 3;
        @%q0 bra even;
        add.u32 %v0, %v0, 1000;
        even: shfl.sync.{kind}.b32 %v1|%q1, %v0, {b}, {c}, -1;
        selp.u32 %v2, 1, 0, %q1;
        shl.b64 %o, %t64, 3; add.s64 %o, %p0, %o; st.global.u32 [%o], %v1; st.global.u32 [%o+4], %v2;""")
    found = driver.run(text, [np.zeros((32, 2), np.uint32)])[0]
    lane, segment, last = np.arange(32), c >> 8, c & 31
    source = lane ^ b if kind == "bfly" else lane & segment | b & ~segment
    within = source <= (lane & segment | last & ~segment)
    source = np.where(within, source, lane)
    np.testing.assert_array_equal(found[:, 0], 3 * source + 1000 * (source % 2))
    np.testing.assert_array_equal(found[:, 1], within)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loops_of_other_lengths_and_counters(driver, schedule):
    """Each thread goes round as often as its number; blocks count themselves modulo 4."""
    driver.set(schedule=schedule)
    text = module("loops", """
        .reg .b32 %n<4>; .reg .b64 %o; .reg .pred %q;
        mov.u32 %n0, 0; mov.u32 %n1, 0;
        again: setp.ge.u32 %q, %n1, %t; @%q bra out;
        add.u32 %n0, %n0, %n1; add.u32 %n1, %n1, 1; bra again;
        out: shl.b64 %o, %t64, 2; add.s64 %o, %p0, %o; st.global.u32 [%o], %n0;
        setp.eq.u32 %q, %t, 0; @%q atom.global.inc.u32 %n2, [%p1], 3;""", 2)
    sums, counter = driver.run(text, [np.zeros(64, np.uint32), np.zeros(1, np.uint32)], threads=64, blocks=6)
    np.testing.assert_array_equal(sums, [n * (n - 1) // 2 for n in range(64)])
    assert counter[0] == 2


COPY = """
    .reg .b64 %q; .reg .b32 %s; .reg .b32 %z; .reg .b32 %v<4>; .reg .b32 %n; .reg .pred %x;
    mov.u64 %q, rows; shl.b64 %t64, %t64, 4; add.s64 %q, %q, %t64; cvt.u32.u64 %s, %q;
    and.b32 %n, %t, 1; setp.eq.u32 %x, %n, 1; selp.b32 %z, 0, 16, %x;
    add.s64 %q, %p0, %t64;
    cp.async.cg.shared.global.L2::128B [%s], [%q], 16, %z; cp.async.commit_group;
    cp.async.commit_group; WAIT BARRIER
    xor.b32 %s, %s, NEIGHBOUR; ld.shared.v4.u32 {%v0, %v1, %v2, %v3}, [%s];
    add.s64 %q, %p1, %t64; st.global.v4.u32 [%q], {%v0, %v1, %v2, %v3};"""


def copied(driver, wait, barrier, neighbour):
    body = COPY.replace("WAIT", wait).replace("BARRIER", barrier).replace("NEIGHBOUR", neighbour)
    data = np.arange(128, dtype=np.uint32).reshape(32, 4)
    text = module("copies", body, 2, ".shared .align 512 .b8 rows[512];")
    return data, driver.run(text, [data, np.zeros_like(data)])[1]


def test_asynchronous_copies_land_when_they_are_waited_for(driver):
    data, found = copied(driver, "cp.async.wait_group 1;", "bar.sync 0;", "16")
    expected = np.where(np.arange(32)[:, None] % 2, 0, data)  # odd threads ask for zeros
    np.testing.assert_array_equal(found, expected.reshape(16, 2, 4)[:, ::-1].reshape(32, 4))
    np.testing.assert_array_equal(copied(driver, "cp.async.wait_group 0;", "", "0")[1], expected)  # its own: no barrier
    for wait, barrier, said in (("cp.async.wait_group 2;", "bar.sync 0;", "a copy has yet to land"),
                                ("cp.async.wait_group 0;", "", "wrote since the last barrier")):
        with pytest.raises(FaultError, match=said):
            copied(driver, wait, barrier, "16")


# ---- what is wrong ----

WITH_SHARED = ".shared .align 16 .b8 rows[256];"
REGISTERS = ".reg .b32 %v<8>; .reg .b64 %q<3>; .reg .pred %x<3>; mul.lo.u64 %q0, %t64, 4; add.s64 %q1, %p0, %q0;\n"
FAULTS = {
    "before": ("ld.global.u32 %v0, [%q1+-4];", "thread 0.*reads outside all allocations"),
    "beyond": ("ld.global.u32 %v0, [%q1+4];", "thread 31.*byte 128 of one of 128"),
    "null": ("mov.u64 %q1, 0; st.global.u32 [%q1], %t;", "writes outside all allocations at 0x0"),
    "beyond_shared": ("mov.u64 %q2, rows; st.shared.u32 [%q2+256], %t;", "byte 256 of shared memory of 256"),
    "unwritten_shared": ("mov.u64 %q2, rows; ld.shared.u32 %v0, [%q2];", "which nobody has written"),
    "race": ("mov.u64 %q2, rows; add.s64 %q2, %q2, %q0; st.shared.u32 [%q2], %t; bar.sync 0; st.shared.u32 [%q2], %t;"
             "ld.shared.u32 %v0, [rows+64];", "reads what thread 16 wrote since the last barrier"),
    "partly_undefined": ("setp.lt.u32 %x0, %t, 9; @%x0 mov.u32 %v1, 5; add.u32 %v0, %v1, 1;",
                         "thread 9, .*reads a register that is undefined"),
    "zero": ("div.u32 %v0, %t, 0;", "divides by zero"),
    "diverged": ("setp.lt.u32 %x0, %t, 9; @%x0 bra out; mov.u64 %q2, rows; cvt.u32.u64 %v0, %q2;"
                 "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%v0, %v1, %v2, %v3}, [%v0]; out:",
                 "is reached by lanes 0xfffffe00 only"),
    "barriers_apart": ("setp.lt.u32 %x0, %t, 9; @%x0 bra out; bar.sync 0; bra out2; out: bar.sync 0; out2:",
                       "lanes wait for each other"),
    "returned": ("setp.lt.u32 %x0, %t, 9; @%x0 ret; bar.sync 0;", "has returned before this barrier"),
    "shuffle_of_some": ("setp.lt.u32 %x0, %t, 9; @%x0 ret; shfl.sync.bfly.b32 %v0|%x1, %t, 1, 31, -1;",
                        "lanes have returned that are waited for"),
    "constant": ("st.global.u32 [%q1], %t; ld.global.nc.u32 %v0, [%q1];", "as if it were constant"),
    "global_race": ("st.global.u32 [%q1], %t; ld.global.u32 %v0, [%p0+64];", "reads what thread 16 of block 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(driver, name):
    body, said = FAULTS[name]
    with pytest.raises(FaultError, match=f"(?s)719: .*{said}"):
        driver.run(module("faulty", REGISTERS + body, 1, WITH_SHARED), [np.zeros(32, np.uint32)])


UNKNOWN = {
    "instruction": ("vote.sync.all.pred %x0, %x1, -1;", "the instruction is not known: vote"),
    "modifier": ("ld.global.relaxed.gpu.u32 %v0, [%q1];", "the instruction is not known"),
    "width": ("add.u32 %v0, %q1, 1;", "has 64 bits"),
    "operands": ("add.u32 %v0, %v1;", "has not 3 operands"),
    "register": ("add.u32 %v0, %v1, %v9;", "%v9 is not known"),
    "label": ("bra nowhere;", "no such label"),
    "barrier": ("bar.sync 1;", "a barrier other than 0"),
    "size": ("cp.async.cg.shared.global.L2::128B [%v0], [%q1], 8, 8;", "another size than 16"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused(driver, name):
    body, said = UNKNOWN[name]
    with pytest.raises(FaultError, match=f"(?s)218: .*{said}"):
        driver.function(module("unknown", REGISTERS + body), "unknown")


def test_launches_that_a_device_refuses(driver):
    text = module("launched", "mov.u64 %t64, rows;", 1, ".shared .align 16 .b8 rows[1024];", threads=64)
    function, data = driver.function(text, "launched"), driver.put(np.zeros(4, np.uint32))
    driver.launch(function, [data], threads=64, shared=47 * 1024)
    with pytest.raises(FaultError, match="701: 96 threads of 64"):
        driver.launch(function, [data], threads=96)
    with pytest.raises(FaultError, match=r"^1: "):
        driver.launch(function, [data], threads=64, shared=47 * 1024 + 16)
    assert driver.library.cuFuncSetAttribute(function, 8, 100 * 1024) == 0
    driver.launch(function, [data], threads=64, shared=100 * 1024)
    with pytest.raises(FaultError, match=r"^1: "):
        driver.launch(function, [data], threads=64, shared=100 * 1024 + 16)


WRITE = "shl.b64 %t64, %t64, 2; add.s64 %t64, %p0, %t64; st.global.u32 [%t64], %t;"
READ = (".reg .b32 %v; .reg .b64 %q; shl.b64 %t64, %t64, 2; add.s64 %q, %p0, %t64; EARLY ld.global.u32 %v, [%q]; LATE"
        " add.s64 %q, %p1, %t64; st.global.u32 [%q], %v;")
WAIT = "griddepcontrol.wait;"


@pytest.mark.parametrize(("early", "late", "written", "said"), [
    (WAIT, "", 0, None),
    ("", WAIT, 0, "reads, before griddepcontrol.wait, what an earlier kernel writes"),
    ("", WAIT, 1, None),  # what no kernel wrote may be read ahead
    ("", "", 1, "writes before griddepcontrol.wait")])
def test_dependent_launch(driver, early, late, written, said):
    """A kernel that may begin before the last one ends has to wait before it reads what that one wrote, or writes."""
    reads = module("reads", READ.replace("EARLY", early).replace("LATE", late), 2)
    first, second = driver.function(module("writes", WRITE), "writes"), driver.function(reads, "reads")
    arrays = [np.full(32, 7, np.uint32), np.full(32, 7, np.uint32)]
    addresses = [driver.put(array) for array in arrays]
    driver.launch(first, [addresses[written]])
    if said is None:
        driver.launch(second, addresses, dependent=True)
        np.testing.assert_array_equal(driver.get(addresses[1], arrays[1]), arrays[0] if written else np.arange(32))
    else:
        with pytest.raises(FaultError, match=said):
            driver.launch(second, addresses, dependent=True)
    driver.launch(second, addresses)  # a launch that does not begin early needs no wait


LAST = """
    .reg .b32 %v<3>; .reg .b64 %q; .reg .pred %x; mov.u32 %v0, %ctaid.x; mul.wide.u32 %q, %v0, 4; add.s64 %q, %p0, %q;
    st.global.u32 [%q], %v0; FENCE atom.global.inc.u32 %v1, [%p1], 1; ACQUIRE
    setp.eq.u32 %x, %v1, 1; @!%x bra out; mov.u32 %v2, 1; sub.u32 %v2, %v2, %v0; mul.wide.u32 %q, %v2, 4;
    add.s64 %q, %p0, %q; ld.global.u32 %v2, [%q]; st.global.u32 [%p2], %v2; out:"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("fence", "acquire"), [(True, True), (False, True), (True, False)])
def test_what_another_block_wrote_wants_fences_on_both_sides(driver, fence, acquire, schedule):
    driver.set(schedule=schedule)
    body = LAST.replace("FENCE", "membar.gl;" * fence).replace("ACQUIRE", "membar.gl;" * acquire)
    arrays = [np.zeros(2, np.uint32), np.zeros(1, np.uint32), np.full(1, 9, np.uint32)]
    if fence and acquire:
        assert driver.run(module("last", body, 3), arrays, threads=1, blocks=2)[2][0] in (0, 1)
        return
    with pytest.raises(FaultError, match="reads what thread 0 of block"):
        driver.run(module("last", body, 3), arrays, threads=1, blocks=2)
