"""Engines without plugins, compiled and run on scripted runtimes and GPUs: the right tokens, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
import time
from threading import Thread
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from fake_cuda import ORIN, FakeCuda
from fake_tensorrt import VOCAB, make_tensorrt, toy_logits
from onnx import TensorProto, helper
from toy_bundle import CHUNK, CONTEXT, Notes, check_chat, install, make_bundle

from edge_awq.bundle import Bundle
from edge_awq.cli import main
from edge_awq.engine import load_runtime
from edge_awq.engine.standard import builder, compile_bundle, open_engine
from edge_awq.engine.standard.compile import DECODE_ROWS, WORK
from edge_awq.engine.standard.runtimes import RUNTIMES, find_runtime, load
from edge_awq.engine.trt.plan_cache import compiling
from edge_awq.errors import EdgeAwqError

RTX_4090 = dataclasses.replace(ORIN, name="RTX 4090", compute_capability=(8, 9), sm_count=128, integrated=False)
RTX, TENSORRT = RUNTIMES
SYMMETRIC = {"recipe": "awq", "symmetric": True}
IDS = [(7 * place * place + 3) % VOCAB for place in range(2 * CHUNK + 13)]


def toy_write(lowered, weights, folder):
    """A graph with the inputs and outputs of edge_awq.engine.standard.lower, for the toy of fake_tensorrt."""
    value = helper.make_tensor_value_info
    cache = (TensorProto.FLOAT16, [1, 1, lowered.context, 8])
    caches = [f"{part}_{layer}" for layer in range(2) for part in ("key", "value")]
    integers = [value(name, TensorProto.INT64, shape) for name, shape in
                (("input_ids", [1, "tokens"]), ("past_length", [1]), ("num_logits", [1]))]
    outputs = [value("logits", TensorProto.FLOAT, [1, "num_logits", VOCAB])]
    graph = helper.make_graph([], "toy", [*integers, *(value(f"past_{name}", *cache) for name in caches)],
                              [*outputs, *(value(f"present_{name}", *cache) for name in caches)])
    folder.mkdir()
    onnx.save(helper.make_model(graph), folder / "toy.onnx")
    return folder / "toy.onnx"


def set_up(monkeypatch, gpu=RTX_4090, versions=None, script=None):
    """Fake GPU (None: there is none) and runtimes, by module; what builds is this process. Returns GPU and script."""
    cuda, script = FakeCuda(gpu or ORIN), script if script is not None else {}
    install(monkeypatch, cuda, gpus=(gpu,) if gpu else ())
    for module in ("tensorrt_rtx_bindings", "tensorrt"):
        version = (versions or {RTX.module: "1.7.1.116"}).get(module)
        monkeypatch.setitem(sys.modules, module, make_tensorrt(cuda, version, script) if version else None)
    monkeypatch.setattr("edge_awq.gpus.query_gpus", lambda: (gpu,) if gpu else ())
    package = "edge_awq.engine.standard.compile"
    monkeypatch.setattr(f"{package}.lower", lambda model, weights, options: SimpleNamespace(context=options.context))
    monkeypatch.setattr(f"{package}.write", toy_write)
    monkeypatch.setattr(f"{package}.build_engine", lambda graph, engine, profiles, runtime, advance:
                        builder.build(load(runtime), graph, engine, profiles, advance))
    return cuda, script


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path, quant=SYMMETRIC)


@pytest.fixture(params=[RTX, TENSORRT], ids=lambda runtime: runtime.name)
def machine(request, bundle, monkeypatch):
    """An engine and the GPU that it runs on, for each runtime."""
    versions = {RTX.module: "1.7.1.116"} if request.param is RTX else {TENSORRT.module: "10.16.1.11"}
    cuda, script = set_up(monkeypatch, versions=versions)
    engine = open_engine(bundle)
    yield engine, cuda
    assert script["loaded"] == 1  # weights are in memory once
    engine.close()


def expected(tokens):
    return toy_logits(tokens, 0)  # no input holds weights


def engines(bundle):
    return sorted(path.name for path in (bundle.path / "engines").glob("*") if path.suffix != ".kernels")


@pytest.mark.parametrize("count", [1, DECODE_ROWS, DECODE_ROWS + 1, CHUNK, CHUNK + 3, len(IDS)])
def test_prompt_of_any_length(machine, count):
    engine, _ = machine
    assert np.array_equal(engine.prefill(IDS[:count]), expected(IDS[:count]))
    assert (engine.length, engine.vocab_size, engine.context) == (count, VOCAB, CONTEXT)


def test_steps_taken_back_and_logits_of_every_token(machine):
    engine, cuda = machine
    engine.prefill(IDS[:70])
    for place, token in enumerate(IDS[70:80], 71):
        assert np.array_equal(engine.step(token), expected(IDS[:place]))
    assert cuda.launched == [2] * 9  # the prompt's rest of 6 tokens made graph 1
    engine.truncate(20)
    for count in (1, 3, 2 * DECODE_ROWS + 3):
        engine.truncate(20)
        found = engine.logits(IDS[20 : 20 + count])
        assert np.array_equal(found, [expected(IDS[: 21 + row]) for row in range(count)])


def test_guesses_and_turns_of_a_chat_over_the_cache(machine):
    check_chat(machine[0], expected, [IDS[:20], IDS[5:17], IDS[:20]])


def test_the_next_token_is_chosen_from_logits(machine):
    """How a runtime's own argmax breaks ties is not known."""
    assert not hasattr(machine[0], "step_greedy")


