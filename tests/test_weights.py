"""The weights file, read back by the safetensors library itself."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_awq.errors import EdgeAwqError
from edge_awq.weights import TensorSpec, WeightsWriter, read_layout, read_tensor

SPECS = [
    TensorSpec("q.qweight", "U8", (3, 5)),
    TensorSpec("q.scales", "F16", (3, 1)),
    TensorSpec("k.qweight", "U8", (2, 5)),
    TensorSpec("norm", "F32", (7,)),
    TensorSpec("k.scales", "F16", (2, 1)),
]


def arrays():
    rng = np.random.default_rng(0)
    return {
        "q.qweight": rng.integers(0, 256, (3, 5), dtype=np.uint8),
        "k.qweight": rng.integers(0, 256, (2, 5), dtype=np.uint8),
        "q.scales": rng.random((3, 1)).astype(np.float16),
        "k.scales": rng.random((2, 1)).astype(np.float16),
        "norm": rng.random(7).astype(np.float32),
    }


def write_all(path, names=None):
    with WeightsWriter(path, SPECS) as writer:
        for name in names or arrays():
            writer.write(name, arrays()[name])


def test_safetensors_reads_what_was_written(tmp_path):
    path = tmp_path / "w.safetensors"
    write_all(path)
    loaded = load_file(path)
    assert set(loaded) == set(arrays())
    for name, array in arrays().items():
        np.testing.assert_array_equal(loaded[name], array)
        np.testing.assert_array_equal(read_tensor(path, read_layout(path)[name]), array)


def test_tensors_of_one_type_keep_their_order_and_are_aligned(tmp_path):
    write_all(tmp_path / "w")
    layout = read_layout(tmp_path / "w")
    assert layout["q.qweight"].offset + layout["q.qweight"].nbytes == layout["k.qweight"].offset
    assert layout["q.scales"].offset + layout["q.scales"].nbytes == layout["k.scales"].offset
    assert layout["norm"].offset % 4 == 0 and layout["q.scales"].offset % 2 == 0


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path):
    names = list(arrays())
    write_all(tmp_path / "twice", names[:2])
    write_all(tmp_path / "twice", names[2:])
    write_all(tmp_path / "once")
    assert (tmp_path / "twice").read_bytes() == (tmp_path / "once").read_bytes()


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    with WeightsWriter(tmp_path / "w", SPECS) as writer, pytest.raises(ValueError, match="norm"):
        writer.write("norm", np.zeros(8, np.float32))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 4) + b"nono", struct.pack("<Q", 2) + b"[]",
                                     struct.pack("<Q", 1 << 60)])
def test_a_broken_header_is_named(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(EdgeAwqError, match="not a safetensors file"):
        read_layout(tmp_path / "w")


def test_a_cut_file_is_named(tmp_path):
    write_all(tmp_path / "w")
    os.truncate(tmp_path / "w", (tmp_path / "w").stat().st_size - 1)
    with pytest.raises(EdgeAwqError, match="cut short"):
        read_layout(tmp_path / "w")


def test_a_full_disk_is_one_error_before_any_work(tmp_path):
    huge = [TensorSpec("huge", "U8", (1 << 50, 1))]
    with pytest.raises(EdgeAwqError, match="do not fit on the disk"):
        WeightsWriter(tmp_path / "w", huge)


def test_header_is_plain_json(tmp_path):
    write_all(tmp_path / "w")
    raw = (tmp_path / "w").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert json.loads(raw[8 : 8 + length])["norm"]["dtype"] == "F32" and (8 + length) % 8 == 0
