"""Compiling a bundle, over a scripted TensorRT: what is asked of it, what is stored, and everything that goes wrong."""

from __future__ import annotations

import dataclasses
import functools
import sys

import pytest
from fake_cuda import ORIN, FakeCuda
from fake_tensorrt import make_tensorrt
from toy_bundle import CHUNK, CONFIG, CONTEXT, MOST_ROWS, TENSORS, Notes, install, make_bundle

from edge_awq import plugins
from edge_awq.bundle import Bundle
from edge_awq.engine.trt import compile_bundle, open_engine
from edge_awq.engine.trt.bindings import TOUCHED, check_version
from edge_awq.engine.trt.build_progress import UNITS
from edge_awq.errors import EdgeAwqError

RTX_ALONE = {"BuilderFlag.REQUIRE_USER_ALLOCATION", "DynamicShapesKernelSpecializationStrategy.EAGER",
             "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
             "IExecutionContext.is_stream_capturable", "ICudaEngine.create_runtime_config",
             "IRuntimeConfig.set_execution_context_allocation_strategy", "IRuntimeConfig.create_runtime_cache",
             "IRuntimeConfig.set_runtime_cache", "IRuntimeCache.serialize", "IRuntimeCache.deserialize"}
OPTIONAL = {"8.6.0": {"IProgressMonitor", "PreviewFeature.ALIASED_PLUGIN_IO_10_03",
                      "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ExecutionContextAllocationStrategy.USER_MANAGED",
                      "ICudaEngine.create_execution_context", "ICudaEngine.device_memory_size_v2",
                      "IExecutionContext.set_device_memory"},
            "10.3.0": {"NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "PreviewFeature.PROFILE_SHARING_0806",
                       "ICudaEngine.device_memory_size", "ICudaEngine.create_execution_context_without_device_memory"}}


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


def engines(bundle):
    folder = bundle.path / "engines"
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def refusal(bundle, action=compile_bundle):
    """The one error; the bundle is as it was, and opens."""
    before = engines(bundle)
    with pytest.raises(EdgeAwqError) as caught:
        action(bundle.path)
    assert caught.value.hint and "\n" not in caught.value.message
    assert [name for name in engines(bundle) if not name.endswith(".timings")] == before
    Bundle.open(bundle.path)
    return f"{caught.value.message} | {caught.value.hint}"


@pytest.mark.parametrize("version", ["8.6.0", "10.3.0"])
def test_fake_has_what_is_touched_and_nothing_else(version):
    module = make_tensorrt(FakeCuda(), version)

    def is_missing(name):
        try:
            functools.reduce(getattr, name.split("."), module)
        except AttributeError:
            return True
        return False

    assert {name for name in TOUCHED if is_missing(name)} == OPTIONAL[version] | RTX_ALONE
    assert set(vars(module)) <= {name.split(".")[0] for name in TOUCHED}
    toys = ("array", "compute", "compile_kernels", "state", "kernels_for")  # its own
    helpers = {f"IExecutionContext.{name}" for name in toys}
    for kind in ("Builder", "INetworkDefinition", "OnnxParser", "IBuilderConfig", "ICudaEngine", "IExecutionContext",
                 "ITensor", "Runtime", "IPluginRegistry", "IOptimizationProfile", "ITimingCache", "ParserError"):
        names = {f"{kind}.{name}" for name in vars(getattr(module, kind)) if not name.startswith("_")}
        assert names - helpers <= set(TOUCHED)


def test_compiles_both_passes_with_the_cache_in_place(bundle, monkeypatch):
    script = {}
    install(monkeypatch, script=script)
    progress = Notes()
    report = compile_bundle(bundle.path, progress)
    assert report.passes == {"decode": MOST_ROWS, "prefill": CHUNK}
    assert report.file.startswith("engines/tensorrt-10.3.0-") and "-sm87-16sms-MAXN-contract" in report.file
    assert (bundle.path / report.file).stat().st_size == report.engine_bytes
    assert report.peak_host_bytes > 10e6  # more than an empty Python
    assert [network.flags for network in script["networks"]] == [2, 2]  # strongly typed: bit 1 of this version
    for config, rows in zip(script["configs"], (MOST_ROWS, CHUNK), strict=True):
        assert config.previews == {"aliased": True} and config.flags == []
        assert config.tactic_sources is None
        (profile,) = config.profiles
        usual = 1 if rows == MOST_ROWS else rows
        assert profile.shapes["input_ids"] == [(1, 1), (1, usual), (1, rows)]
        assert profile.shapes["past_value_1"] == [(1, 1, 1, 8), (1, 1, CONTEXT, 8), (1, 1, CONTEXT, 8)]
        assert set(profile.shapes) == {"input_ids", *(f"past_{part}_{i}" for part in ("key", "value") for i in (0, 1))}
    assert progress.units == {"compile decode": UNITS, "compile prefill": UNITS}
    assert script["library"] == "libplugins.so"


