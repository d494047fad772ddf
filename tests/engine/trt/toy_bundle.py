"""A bundle for the toy model of fake_tensorrt.py, and everything that a machine with a GPU has, faked."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import onnx
from fake_cuda import FakeCuda
from fake_tensorrt import VOCAB, make_tensorrt
from onnx import TensorProto, helper

from edge_awq.bundle import Manifest, seal
from edge_awq.detect import Machine
from edge_awq.engine.trt import open_engine
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.prefix import PrefixEngine
from stored import write_weights

CONTEXT, CHUNK, MOST_ROWS = 256, 64, 8
CONFIG = {"vocab_size": VOCAB, "hidden_size": 5, "num_layers": 2, "num_heads": 1, "num_kv_heads": 1, "head_size": 8,
          "windows": [None, None], "max_positions": CONTEXT}
TENSORS = {
    "embed.weight": np.zeros((VOCAB, 5), np.float16),
    "gain": np.linspace(-1, 1, 50, dtype=np.float32),
    "table": np.arange(40, dtype=np.float16).reshape(8, 5),
    "q.qweight": np.arange(24, dtype=np.uint8).reshape(4, 6) * 9,
    "k.qweight": np.arange(12, dtype=np.uint8).reshape(2, 6) + 200,
}


@dataclass(frozen=True)
class ToyWeight:
    """As edge_awq.engine.trt.weight_input.WeightInput."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def expected_weights_sum():
    """Of all bytes as signed integers: what the toy's logits depend on."""
    parts = [TENSORS["gain"].astype(np.float16), TENSORS["table"], TENSORS["q.qweight"], TENSORS["k.qweight"]]
    # The toy sees each input's memory as unsigned bytes.
    return sum(int(part.reshape(-1).view(np.uint8).astype(int).sum()) for part in parts)


def lower(model, options):
    """A graph with the toy's inputs, as edge_awq.engine.trt.lower.lower makes one."""
    rows = options.most_rows or MOST_ROWS
    weights = (ToyWeight("gain", "float16", (50,), ("gain",)), ToyWeight("table", "float16", (8, 5), ("table",)),
               ToyWeight(f"qk{rows}", "int8", (6, 6), ("q.qweight", "k.qweight")))
    weights = () if options.weights_inside else weights  # the toy's logits miss them then
    integers = TensorProto.INT64 if options.tensorrt_major >= 10 else TensorProto.INT32
    past = [1] if options.tensorrt_major >= 10 else [1, 2]
    value = helper.make_tensor_value_info
    cache = (TensorProto.FLOAT16 if options.kv_bits == 16 else TensorProto.INT8, [1, 1, "context", 8])
    caches = {f"{part}_{layer}": cache for layer in range(2) for part in ("key", "value")}
    if options.kv_bits == 8:
        scale = (TensorProto.FLOAT, [1, 1, "context"])
        caches |= {f"{part}_scale_{layer}": scale for layer in range(2) for part in ("key", "value")}
    inputs = [value("input_ids", integers, [1, "tokens"]), value("past_length", integers, past),
              *(value(f"past_{name}", *kind) for name, kind in caches.items()),
              *(value(each.name, helper.np_dtype_to_tensor_dtype(np.dtype(each.dtype)), each.shape)
                for each in weights)]
    logits = [1, 1 if options.last_logits else "tokens", VOCAB]
    outputs = [value("logits", TensorProto.FLOAT, logits),
               *(value(f"present_{name}", *kind) for name, kind in caches.items())]
    if options.choose:
        inputs += [value("sampling", TensorProto.FLOAT, [4]), value("seed", integers, past)]
        outputs.append(value("tokens", integers, logits[:2] if options.tensorrt_major >= 10 else [*logits[:2], 2]))
    lowered = helper.make_model(helper.make_graph([], "toy", inputs, outputs))
    return SimpleNamespace(model=lowered, weights=weights, declined=("rule: node: reason",), most_rows=rows)


@dataclass(frozen=True)
class LoweringOptions:
    """As edge_awq.engine.trt.draft.LoweringOptions."""

    tensorrt_major: int = 10
    most_rows: int | None = None
    last_logits: bool = False
    choose: bool = False
    weights_inside: bool = False
    kv_bits: int = 16


def make_bundle(tmp_path, **changes):
    """A sealed bundle of the toy, without an engine."""
    folder = tmp_path / "work"
    folder.mkdir()
    graph = helper.make_graph([], "canonical", [], [])
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    write_weights(folder / "weights.safetensors", TENSORS)
    manifest = Manifest(
        name="toy", source="toy", revision=None, family="llama", precision="w4a16", config=CONFIG, context=CONTEXT,
        prefill_chunk=CHUNK, target="jetson-agx-orin-64gb", runtime="tensorrt",
        contract_version=CONTRACT_VERSION, quant={}, report=[], engine=None, tool_versions={}, fingerprint="f")
    return seal(folder, dataclasses.replace(manifest, **changes), tmp_path / "toy.bundle")


def install(monkeypatch, cuda=None, version="10.3.0", script=None, power_mode="MAXN", gpus=()):
    """Fake GPU, driver, TensorRT, plugins and lowering; returns the GPU."""
    cuda = cuda or FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(cuda, version, script))
    monkeypatch.setattr("edge_awq.engine.trt.cuda.open_cuda", lambda: cuda)
    monkeypatch.setattr("edge_awq.plugins.find_library", lambda: "libplugins.so")
    monkeypatch.setattr("edge_awq.plugins.load_library", lambda path: None)
    machine = Machine(None, (), gpus, None, power_mode, None)
    monkeypatch.setattr("edge_awq.detect.read_machine", lambda: machine)
    package = "edge_awq.engine.trt"
    monkeypatch.setitem(sys.modules, f"{package}.lower", SimpleNamespace(lower=lower))
    monkeypatch.setitem(sys.modules, f"{package}.draft", SimpleNamespace(LoweringOptions=LoweringOptions))
    if version.startswith("8"):
        monkeypatch.setattr("numpy.__version__", "1.26.4")
    return cuda


def opened(monkeypatch, bundle, version, kv_bits):
    """What a fixture yields: an engine of the bundle and the GPU that it runs on; closed afterwards."""
    cuda = install(monkeypatch, version=version)
    engine = open_engine(bundle, kv_bits=kv_bits)
    yield engine, cuda
    engine.close()


class Notes:
    """Progress that keeps what it hears."""

    def __init__(self):
        self.notes, self.units, self.tracked = [], {}, []

    def track(self, what, total, done=0):
        from contextlib import contextmanager

        @contextmanager
        def body():
            self.tracked.append(what)
            self.units[what] = 0

            def advance(units):
                self.units[what] += units
                assert self.units[what] <= total

            yield advance

        return body()

    def note(self, text):
        self.notes.append(text)


def check_chat(engine, expected, turns):
    """Guesses and turns of a chat give the tokens of plain greedy decoding, and what is in the cache is not run again.

    expected(tokens) are the logits behind them, and ``turns`` the tokens that are said, 12 after each of them answered.
    """
    looked_up = LookupEngine(engine, 3)
    session, text = PrefixEngine(looked_up), []
    for said in turns:
        text += said
        assert session.keep(text) == max(len(text) - len(said) - 1, 0)
        logits = session.prefill(text[session.length :])
        for _ in range(12):
            assert logits.argmax() == expected(text).argmax()
            text.append(int(logits.argmax()))
            logits = session.step(text[-1])
        session.truncate(len(text) - 1)
    assert looked_up.guessed > 0
