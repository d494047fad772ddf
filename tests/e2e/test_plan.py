"""Plans: their bytes against real bundles, go or no-go, and changes that do make a model fit."""

import json
import math

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from models import assert_refused, command, make_model

import edge_awq.plan
from edge_awq.bundle import Bundle
from edge_awq.detect import Machine
from edge_awq.layout import plan_layout
from edge_awq.model.decoder import load_decoder
from edge_awq.plan import Request, plan_for
from edge_awq.plan.counts import counts_in
from edge_awq.plan.figure import read_figure
from edge_awq.plan.sizes import sizes_of, sizes_of_bundle
from edge_awq.target import QuantSpec, find_target, load_targets, profile_folder
from tiny import ARCHITECTURES, UNGROUPED, make_tiny

GIB = 1 << 30


def one(model, target, **asked):
    return plan_for(model, target, Request(**asked))[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    make_model(folder / "model", "llama2")
    for precision in ("w4a16", "fp16"):
        assert command("build", folder / "model", "-o", folder / precision, "--recipe", "rtn",
                       "--precision", precision).code == 0
    return folder


@pytest.mark.parametrize("precision", ["w4a16", "fp16"])
def test_a_config_alone_says_what_the_bundle_weighs(built, precision):
    bundle = Bundle.open(built / precision)
    foreseen = sizes_of(counts_in(built / "model"), precision, find_target("cpu").quant, bundle.manifest.context)
    assert foreseen == sizes_of_bundle(bundle)
    assert 0 <= bundle.weights.stat().st_size - foreseen.weight_bytes < 16_384  # the file's header


@pytest.mark.parametrize(("precision", "head_bits", "group_size"), [("w4a16", 16, 64), ("w4a16", 4, 128),
                                                                    ("w4a16", 8, 128), ("fp16", 16, 128)])
@pytest.mark.parametrize("architecture", ["llama3", "tinyllama", "llama-wide-heads"])
def test_bytes_are_those_of_the_layout(tmp_path, architecture, precision, head_bits, group_size):
    make_model(tmp_path, architecture, hidden_size=192, intermediate_size=320, num_attention_heads=6,
               num_key_value_heads=2)
    quant = QuantSpec(group_size, False, head_bits)
    layout = plan_layout(load_decoder(tmp_path), precision, quant, 64)
    assert sizes_of(counts_in(tmp_path), precision, quant, 64).weight_bytes == sum(spec.nbytes for spec in layout)


@pytest.mark.parametrize("precision", ["w4a16", "fp16"])
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(UNGROUPED)))
def test_bytes_of_every_family_but_for_what_config_json_does_not_say(tmp_path, architecture, precision):
    make_tiny(tmp_path, architecture)
    decoder, quant = load_decoder(tmp_path), QuantSpec(64, False, 8)
    known = sum(spec.nbytes for spec in plan_layout(decoder, precision, quant, 64)
                if not spec.name.endswith((".bias", "act_scale.weight")))
    foreseen = sizes_of(counts_in(tmp_path), precision, quant, 64).weight_bytes
    assert foreseen == known


def test_a_bundle_is_planned_from_its_own_bytes(built):
    answer = json.loads(command("plan", built / "w4a16", "--target", "jetson-orin-nano-4gb", "--json").out)
    assert (answer["precision"], answer["fits"]) == ("w4a16", True)
    assert answer["memory"]["weights_bytes"] < (built / "w4a16" / "weights.safetensors").stat().st_size
    assert answer["speed"][0]["limit_tok_s"] == pytest.approx(51.2e9 / answer["speed"][0]["bytes_per_token"])