def test_8_6_is_told_types_and_batch(bundle, monkeypatch):
    script = {}
    install(monkeypatch, version="8.6.2", script=script)
    compile_bundle(bundle.path)
    config, network = script["configs"][0], script["networks"][0]
    assert network.flags == 1 and config.flags == ["fp16", "int8"] and config.previews == {"shared": True}
    assert config.tactic_sources == 0
    assert {each.name for each in network.inputs if each.dynamic_range} == {f"qk{MOST_ROWS}"}
    assert next(each for each in network.inputs if each.name == "past_length").shape == (1, 2)


@pytest.mark.parametrize("version", ["10.3.0", "8.6.2"])
def test_cache_of_bytes(bundle, monkeypatch, version):
    script, progress = {}, Notes()
    install(monkeypatch, version=version, script=script)
    plain = compile_bundle(bundle.path)
    report = compile_bundle(bundle.path, progress, kv_bits=8)
    assert "-kv8-" in report.file and "-kv16-" in plain.file and not progress.notes
    assert compile_bundle(bundle.path, kv_bits=8) is None and compile_bundle(bundle.path, kv_bits=16) is None
    (profile,) = script["configs"][-1].profiles
    assert profile.shapes["past_value_1"] == [(1, 1, 1, 8), (1, 1, CONTEXT, 8), (1, 1, CONTEXT, 8)]
    assert profile.shapes["past_value_scale_1"] == [(1, 1, 1), (1, 1, CONTEXT), (1, 1, CONTEXT)]
    ranged = {each.name for network in script["networks"][-2:] for each in (*network.inputs, *network.outputs)
              if each.dynamic_range}
    caches = {f"{time}_{part}_{i}" for time in ("past", "present") for part in ("key", "value") for i in (0, 1)}
    assert ranged == ({*caches, f"qk{MOST_ROWS}", f"qk{CHUNK}"} if version == "8.6.2" else set())


def test_self_contained_engine_with_a_cache_of_bytes(bundle, monkeypatch):
    install(monkeypatch)
    report = compile_bundle(bundle.path, weights_inside=True, kv_bits=8)
    assert "-kv8_inside-" in report.file
    assert open_engine(bundle, kv_bits=8).provenance["file"] == report.file
    assert "-kv16-" in open_engine(bundle).provenance["file"]


def small_gpu(memory_mib):
    """A graphics card that no profile knows: 1000 MiB are kept for system and runtime, 512 MiB for the builder."""
    return (dataclasses.replace(ORIN, name="Small", integrated=False, memory_bytes=memory_mib << 20),)


def big_cache(tmp_path):
    """8 MiB of KV cache a token: 2 GiB for the bundle's context of 256 tokens."""
    return make_bundle(tmp_path, config={**CONFIG, "head_size": 1 << 20})


def test_report_has_the_forecast_beside_what_was_measured(bundle, monkeypatch):
    install(monkeypatch, gpus=small_gpu(4000))
    assert compile_bundle(bundle.path).forecast_bytes == (600 + 512) << 20
    install(monkeypatch)  # nothing is known about the machine
    assert compile_bundle(bundle.path, fresh=True).forecast_bytes > 0


def test_a_build_that_memory_cannot_hold_is_not_begun(bundle, monkeypatch):
    script = {}
    install(monkeypatch, script=script, gpus=small_gpu(1511))
    assert "takes 1585 MB by forecast" in (said := refusal(bundle)) and "small has 1584 MB" in said
    assert "a machine with 1585 MB or more" in said and not script["networks"]
    install(monkeypatch, script=script, gpus=small_gpu(1512))
    assert compile_bundle(bundle.path) is not None


def test_an_engine_that_could_not_run_here_is_not_compiled(tmp_path, monkeypatch):
    script = {}
    install(monkeypatch, script=script, gpus=small_gpu(2000))
    bundle = big_cache(tmp_path)
    assert "with an empty KV cache; small has 2097 MB" in (said := refusal(bundle)) and not script["networks"]
    assert "--all-targets" in said


