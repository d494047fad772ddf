"""The cheap judge of scales against llm-awq's: the whole module, over all calibration tokens, at all 20 ratios."""

import pytest
import torch
import torch.nn.functional as F

import edge_awq.quantize.judge as judge_module
from edge_awq.model.decoder import attention, load_decoder, mlp, norm, run_block
from edge_awq.quantize.int4 import IntGrid, rounded
from edge_awq.quantize.judge import judged_attention, judged_linears, judged_mlp
from edge_awq.quantize.search import RATIOS, channel_scales, search_scales
from edge_awq.quantize.stats import InputObserver
from injection import inject_outliers
from tiny import make_tiny

GRID = IntGrid(4, 128)
FOLDS = {"attention": ("q", "k", "v"), "mlp": ("gate", "up"), "down": ("down",)}
REGRET = 0.1  # how much more than the best of the 20 the chosen scales may lose: a step of the grid changes less


@pytest.fixture(scope="module", params=[1.0, 30.0], ids=["natural", "outliers"])
def block(request, tmp_path_factory):
    """A block of a random model, its inputs, and what calibration sees of them."""
    folder = tmp_path_factory.mktemp("judge")
    make_tiny(folder / "model", "tinyllama", hidden_size=256, intermediate_size=768, num_hidden_layers=1)
    inject_outliers(folder / "model", folder / "injected", request.param)
    decoder = load_decoder(folder / "injected")
    generator = torch.Generator().manual_seed(1)
    # Channels of very different size, as real residual streams have them.
    hidden = torch.randn(8, 64, 256, generator=generator) * torch.rand(256, generator=generator).mul(3).exp()
    observer = InputObserver(dict.fromkeys(("q", "gate", "down"), 128), torch.ones(8 * 64, dtype=torch.bool))
    weights = decoder.block(0)
    run_block(decoder.config, 0, weights, hidden, linear=observer.linear)
    return decoder.config, weights, hidden, observer.stats()


def cheap(block, fold, samples):
    config, weights, hidden, stats = block
    generator = torch.Generator().manual_seed(2)
    sample = stats[FOLDS[fold][0]].sample[:samples]
    if fold == "attention":
        return judged_attention(config, 0, weights, hidden)
    if fold == "mlp":
        return judged_mlp(config, weights, sample, stats["down"].mean_square)
    return judged_linears(weights, FOLDS[fold], sample, generator)


def whole(block, fold):
    """llm-awq's judgement, as a function of the fold's weights."""
    config, weights, hidden, stats = block
    x = stats[FOLDS[fold][0]].sample
    normed = norm(config, "attn_norm", hidden, weights)
    return {
        "attention": lambda changed: attention(config, 0, weights | changed, normed),
        "mlp": lambda changed: mlp(config, weights | changed, x),
        "down": lambda changed: F.linear(x, changed["down.weight"]),
    }[fold]


@pytest.mark.parametrize("fold", FOLDS)
def test_the_choice_is_as_good_as_llm_awqs(block, fold, monkeypatch):
    # So little work that everything is thinned: 16 of 64 tokens, 256 of 768 inner channels, 128 of 256 rows.
    monkeypatch.setattr(judge_module, "POINT_WORK", 1)
    monkeypatch.setattr(judge_module, "MIN_BEGINNING", 16)
    monkeypatch.setattr(judge_module, "MIN_ROWS", {"attention": 0, "mlp": 256, "down": 128}[fold])
    mean_abs = block[3][FOLDS[fold][0]].mean_abs
    judged = cheap(block, fold, samples=128)
    choice = search_scales(judged.weights, mean_abs, GRID, judged.output)

    output = whole(block, fold)
    weights = {f"{name}.weight": block[1][f"{name}.weight"] for name in FOLDS[fold]}
    expected = output(weights)

    def loss(ratio):
        scales = channel_scales(mean_abs, ratio)
        return float((output({name: rounded(w * scales, GRID) / scales for name, w in weights.items()}) - expected)
                     .square().mean())

    best = min(map(loss, RATIOS))
    assert loss(choice.ratio) <= (1 + REGRET) * best
    assert loss(choice.ratio) <= loss(0.0)


def test_the_inner_channels_that_add_most_are_taken(block, monkeypatch):
    monkeypatch.setattr(judge_module, "POINT_WORK", 1)
    _, weights, _, stats = block
    inner = stats["down"].sample
    energy = torch.stack([torch.outer(inner[:, i], weights["down.weight"][:, i]).square().sum() for i in range(768)])
    largest = energy.argsort(descending=True)[: judge_module.MIN_ROWS]
    taken = cheap(block, "mlp", samples=128).weights["up.weight"]
    assert {tuple(row) for row in taken.tolist()} == {tuple(row) for row in weights["up.weight"][largest].tolist()}


@pytest.mark.parametrize("fold", FOLDS)
def test_a_small_model_is_judged_whole(block, fold):
    """Sequences, inner channels and rows are in another order, which no sum of squares sees."""
    judged, output = cheap(block, fold, samples=512), whole(block, fold)
    weights = {f"{name}.weight": block[1][f"{name}.weight"] for name in FOLDS[fold]}
    assert {name: w.shape for name, w in judged.weights.items()} == {name: w.shape for name, w in weights.items()}
    expected = float(output(weights).square().sum())
    assert float(judged.output(judged.weights).square().sum()) == pytest.approx(expected, rel=1e-4)