def test_run_log_names_the_runtime(machine, bundle):
    told = machine[0].provenance
    (file,) = engines(bundle)
    assert told["file"] == f"engines/{file}" and told["kv_bits"] == 16
    name, version = ("tensorrt-rtx", "1.7.1") if "rtx" in file else ("tensorrt", "10.16.1")
    assert (told["runtime"], told["runtime_version"]) == (name, version)
    assert {key: each["most_tokens"] for key, each in told["passes"].items()} == {"decode": 8, "prefill": CHUNK}


def test_tensorrt_rtx_compiles_without_a_gpu_and_for_all(bundle, monkeypatch):
    _, script = set_up(monkeypatch, gpu=None)
    progress = Notes()
    report = compile_bundle(bundle.path, progress)
    assert report.passes == {"decode": DECODE_ROWS, "prefill": CHUNK} and report.runtime == "TensorRT-RTX"
    assert engines(bundle) == [report.file.removeprefix("engines/")]
    assert report.file.startswith("engines/tensorrt_rtx-1.7.1-") and f"-context{CONTEXT}-" in report.file
    assert script["configs"][0].flags == ["user allocation"]  # or a CUDA graph could not be captured
    decode, prefill = script["configs"][0].profiles
    assert decode.shapes == {"input_ids": [(1, 1), (1, 1), (1, 8)], "num_logits": [[1], [1], [8]]}
    assert prefill.shapes == {"input_ids": [(1, 1), (1, CHUNK), (1, CHUNK)], "num_logits": [[1], [1], [1]]}
    assert progress.tracked == ["compile plugin-free"] and not progress.notes
    assert compile_bundle(bundle.path) is None and compile_bundle(bundle.path, fresh=True) is not None
    set_up(monkeypatch)
    assert compile_bundle(bundle.path) is None
    assert np.array_equal(open_engine(bundle).prefill(IDS[:9]), expected(IDS[:9]))


def test_tensorrt_compiles_for_the_gpu_at_hand(bundle, monkeypatch):
    set_up(monkeypatch, versions={TENSORRT.module: "11.4.0.106"})
    assert "tensorrt-11.4.0-" in (file := compile_bundle(bundle.path).file) and "-sm89-128sms-MAXN-context" in file
    set_up(monkeypatch, dataclasses.replace(RTX_4090, sm_count=76), {TENSORRT.module: "11.4.0.106"})
    progress = Notes()
    assert compile_bundle(bundle.path, progress) is not None
    assert "number of SMs 128, here it is 76" in progress.notes[0]


