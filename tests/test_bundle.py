"""The bundle: what is refused, by name, before anything runs."""

import dataclasses
import errno
import json

import pytest

from edge_awq.bundle import MANIFEST, SCHEMA, Bundle, Manifest, seal, write_text
from edge_awq.describe import describe_bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.sizes import sizes_of_bundle

MANIFEST_OF_TEST = Manifest(
    name="tiny", source="tiny", revision=None, family="llama", precision="w4a16", config={}, context=8,
    prefill_chunk=4, target="cpu", runtime="onnxruntime", contract_version=1, quant={}, report=[], engine=None,
    tool_versions={}, fingerprint="f",
)


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "work"
    (folder / "engines").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
    (folder / "engines" / "a.onnx").write_bytes(b"engine")
    return seal(folder, MANIFEST_OF_TEST, tmp_path / "x.bundle")


def refusal(bundle, **options):
    with pytest.raises(EdgeAwqError) as caught:
        Bundle.open(bundle.path, **options)
    assert caught.value.hint
    return caught.value.message


def test_sealed_bundle_opens_with_the_same_manifest(bundle):
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    assert set(bundle.manifest.files) == {"model.onnx", "weights.safetensors", "engines/a.onnx"}


def test_sealing_replaces_an_older_bundle_whole(bundle, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "only").write_text("new")
    seal(folder, dataclasses.replace(MANIFEST_OF_TEST, name="second"), bundle.path)
    assert Bundle.open(bundle.path).manifest.name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bundle"]


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "engines/a.onnx"])
def test_flipped_bit(bundle, name):
    data = bytearray((bundle.path / name).read_bytes())
    data[-1] ^= 1
    (bundle.path / name).write_bytes(data)
    assert f"{name} is damaged" in refusal(bundle)


def test_missing_file(bundle):
    (bundle.path / "weights.safetensors").unlink()
    assert "weights.safetensors is missing" in refusal(bundle, verify=False)


def test_cut_file(bundle):
    (bundle.path / "weights.safetensors").write_bytes(b"short")
    assert "5 bytes, the manifest says 7000" in refusal(bundle, verify=False)


def edit(bundle, **changes):
    table = {**json.loads((bundle.path / MANIFEST).read_text()), **changes}
    (bundle.path / MANIFEST).write_text(json.dumps(table))


def test_newer_schema(bundle):
    edit(bundle, schema=SCHEMA + 1, something_new=True)
    assert f"schema {SCHEMA + 1} is newer" in refusal(bundle)


@pytest.mark.parametrize("changes", [{"schema": "x"}, {"unknown": 1}, {"schema": 0}, {"files": {"../x": {}}},
                                     {"files": {"/etc/passwd": {}}}, {"files": 3}, {"files": []},
                                     {"files": {"model.onnx": 1}}, {"files": {"model.onnx": {"bytes": 5}}},
                                     {"context": "many"}, {"report": {}}, {"runtime": None}, {"config": 1}])
def test_manifest_that_cannot_be(bundle, changes):
    edit(bundle, **changes)
    assert "damaged" in refusal(bundle)


def test_a_config_without_what_sizes_need(bundle):
    with pytest.raises(EdgeAwqError, match="damaged, its config has no num_layers, hidden_size"):
        list(describe_bundle(bundle))
    with pytest.raises(EdgeAwqError, match="damaged, its config has no num_layers, hidden_size"):
        sizes_of_bundle(bundle)


@pytest.mark.parametrize(("kept", "shown"), [("awq", "norm 0.5"), ("gptq", "norm 0.75/0.25")])
def test_ratios_are_of_the_scales_that_were_kept(bundle, kept, shown):
    fold = {"source": "norm", "ratio": 0.5, "gptq_ratios": [0.75, 0.25]}
    part = {"name": "blocks.0", "loss_rtn": 0.5, "loss_awq": 0.25, "loss_gptq": 0.125, "kept": kept, "folds": [fold],
            "clipped": {}}
    config = dict.fromkeys(("num_layers", "hidden_size", "num_heads", "head_size", "num_kv_heads", "vocab_size",
                            "max_positions", "windows"), 1)
    edit(bundle, report=[part], config=config)
    *_, line = describe_bundle(Bundle.open(bundle.path))
    assert line.startswith("  blocks.0") and line.endswith(f"   {shown}")


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_manifest_that_is_not_one(bundle, content):
    (bundle.path / MANIFEST).write_text(content)
    assert "damaged" in refusal(bundle)


def test_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(EdgeAwqError, match="is not a bundle"):
        Bundle.open(tmp_path)


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "r.json", "old")
    monkeypatch.setattr("edge_awq.bundle.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "r.json", "new")
    assert caught.value.filename == str(tmp_path / "r.json")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.json", "old")]
