"""The recipes against each other on a real language model: the demo model, with and without outlier channels.

Demo KL is the mean KL divergence, in nats per token, of the next-token distribution to the float model's, on 12 windows
of 256 tokens that the model was not trained on, for the model that the bundle's tensors mean: with activations in
float32. The engine of target cpu is held to it; its kernels round activations to 8 bits, which adds a little, and much
where plain rounding leaves outliers in them. The outliers leave the float model's function as it was.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import command
from safetensors.torch import load_file

from edge_awq import load
from edge_awq.engine.trt.lower import LoweringOptions, lower
from edge_awq.engine.trt.reference import LoweredReference
from edge_awq.model.decoder import load_decoder, logits
from injection import inject_outliers
from quantized import divergence, float_weights
from stored import StoredDecoder

KV_WINDOWS, CHUNK = 4, 64
KV_SHARE = 0.01  # of what 4-bit weights cost: a KV cache of 8 bits; 0.0027 was measured
TOP = Path(__file__).resolve().parents[2]
WINDOWS, TOKENS = 12, 256
GOALS = {"awq": 0.35, "best": 0.07}  # of plain rounding's demo KL with outliers x30, by the project's own choice
# What the recipes came to with the built-in text. The demo model is trained where the test runs; another processor's
# order of addition makes another model: 0.34 and 0.0702 on an AMD EPYC, 0.355 and 0.065 on an Intel Xeon. A twentieth
# above the larger is allowed. With text that the model sampled: 0.28 and 0.051, 0.275 and 0.049.
BUILT_IN_REACHES = {"awq": 1.05 * 0.355, "best": 1.05 * 0.0702}


@pytest.fixture(scope="module")
def demo_model():
    """Trained when it is not there yet: some minutes."""
    sys.path.insert(0, str(TOP / "scripts"))
    from make_demo_model import FOLDER, make_demo_model

    return make_demo_model(FOLDER)


@pytest.fixture(scope="module")
def held_out(demo_model):
    """Token ids [windows, tokens], and log-probabilities [windows, tokens, vocabulary] of the float model."""
    from tokenizers import Tokenizer

    from demo_settings import DemoSettings
    from edge_awq.bench.stdlib_text import read_corpus

    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    text = "".join(read_corpus(DemoSettings().text_size).held_out)
    stream = torch.tensor(tokenizer.encode(text[: 40 * WINDOWS * TOKENS], add_special_tokens=False).ids)
    starts = range(0, len(stream) - TOKENS, (len(stream) - TOKENS) // WINDOWS)
    ids = torch.stack([stream[start : start + TOKENS] for start in starts][:WINDOWS])
    return ids, torch.log_softmax(logits(load_decoder(demo_model), ids).double(), dim=-1).numpy()


def log_probabilities(found):
    """Of logits [tokens, vocabulary], in float64."""
    found = found.astype(np.float64) - found.max(axis=-1, keepdims=True)
    return found - np.log(np.exp(found).sum(axis=-1, keepdims=True))


def mean_kl(log_p, log_q):
    """Nats per token."""
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def kl_of_engine(bundle, held_out):
    """Mean KL of a bundle to the float model, by the engine that ships."""
    ids, expected = held_out
    total = 0.0
    with load(bundle) as session:
        for window, log_p in zip(ids.tolist(), expected, strict=True):
            session.reset()
            total += mean_kl(log_p, log_probabilities(session.engine.logits(window)))
    return total / len(ids)


def demo_kl(model, bundle, held_out):
    """Mean KL of what a bundle's tensors mean to the float model ``model``."""
    decoder = load_decoder(model)
    meant = float_weights(load_file(bundle / "weights.safetensors"), decoder.config)
    return divergence(StoredDecoder(model, decoder.family, decoder.config, decoder.checkpoint, meant), decoder,
                      held_out[0])


def build(model, out, *options):
    result = command("build", model, "-o", out, *options)
    assert result.code == 0, result
    return out