def test_a_shorter_context_that_fits_is_named(tmp_path, monkeypatch):
    install(monkeypatch, gpus=small_gpu(2100))
    bundle, progress = big_cache(tmp_path), Notes()
    assert compile_bundle(bundle.path, progress) is not None
    assert "128 of the engine's 256 tokens" in progress.notes[0] and "--context 128" in progress.notes[0]
    assert "or with --kv-bits 8, which holds 256" in progress.notes[0]
    progress = Notes()
    assert compile_bundle(bundle.path, progress, kv_bits=8) is not None and not progress.notes
    install(monkeypatch, gpus=small_gpu(3100))
    progress = Notes()
    assert compile_bundle(bundle.path, progress, fresh=True) is not None and not progress.notes


def test_self_contained_engine_is_another_one(bundle, monkeypatch):
    script, progress = {}, Notes()
    install(monkeypatch, script=script)
    plain = compile_bundle(bundle.path)
    inside = compile_bundle(bundle.path, progress, weights_inside=True)
    assert inside.passes == {"decode": MOST_ROWS} and inside.file != plain.file
    assert script["path"] == str(bundle.path / "model.onnx") and not progress.notes
    names = {each.name for each in script["networks"][-1].inputs}
    caches = (f"past_{part}_{i}" for part in ("key", "value") for i in (0, 1))
    assert names == {"input_ids", "past_length", "sampling", "seed", *caches}
    assert inside.forecast_bytes == plain.forecast_bytes + 4 * sum(each.nbytes for each in TENSORS.values())
    assert compile_bundle(bundle.path) is None and compile_bundle(bundle.path, weights_inside=True) is None


def test_memory_for_weights_inside(bundle, monkeypatch):
    monkeypatch.setattr("edge_awq.engine.trt.forecast.GPU_COPIES", 1 << 20)
    install(monkeypatch, gpus=small_gpu(1600))
    with pytest.raises(EdgeAwqError, match="compiling an engine takes") as caught:
        compile_bundle(bundle.path, weights_inside=True)
    assert caught.value.hint == "without --weights-inside it takes 1585 MB"
    assert compile_bundle(bundle.path) is not None


def test_engine_is_compiled_once(bundle, monkeypatch):
    install(monkeypatch)
    assert compile_bundle(bundle.path) is not None
    assert compile_bundle(bundle.path) is None
    assert compile_bundle(bundle.path, fresh=True) is not None


def test_bundle_with_engines_opens_and_any_file_beside_them_may_lie_there(bundle, monkeypatch):
    install(monkeypatch)
    compile_bundle(bundle.path)
    assert len(engines(bundle)) == 2
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_timings_are_kept_and_strange_ones_begun_anew(bundle, monkeypatch):
    script = {}
    install(monkeypatch, script=script)
    compile_bundle(bundle.path)
    (timings,) = [bundle.path / "engines" / name for name in engines(bundle) if name.endswith(".timings")]
    assert timings.read_bytes() == b"timings"
    assert script["configs"][1].cache.data == b"timings"
    timings.write_bytes(b"other")
    compile_bundle(bundle.path, fresh=True)
    assert script["configs"][2].cache.data == b"" and timings.read_bytes() == b"timings"
    timings.write_bytes(b"other")
    script["build"] = "no kernel"
    with pytest.raises(EdgeAwqError, match="cannot compile the graph: no kernel"):
        compile_bundle(bundle.path, fresh=True)


def test_each_power_mode_has_its_timings(bundle, monkeypatch):
    """Kernels that were the fastest in one may not be in another, which is why it has an engine of its own."""
    for mode in ("MAXN", "MODE_15W"):
        script = {}
        install(monkeypatch, script=script, power_mode=mode)
        compile_bundle(bundle.path)
        assert script["configs"][0].cache.data == b""


