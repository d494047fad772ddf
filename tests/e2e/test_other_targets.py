"""Building for a device whose engines are compiled there."""

import json
import sys

from models import assert_refused, command, make_model

from edge_awq.target import profile_folder


def test_bundle_for_a_jetson(tmp_path, monkeypatch):
    make_model(tmp_path / "model")
    bundle = tmp_path / "b"
    built = command("build", tmp_path / "model", "--target", "jetson-orin-nano-8gb", "-o", bundle, "--recipe", "rtn")
    assert built.code == 0
    assert "its tensorrt engine is compiled on the device" in built.err and "inspect" in built.err
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["target"], manifest["runtime"], manifest["engine"]) == ("jetson-orin-nano-8gb", "tensorrt", None)
    assert manifest["quant"]["head_bits"] == 4
    assert command("inspect", bundle).code == 0
    for attempt in (("run", bundle, "-p", "x"), ("compile", bundle)):
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
        assert_refused(command(*attempt), "pycuda", "--target cpu")
    assert not (bundle / "engines").exists()


def test_bundle_for_a_processor_needs_no_compilation(tmp_path):
    make_model(tmp_path / "model")
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--recipe", "rtn").code == 0
    assert_refused(command("compile", tmp_path / "b"), "runs on onnxruntime", "edge-awq run")


def test_own_profile_of_an_unknown_kind_is_refused_before_the_work(tmp_path):
    make_model(tmp_path / "model")
    text = (profile_folder() / "cpu.toml").read_text().replace('"onnxruntime"', '"openvino"')
    (tmp_path / "own.toml").write_text(text)
    refused = command("build", tmp_path / "model", "--target", tmp_path / "own.toml", "-o", tmp_path / "b")
    assert_refused(refused, "openvino", "onnxruntime, tensorrt")
    assert not list(tmp_path.glob("b*"))
