"""Kernels that TensorRT-RTX compiles while it runs, on a scripted one: compiled once, whatever befalls their file."""

from __future__ import annotations

import dataclasses
import errno
import os
from threading import Thread

import numpy as np
import pytest
from fake_tensorrt import VOCAB
from test_plugin_free import IDS, RTX_4090, SYMMETRIC, TENSORRT, expected, set_up
from toy_bundle import CHUNK, Notes, make_bundle

from edge_awq.engine.standard import compile_bundle, open_engine
from edge_awq.engine.trt import kernel_cache
from edge_awq.engine.trt.plan_cache import store_bytes

SHAPES = [[1, CHUNK], [0, 3], [0, 1]]  # profile and tokens of what is run


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path, quant=SYMMETRIC)


def files(bundle):
    return sorted((bundle.path / "engines").glob("*.kernels"))


def run(bundle, monkeypatch, script=None, gpu=RTX_4090):
    """One process: a prompt and a token. Returns the shapes that kernels were compiled for, and what was noted."""
    _, script = set_up(monkeypatch, gpu, script={**(script or {})})
    progress = Notes()
    engine = open_engine(bundle, progress=progress)
    assert np.array_equal(engine.prefill(IDS[: CHUNK + 3]), expected(IDS[: CHUNK + 3]))
    assert np.array_equal(engine.step(IDS[CHUNK + 3]), expected(IDS[: CHUNK + 4]))
    engine.close()
    return script.get("compiled", []), progress.notes


def test_the_second_run_compiles_nothing(bundle, monkeypatch):
    assert run(bundle, monkeypatch) == (SHAPES, [])
    (file,) = files(bundle)
    (engine,) = (bundle.path / "engines").glob("*.engine")
    assert file.name == f"{engine.stem}-sm89-128sms.kernels"
    before = file.stat().st_ino
    assert run(bundle, monkeypatch) == ([], [])
    assert file.stat().st_ino == before  # nothing new, so it was not written
    assert not list((bundle.path / "engines").glob("*.tmp"))


def test_new_shapes_are_added(bundle, monkeypatch):
    run(bundle, monkeypatch)
    for compiled in ([[0, 5]], []):
        _, script = set_up(monkeypatch)
        engine = open_engine(bundle)
        engine.prefill(IDS[:5])
        engine.close()
        assert script.get("compiled", []) == compiled
    assert run(bundle, monkeypatch) == ([], [])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: b"",
                                    lambda data: b"\xff" * 100, lambda data: data[:7]])
def test_damaged_file_is_named_once_and_begun_anew(bundle, monkeypatch, damage):
    run(bundle, monkeypatch)
    (file,) = files(bundle)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert run(bundle, monkeypatch) == (SHAPES, [f"{file.name} is damaged; kernels are compiled anew"])
    assert file.read_bytes() == whole and run(bundle, monkeypatch) == ([], [])


def test_file_of_another_driver_is_named_once_and_begun_anew(bundle, monkeypatch):
    run(bundle, monkeypatch, {"driver": 580})
    compiled, notes = run(bundle, monkeypatch, {"driver": 590})
    assert compiled == SHAPES and len(notes) == 1
    assert "is not used, it is of another GPU or driver (another driver); kernels are compiled anew" in notes[0]
    assert run(bundle, monkeypatch, {"driver": 590}) == ([], [])


def test_each_kind_of_gpu_has_its_own(bundle, monkeypatch):
    other = dataclasses.replace(RTX_4090, compute_capability=(12, 0), sm_count=170)
    assert [run(bundle, monkeypatch, gpu=gpu) for gpu in (RTX_4090, other, RTX_4090)] == [
        (SHAPES, []), (SHAPES, []), ([], [])]
    assert len(files(bundle)) == 2


def test_bundle_that_cannot_be_written_to_is_no_error(bundle, monkeypatch):
    set_up(monkeypatch)
    compile_bundle(bundle.path)

    def refuse(path, data):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache, "store_bytes", refuse)
        assert run(bundle, patch) == (SHAPES, [])
    assert not files(bundle)


@pytest.mark.parametrize("failure", ["no_config", "no_cache", "cache_not_taken", "cache_not_serialized"])
def test_a_runtime_that_keeps_no_kernels_runs_all_the_same(bundle, monkeypatch, failure):
    for _ in range(2):
        compiled, notes = run(bundle, monkeypatch, {failure: True})
        assert sorted(compiled) == sorted(SHAPES) and not notes and not files(bundle)


def test_kernels_without_end_are_not_kept(bundle, monkeypatch):
    monkeypatch.setattr(kernel_cache, "MOST_BYTES", 8)
    assert run(bundle, monkeypatch) == (SHAPES, []) and not files(bundle)


def test_two_at_once(bundle, monkeypatch):
    set_up(monkeypatch)
    first, second = open_engine(bundle), open_engine(bundle)
    for engine, count in ((first, 1), (second, 2)):
        assert engine.prefill(IDS[:count]).shape == (VOCAB,)
    first.close()
    second.close()
    assert run(bundle, monkeypatch) == (SHAPES, [])  # the last one's file stands, whole
    assert run(bundle, monkeypatch) == ([], [])


def test_a_file_is_whole_whoever_else_writes_it(tmp_path, monkeypatch):
    """The other one begins and ends while this one has written half of its own."""
    path, fsync = tmp_path / "x.kernels", os.fsync

    def let_the_other_write(file):
        monkeypatch.setattr(os, "fsync", fsync)
        other = Thread(target=store_bytes, args=(path, b"other"))
        other.start()
        other.join()
        assert path.read_bytes() == b"other"
        fsync(file)

    monkeypatch.setattr(os, "fsync", let_the_other_write)
    store_bytes(path, b"mine")
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_tensorrt_compiles_beforehand_and_has_none(bundle, monkeypatch):
    set_up(monkeypatch, versions={TENSORRT.module: "10.16.1.11"})
    engine = open_engine(bundle)
    engine.prefill(IDS[:3])
    engine.close()
    assert not files(bundle)