@pytest.mark.parametrize(("model", "target", "asked", "fits"), [
    ("tinyllama-1.1b", "jetson-orin-nano-4gb", {}, True),
    ("llama-2-7b", "jetson-orin-nano-8gb", {}, False),
    ("llama-2-7b", "rtx-4070-laptop", {"context": 512}, True),
    ("llama-2-7b", "rtx-4070-laptop", {"precision": "fp16", "context": 204}, False),
    ("llama-2-13b", "rtx-4070-laptop", {"context": 204}, True),  # the figure has it at 33 tok/s
    ("llama-2-13b", "rtx-4090", {"precision": "fp16", "context": 204}, False),
    ("mpt-30b", "rtx-4090", {"context": 204}, True),
    ("mpt-30b", "jetson-orin-nx-16gb", {"context": 204}, False),
    ("falcon-7b", "rtx-4070-laptop", {"context": 204}, True),
])
def test_go_or_no_go(model, target, asked, fits):
    plan = one(model, target, **asked)
    assert plan.fits is fits
    assert bool(plan.changes) is not fits


@pytest.mark.parametrize(("model", "target", "asked"), [
    ("llama-2-7b", "jetson-orin-nano-8gb", {}), ("llama-2-13b", "rtx-4090", {"precision": "fp16", "context": 512}),
    ("llama-2-7b", "rtx-4070-laptop", {"precision": "fp16"}), ("mpt-30b", "jetson-orin-nx-16gb", {}),
])
def test_every_change_makes_it_fit(model, target, asked):
    changes = one(model, target, **asked).changes
    assert changes
    for change in changes:
        words = change.partition(",")[0].split()
        given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
        where = given.pop("target", target)
        changed = {**asked, **given}
        changed = {name.replace("-", "_"): int(value) if str(value).isdigit() else value
                   for name, value in changed.items()}
        assert one(model, where, **changed).fits, change


def test_longest_context_is_the_last_that_fits():
    longest = one("llama-2-7b", "jetson-orin-nano-8gb").longest_context
    assert one("llama-2-7b", "jetson-orin-nano-8gb", context=longest).fits
    assert not one("llama-2-7b", "jetson-orin-nano-8gb", context=longest + 128).fits


def test_memory_adds_up():
    memory = one("llama-2-7b", "jetson-agx-orin-64gb", context=2048).memory
    assert memory.kv_cache == 2048 * 524_288
    assert math.isclose(memory.run_peak / GIB, 3.44 + 1.0 + 0.05 + (600 + 256 + 1536) / 1024, abs_tol=0.03)
    assert memory.available == 62841 << 20