def test_a_context_of_its_own_has_an_engine_of_its_own(bundle, monkeypatch):
    set_up(monkeypatch)
    progress = Notes()
    short, whole = (open_engine(bundle, context=context, progress=progress) for context in (20, None))
    assert (short.context, whole.context) == (20, CONTEXT) and len(engines(bundle)) == 2 and not progress.notes
    assert np.array_equal(short.prefill(IDS[:20]), expected(IDS[:20]))
    with pytest.raises(EdgeAwqError, match="do not fit into the context of 20"):
        short.step(1)
    with pytest.raises(EdgeAwqError, match="built for 1 to 256 tokens"):
        open_engine(bundle, context=CONTEXT + 1)


def test_engines_with_and_without_plugins_side_by_side(bundle, monkeypatch):
    set_up(monkeypatch, versions={TENSORRT.module: "10.16.1.11"})
    progress = Notes()
    load_runtime("tensorrt").compile_bundle(bundle.path, progress)
    compile_bundle(bundle.path, progress)
    load_runtime("tensorrt").compile_bundle(bundle.path, progress, fresh=True)
    assert not progress.notes and len([name for name in engines(bundle) if name.endswith(".engine")]) == 2


def test_an_engine_of_another_version_is_left_alone(bundle, monkeypatch):
    set_up(monkeypatch)
    compile_bundle(bundle.path)
    set_up(monkeypatch, versions={RTX.module: "1.8.0.5"})
    progress = Notes()
    compile_bundle(bundle.path, progress)
    assert "TensorRT version 1.7.1, here it is 1.8.0" in progress.notes[0] and len(engines(bundle)) == 2


@pytest.mark.parametrize("capturable", [True, False])
def test_what_cannot_be_captured_is_run_as_it_is(bundle, monkeypatch, capturable):
    cuda, _ = set_up(monkeypatch, script={"capturable": capturable})
    engine = open_engine(bundle)
    for place, token in enumerate(IDS[:5], 1):
        assert np.array_equal(engine.step(token), expected(IDS[:place]))
    assert len(cuda.launched) == (4 if capturable else 0)


@pytest.mark.parametrize(("capability", "versions", "found"), [
    ((8, 9), {RTX.module: "1.7.1.116", TENSORRT.module: "10.16.1"}, RTX),
    ((8, 9), {TENSORRT.module: "10.15.1"}, TENSORRT),
    ((9, 0), {RTX.module: "1.7.1", TENSORRT.module: "11.4.0"}, TENSORRT),
    ((8, 7), {TENSORRT.module: "10.16.1"}, TENSORRT), (None, {RTX.module: "1.9.0", TENSORRT.module: "11.4.0"}, RTX),
])
def test_which_runtime_is_taken(monkeypatch, capability, versions, found):
    set_up(monkeypatch, versions=versions)
    gpu = capability and dataclasses.replace(ORIN, compute_capability=capability)
    runtime, toolkit = find_runtime(gpu)
    assert runtime is found and toolkit.version_text == ".".join(versions[found.module].split(".")[:3])


@pytest.mark.parametrize(("capability", "versions", "said"), [
    ((8, 7), {RTX.module: "1.7.1", TENSORRT.module: "10.3.0"},
     ["TensorRT-RTX has no engines for Orin (compute capability 8.7)",
      "TensorRT 10.3.0 has no engines without plugins, 10.15 to 11.x have"]),
    ((8, 9), {RTX.module: "1.6.1"},
     ["TensorRT-RTX 1.6.1 has no engines without plugins, 1.7", "TensorRT is not installed"]),
    ((8, 9), {TENSORRT.module: "12.0.1"}, ["TensorRT-RTX is not installed", "TensorRT 12.0.1 has no engines"]),
    (None, {TENSORRT.module: "11.4.0"}, ["TensorRT builds for a GPU that is here, and none is"]),
])
def test_where_there_is_no_runtime_each_says_why(bundle, monkeypatch, capability, versions, said):
    gpu = capability and dataclasses.replace(ORIN, compute_capability=capability)
    set_up(monkeypatch, gpu, versions)
    words = refusal(bundle, compile_bundle)
    assert all(each in words for each in said) and "edge-awq[rtx]" in words


def refusal(bundle, action, *arguments, **options):
    """The one error; nothing lies in the bundle that did not before, and it opens."""
    before = engines(bundle)
    with pytest.raises(EdgeAwqError) as caught:
        action(bundle.path if action is compile_bundle else bundle, *arguments, **options)
    assert caught.value.hint and "\n" not in caught.value.message and engines(bundle) == before
    Bundle.open(bundle.path)
    return f"{caught.value.message} | {caught.value.hint}"