@pytest.fixture(scope="module")
def measured(demo_model, held_out, tmp_path_factory):
    """measured(factor, recipe, *options): demo KL, and the same by the engine; outliers of factor 1 are none."""
    folder = tmp_path_factory.mktemp("demo")

    @functools.cache
    def measure(factor, *options):
        model = folder / f"x{factor:.0f}" if factor > 1 else demo_model
        if not model.exists():
            inject_outliers(demo_model, model, factor)
        bundle = build(model, folder / "-".join((f"{factor:.0f}", *options)), "--recipe", *options)
        return demo_kl(model, bundle, held_out), kl_of_engine(bundle, held_out)

    return measure


def test_fp16_is_the_float_model(demo_model, held_out, tmp_path):
    # The checkpoint is 16-bit: what is left is float32 arithmetic in another order, 1e-6 of the logits or so.
    assert kl_of_engine(build(demo_model, tmp_path / "b", "--precision", "fp16"), held_out) < 1e-8


def test_awq_costs_nothing_where_there_is_nothing_to_win(measured):
    # A small net trained in minutes has no outlier channels: both are equal but for chance, some per cent.
    for by in (0, 1):
        rtn, awq, best = (measured(1.0, recipe)[by] for recipe in ("rtn", "awq", "best"))
        assert awq < 1.1 * rtn
        assert best < 0.5 * awq


@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_outliers_that_rounding_suffers_from_are_undone(measured, factor):
    for by in (0, 1):
        natural = measured(1.0, "rtn")[by]
        rtn, awq, best = (measured(factor, recipe)[by] for recipe in ("rtn", "awq", "best"))
        assert rtn > 1.5 * natural  # else the fixture shows nothing
        assert best < 0.5 * awq < 0.25 * rtn
        assert awq < 1.3 * natural  # about the error of a model without outliers


def test_the_engine_adds_little_to_what_awq_leaves(measured):
    for recipe in ("awq", "best"):
        weights, engine = measured(30.0, recipe)
        assert 0 < engine - weights < 2e-4  # 1.2e-4 was measured; 8-bit activations cost it with any weights


def test_the_goals_with_outliers_x30(measured):
    """With the built-in text, little of which is like what the model was trained on, both are at the goals' edge."""
    rtn = measured(30.0, "rtn")[0]
    for recipe, goal in GOALS.items():
        assert measured(30.0, recipe)[0] <= BUILT_IN_REACHES[recipe] * rtn
        assert measured(30.0, recipe, "--calibration", "self")[0] <= goal * rtn


def test_a_kv_cache_of_8_bits_costs_little_beside_4_bit_weights(demo_model, held_out, tmp_path):
    """In the graph that TensorRT gets, lowered and run by the reference."""
    ids, expected = held_out
    bundle = tmp_path / "b"
    assert command("build", demo_model, "-o", bundle, "--target", "jetson-orin-nano-8gb", "--recipe", "rtn").code == 0
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    found = {}
    for bits in (16, 8):
        lowered = lower(graph, LoweringOptions(kv_bits=bits, most_rows=CHUNK))
        windows = []
        for window in ids[:KV_WINDOWS].tolist():
            run = LoweredReference(lowered, bundle / "weights.safetensors", TOKENS)
            windows.append(np.concatenate([run(window[place : place + CHUNK])["logits"][0]
                                           for place in range(0, TOKENS, CHUNK)]))
        found[bits] = log_probabilities(np.stack(windows))
    weights, cache = mean_kl(expected[:KV_WINDOWS], found[16]), mean_kl(found[16], found[8])
    agreement = float((found[16].argmax(-1) == found[8].argmax(-1)).mean())
    print(f"4-bit weights {weights:.2e}, 8-bit KV cache {cache:.2e}, same choice {agreement:.4f}")  # pytest -rP
    assert 0 < cache < KV_SHARE * weights
    assert agreement > 0.98