def test_cache_of_8_bits():
    """Half of the fp16 cache, and a float32 scale for each of 32 keys and 32 values in 32 layers."""
    halves, few = (one("llama-2-7b", "jetson-orin-nano-8gb", kv_bits=bits) for bits in (16, 8))
    assert few.memory.kv_cache == 4096 * (524_288 // 2 + 32 * 64 * 4) and few.to_dict()["kv_bits"] == 8
    assert few.fits and not halves.fits and halves.changes[0] == "--kv-bits 8"
    assert few.longest_context == 4096 > halves.longest_context
    saved = halves.speeds[0].bytes_per_token - few.speeds[0].bytes_per_token
    assert saved == 104 * (524_288 // 2 - 32 * 64 * 4)
    shown = command("plan", "llama-2-7b", "--target", "jetson-orin-nano-8gb", "--kv-bits", 8)
    assert "KV cache of 8 bits" in shown.out


def test_cache_of_8_bits_where_there_is_none():
    refused = command("plan", "llama-2-7b", "--target", "cpu", "--kv-bits", 8)
    assert_refused(refused, "no KV cache of 8 bits", "--kv-bits")
    matrix = {plan.target.name: plan.kv_bits for plan in plan_for("llama-2-7b", None, Request(kv_bits=8))}
    assert matrix["cpu"] == 32 and matrix["rtx-4090"] == 8


def test_power_mode_costs_speed_and_bounds_energy():
    speeds = {mode: one("llama-2-7b", "jetson-agx-orin-64gb", mode=mode).speeds[0]
              for mode in ("MAXN", "MODE_30W", "MODE_15W")}
    assert speeds["MAXN"].bound == "memory" and speeds["MODE_15W"].bound == "instructions"
    assert speeds["MODE_15W"].predicted_tok_s == pytest.approx(6 * 408e6 * 128 / 1.7 / (6.476005376e9 + 131.072e6))
    assert speeds["MODE_15W"].limit_tok_s == pytest.approx(speeds["MAXN"].limit_tok_s * 136.5 / 204.8)
    for mode, watts in (("MAXN", 60), ("MODE_30W", 30), ("MODE_15W", 15)):
        assert speeds[mode].j_per_token == pytest.approx(watts / speeds[mode].predicted_tok_s)


def test_sliding_windows_read_less():
    speeds = one("mistral-7b", "h200", context=32768).speeds
    assert speeds[-1].bytes_per_token - speeds[0].bytes_per_token == (4096 - 104) * 2 * 32 * 1024 * 2


def test_this_machine_in_its_power_mode(monkeypatch):
    orin = Machine("Jetson", ("nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"), (), 64 << 30, "30W", 612.0)
    monkeypatch.setattr(edge_awq.plan, "read_machine", lambda: orin)
    plan = one("llama-2-7b", "auto")
    assert (plan.target.name, plan.mode) == ("jetson-agx-orin-64gb", "MODE_30W")
    assert one("llama-2-7b", "auto", mode="MAXN").mode == "MAXN"


def test_of_a_hub_id_only_the_config_is_fetched(monkeypatch, built):
    asked = []

    def fetch(repo, name, revision):
        asked.append((repo, name, revision))
        return str(built / "model" / "config.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert one("org/name@v1", "rtx-4090").memory.weights == one(str(built / "model"), "rtx-4090").memory.weights
    assert asked == [("org/name", "config.json", "v1")]


@pytest.mark.parametrize(("error", "words"), [(LocalEntryNotFoundError, "hub cannot be reached"),
                                              (OSError, "does not give its config.json")])
def test_hub_that_fails(monkeypatch, error, words):
    def fetch(*_, **__):
        raise error("no way")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert_refused(command("plan", "org/name", "--target", "cpu"), "org/name", words)


def test_unknown_watts_and_unknown_bandwidth_are_null():
    assert one("llama-2-7b", "jetson-orin-nx-16gb", mode="MAXN_SUPER").speeds[0].j_per_token is None
    speed = one("tinyllama-1.1b", "cpu").speeds[0]
    assert (speed.limit_tok_s, speed.predicted_tok_s) == (None, None)


def test_a_computer_without_gpu_whose_bandwidth_is_known(tmp_path):
    text = (profile_folder() / "cpu.toml").read_text().replace('"cpu"', '"pi"')
    text += ('[device]\nmemory_mib = 8000\nunified_memory = true\nbandwidth_gb_s = 17.1\n'
             '[forecast]\nefficiency = 0.6\nsource = "mine"\n')
    (tmp_path / "pi.toml").write_text(text)
    plan = one("tinyllama-1.1b", str(tmp_path / "pi.toml"))
    speed = plan.speeds[0]
    assert (plan.fits, plan.memory.available) == (True, 8000 << 20)
    assert speed.limit_tok_s == pytest.approx(17.1e9 / speed.bytes_per_token)
    assert speed.predicted_tok_s == pytest.approx(0.6 * speed.limit_tok_s)
    assert plan.memory.kv_cache == 2 * 22 * 256 * 4 * plan.context  # float32 there


def test_words_of_a_plan():
    shown = command("plan", "llama-2-7b", "--target", "jetson-agx-orin-64gb").out
    for words in ("fits: yes", "predicted, not measured:\n  80% of the memory limit", "Edge-LLM 77",
                  "39 tok/s, 70% of the limit 55.6", "HF FP16    11 tok/s, 71% of the limit", "power mode MAXN"):
        assert words in shown, words
    slow = command("plan", "llama-2-7b", "--target", "jetson-agx-orin-64gb", "--mode", "MODE_15W").out
    assert "where that is less instructions bound it: 1.7 per weight" in slow and "AWQ paper" not in slow
    refused = command("plan", "llama-2-7b", "--target", "jetson-orin-nano-8gb").out
    assert "fits: NO" in refused and "it would with --context" in refused


def test_memory_is_shown_line_by_line_as_in_the_json():
    arguments = ("plan", "llama-2-7b", "--target", "jetson-orin-nano-8gb")
    memory = json.loads(command(*arguments, "--json").out)["memory"]
    lines = {line[:35].strip(): line[35:].strip() for line in command(*arguments).out.splitlines()}
    for words, key in (("weights", "weights"), ("KV cache", "kv_cache"), ("workspace, at most", "workspace"),
                       ("runtime's context", "runtime"), ("page cache during upload", "page_cache"),
                       ("operating system, display", "system"), ("needed while running", "run_peak"),
                       ("needed while compiling the engine", "build_peak"), ("there is", "available")):
        assert lines[words] == f"{memory[f'{key}_bytes'] / GIB:.2f}", words
    assert memory["page_cache_bytes"] and memory["build_peak_bytes"]


def test_every_value_of_the_figure_is_shown_as_a_share_of_its_limit():
    for shape in {seed.shape for seed in read_figure()}:
        seeds = [seed for seed in read_figure() if seed.shape == shape]
        lines = [line.strip() for line in command("plan", shape, "--all-targets").out.splitlines()]
        shown = [line for line in lines if line.startswith(("HF FP16 ", "own FP16 ", "own W4A16 "))]
        assert sorted(line.split()[2] for line in shown) == sorted(
            "OOM" if seed.tok_s is None else f"{seed.tok_s:g}" for seed in seeds)
        for seed in seeds:
            limit = seed.limit_tok_s()
            words = "OOM" if seed.tok_s is None else f"tok/s, {seed.tok_s / limit:.0%} of the limit {limit:.1f}"
            assert any(line.endswith(words) for line in shown), seed


def test_matrix_has_a_row_for_every_target():
    shown = command("plan", "mpt-30b", "--all-targets").out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert {target.name for target in load_targets()} <= set(rows)
    assert rows["rtx-4070-laptop"][2] == "NO" and rows["jetson-agx-orin-64gb"][2] == "yes"
    listed = json.loads(command("plan", "mpt-30b", "--all-targets", "--json").out)
    assert len(listed) == len(load_targets())


def test_bad_input(tmp_path, built):
    assert_refused(command("plan", "llama-2-8b"), "llama-2-8b", "llama-2-7b")
    assert_refused(command("plan", tmp_path, "--target", "cpu"), "config.json")
    assert_refused(command("plan", "llama-2-7b", "--target", "orin"), "orin", "jetson-agx-orin-64gb")
    assert_refused(command("plan", "llama-2-7b", "--target", "rtx-4090", "--mode", "15W"), "15W", "450W")
    assert_refused(command("plan", "llama-2-7b", "--target", "rtx-4090", "--context", "9999"), "9999", "4096")
    assert_refused(command("plan", built / "w4a16", "--target", "cpu", "--precision", "fp16"), "w4a16", "fp16")
    assert command("plan", "llama-2-7b", "--all-targets", "--target", "cpu").code == 2


def test_a_target_too_small_to_compile_on(tmp_path):
    text = (profile_folder() / "jetson-orin-nano-4gb.toml").read_text().replace("= 3620", "= 1800")
    (tmp_path / "small.toml").write_text(text)
    assert one("tinyllama-1.1b", str(tmp_path / "small.toml")).changes[0].startswith("nothing on this target")


def test_planning_needs_no_torch(monkeypatch):
    import subprocess
    import sys

    code = ("import sys; from edge_awq.plan import Request, plan_for; plan_for('falcon-7b', 'rtx-4090', Request()); "
            "print(sorted({'torch', 'transformers', 'onnx', 'matplotlib'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