def test_zero_points_are_refused_before_anything_else(tmp_path, monkeypatch):
    _, script = set_up(monkeypatch, versions={RTX.module: "1.6.1"})
    bundle = make_bundle(tmp_path, quant={"recipe": "awq", "symmetric": False})
    for action in (compile_bundle, open_engine):
        assert "has zero points" in (said := refusal(bundle, action)) and "--symmetric" in said
    assert not script["configs"]


@pytest.mark.parametrize(("options", "said"), [
    ({"kv_bits": 8}, "without plugins keys and values have 16 bits"), ({"threads": 2}, "leave the threads out"),
])
def test_impossible_arguments(bundle, monkeypatch, options, said):
    set_up(monkeypatch)
    assert said in refusal(bundle, open_engine, **options)


@pytest.mark.parametrize(("script", "said"), [
    ({"parser": "no importer for TensorScatter"}, "TensorRT-RTX 1.7.1 cannot read it: Toy toy: no importer"),
    ({"build": "no kernel"}, "TensorRT-RTX 1.7.1 cannot build it: no kernel"),
    ({"no_builder": "no driver"}, "TensorRT-RTX 1.7.1 does not start (no driver)"),
    ({"engine": "Version tag does not match"}, "TensorRT-RTX 1.7.1 cannot load the engine (Version tag"),
])
def test_failures_in_the_runtimes_own_words(bundle, monkeypatch, script, said):
    cuda, _ = set_up(monkeypatch, script=script)
    if "engine" in script:
        compile_bundle(bundle.path)
    assert said in refusal(bundle, open_engine) and cuda.is_closed


def test_two_processes_compile_one_after_the_other(bundle, monkeypatch):
    """Both would work in the same folder. The second finds what the first one made."""
    set_up(monkeypatch)
    folder, notes, reports = bundle.path / "engines", Notes(), []
    made = bundle.path / compile_bundle(bundle.path).file
    made.rename(bundle.path / "aside")
    second = Thread(target=lambda: reports.append(compile_bundle(bundle.path, notes)))
    with compiling(folder, Notes()):
        second.start()
        while not notes.notes and second.is_alive():
            time.sleep(0.01)
        (bundle.path / "aside").rename(made)
    second.join()
    assert notes.notes == ["another process compiles an engine of this bundle; waiting for it"] and reports == [None]


def test_what_a_killed_build_left_is_removed(bundle, monkeypatch):
    set_up(monkeypatch)
    (bundle.path / "engines" / WORK).mkdir(parents=True)
    (bundle.path / "engines" / WORK / "standard.weights").write_bytes(b"x")
    compile_bundle(bundle.path)
    assert WORK not in engines(bundle)


def test_memory_for_the_weights_inside(bundle, monkeypatch):
    monkeypatch.setattr("edge_awq.engine.trt.forecast.GPU_COPIES", 1 << 20)
    set_up(monkeypatch, dataclasses.replace(RTX_4090, name="Small", memory_bytes=1600 << 20))
    assert "without --plugin-free it takes 1585 MB" in refusal(bundle, compile_bundle)


def test_command_line(bundle, tmp_path, monkeypatch):
    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    set_up(monkeypatch)
    done = run("compile", bundle.path, "--plugin-free")
    assert done.exit_code == 0 and "decode of up to 8 tokens, prefill of up to 64 tokens" in done.stderr
    assert "is there" in run("compile", bundle.path, "--plugin-free").stderr
    for other in (["--kv-bits", 8], ["--weights-inside"]):
        assert run("compile", bundle.path, "--plugin-free", *other).exit_code == 2
    (tmp_path / "cpu").mkdir()
    for_cpu = make_bundle(tmp_path / "cpu", runtime="onnxruntime", target="cpu")
    assert run("compile", for_cpu.path, "--plugin-free").exit_code == 1
    with pytest.raises(EdgeAwqError, match="'onnxruntime' has no engines without plugins"):
        load_runtime("onnxruntime", plugin_free=True)