@pytest.mark.parametrize(("change", "reason"), [
    ({"gpu": dataclasses.replace(ORIN, compute_capability=(8, 9))}, "compute capability (SM) 87, here it is 89"),
    ({"gpu": dataclasses.replace(ORIN, sm_count=8)}, "number of SMs 16, here it is 8"),
    ({"power_mode": "MODE_30W"}, "power mode MAXN, here it is MODE_30W"),
    ({"version": "10.7.0"}, "TensorRT version 10.3.0, here it is 10.7.0"),
    ({"contract": 99}, "here it is 99"),
    ({"machine": "riscv64"}, "here it is riscv64"),
    ({"graph": True}, "the graph, its lowering or the shapes have changed since"),
])
def test_engine_from_elsewhere_is_left_alone_with_the_reason(bundle, monkeypatch, change, reason):
    install(monkeypatch)
    first = compile_bundle(bundle.path)
    stored = (bundle.path / first.file).read_bytes()
    install(monkeypatch, FakeCuda(change.get("gpu", ORIN)), change.get("version", "10.3.0"),
            power_mode=change.get("power_mode", "MAXN"))
    if "contract" in change:
        monkeypatch.setattr("edge_awq.engine.trt.plan_cache.CONTRACT_VERSION", change["contract"])
    if "machine" in change:
        monkeypatch.setattr("platform.machine", lambda: change["machine"])
    if "graph" in change:
        monkeypatch.setattr("edge_awq.engine.trt.build.shape_settings", lambda bundle, form: {"lowering": 99})
    progress = Notes()
    second = compile_bundle(bundle.path, progress)
    (note,) = progress.notes
    assert note.startswith(first.file.removeprefix("engines/")) and reason in note
    assert second.file != first.file and (bundle.path / first.file).read_bytes() == stored


def test_file_of_another_name_is_left_alone(bundle, monkeypatch):
    install(monkeypatch)
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "mine.engine").write_bytes(b"x")
    progress = Notes()
    compile_bundle(bundle.path, progress)
    assert "mine.engine is not used" in progress.notes[0]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: b"",
                                    lambda data: b"\xff" * 100])
def test_damaged_engine_is_compiled_anew(bundle, monkeypatch, damage):
    install(monkeypatch)
    path = bundle.path / compile_bundle(bundle.path).file
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    progress = Notes()
    open_engine(Bundle.open(bundle.path), progress=progress).close()
    assert "damaged; it is compiled anew" in progress.notes[0] and path.read_bytes() == whole


def test_prompts_run_in_decode_passes_where_no_kernel_takes_them(bundle, monkeypatch):
    install(monkeypatch, script={"prefill": "CachedAttention: 64 tokens are too many"})
    progress = Notes()
    assert compile_bundle(bundle.path, progress).passes == {"decode": MOST_ROWS}
    assert "8 tokens at a time" in progress.notes[0] and "64 tokens are too many" in progress.notes[0]


@pytest.mark.parametrize(("script", "said"), [
    ({"parser": "no creator for Int4MatMul"}, "no creator for Int4MatMul"),
    ({"build": "could not find any implementation"}, "could not find any implementation"),
    ({"build": "Cuda failure: out of memory"}, "out of memory while TensorRT compiled"),
    ({"no_builder": "CUDA initialization failure with error: 35"}, "does not start (CUDA initialization failure"),
    ({"registry": True}, "does not take it as a plugin library"),
])
def test_refused_build(bundle, monkeypatch, script, said):
    cuda = install(monkeypatch, script=script)
    assert said in refusal(bundle)
    assert cuda.is_closed


def test_bundle_that_cannot_be_written_to(bundle, monkeypatch):
    install(monkeypatch)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "no permission to write" in refusal(bundle)


@pytest.mark.parametrize("version", ["8.5.3", "7.0", "9.3.0", "10.2.0", "12.0.0", "8.4.1.5"])
def test_versions_that_are_refused(bundle, monkeypatch, version):
    install(monkeypatch, version=version)
    assert f"TensorRT {version} is not supported" in refusal(bundle)


@pytest.mark.parametrize("version", ["8.6.0", "8.6.2.3", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_taken(version):
    assert check_version(version, "1.26.4") == tuple(int(part) for part in version.split(".")[:3])


def test_numpy_2_with_tensorrt_8_is_refused():
    with pytest.raises(EdgeAwqError, match=r"8\.6\.0 reads zeros for the weights of numpy 2\.3\.1") as caught:
        check_version("8.6.0", "2.3.1")
    assert "numpy<2" in caught.value.hint
    assert check_version("10.3.0", "2.3.1") == (10, 3, 0)


def test_no_tensorrt(bundle, monkeypatch):
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = refusal(bundle)
    assert "'tensorrt' is not installed" in text and "JetPack" in text


def test_plugin_library_of_another_machine(bundle, monkeypatch, tmp_path):
    load = plugins.load_library
    install(monkeypatch)
    (tmp_path / "libedge_awq_plugins.so").write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(plugins, "find_library", lambda: tmp_path / "libedge_awq_plugins.so")
    monkeypatch.setattr(plugins, "load_library", load)
    assert "is not a plugin library for this machine" in refusal(bundle)


def test_names_of_power_modes_make_file_names(bundle, monkeypatch):
    install(monkeypatch, power_mode="MAXN SUPER/x")
    assert "-MAXN_SUPER_x-" in compile_bundle(bundle.path).file
