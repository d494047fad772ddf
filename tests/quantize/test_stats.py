"""Statistics of a linear's inputs against the same means over all tokens at once, in float64."""

import numpy as np
import pytest
import torch

from edge_awq.quantize import stats as module
from edge_awq.quantize.gptq import spans
from edge_awq.quantize.stats import InputObserver

WIDTH, GROUP = 192, 64


def test_statistics_are_means_over_all_calls():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, WIDTH, generator=generator)
    sampled = torch.rand(15, generator=generator) < 0.4
    weights = {"up.weight": torch.randn(7, WIDTH, generator=generator), "up.bias": torch.randn(7, generator=generator)}
    observer = InputObserver({"up": GROUP}, sampled)
    outputs = torch.cat([observer.linear("up", part, weights) for part in x.split(1)])
    observer.linear("unwatched", x, {"unwatched.weight": weights["up.weight"]})
    assert torch.allclose(outputs, x @ weights["up.weight"].T + weights["up.bias"], atol=1e-5)

    stats = observer.stats()
    assert stats.keys() == {"up"}
    stats, x = stats["up"], x.flatten(0, 1).double()
    groups = x.unflatten(1, (-1, GROUP))
    assert torch.allclose(stats.mean_abs.double(), x.abs().mean(0), rtol=1e-5)
    assert torch.allclose(stats.gram.double(), torch.einsum("tgi,tgj->gij", groups, groups) / 15, atol=1e-5)
    assert torch.allclose(stats.mean_square.double(), x.square().mean(0), rtol=1e-5)
    assert torch.equal(stats.sample.double(), x[sampled])


def test_statistics_of_scaled_inputs():
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    scales = torch.logspace(-1, 1, WIDTH)
    whole, scaled = (InputObserver({"up": GROUP}, torch.ones(20, dtype=torch.bool)) for _ in range(2))
    whole.count("up", x)
    scaled.count("up", x / scales)
    found, expected = whole.stats()["up"].divided(scales), scaled.stats()["up"]
    for kind in ("mean_abs", "gram", "sample"):
        assert torch.allclose(getattr(found, kind), getattr(expected, kind), rtol=1e-4, atol=1e-6), kind


@pytest.fixture(params=["one-strip", "many-strips"])
def strips(request, monkeypatch):
    """Rows of a Hessian that are summed at once: all of them, or pieces that do not divide its width."""
    if request.param == "many-strips":
        monkeypatch.setattr(module, "STRIP", 80)


@pytest.mark.parametrize("widest", [WIDTH, GROUP], ids=["one-span", "three-spans"])
def test_hessians_are_means_over_all_calls(strips, monkeypatch, widest):
    monkeypatch.setattr(module, "spans", lambda width, group_size: spans(width, group_size, widest))
    x = torch.randn(4, 25, WIDTH, generator=torch.Generator().manual_seed(0))
    x[..., 3] *= 30
    observer = InputObserver({"up": GROUP}, torch.zeros(100, dtype=torch.bool), hessians=True)
    for part in x.split([1, 3]):
        observer.count("up", part)
    tokens = x.flatten(0, 1).double().numpy()
    expected = tokens.T @ tokens / len(tokens)
    found = observer.stats()["up"].hessian
    assert [part.shape for part in found] == [(widest, widest)] * (WIDTH // widest)
    for start, part in zip(range(0, WIDTH, widest), found, strict=True):
        inside = slice(start, start + widest)
        size = np.sqrt(np.outer(*[expected.diagonal()[inside]] * 2))
        # 100 products summed in float32: at most 100 * 2^-24 of the sum of their sizes, which this bounds.
        assert (np.abs(part.double().numpy() - expected[inside, inside]) <= 100 * 2.0**-24 * size).all()
        assert torch.equal(part, part.T)


def test_hessians_of_scaled_inputs(monkeypatch):
    monkeypatch.setattr(module, "spans", lambda width, group_size: [128, 64])
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    scales = torch.logspace(-1, 1, WIDTH)
    whole, scaled = (InputObserver({"up": GROUP}, torch.zeros(20, dtype=torch.bool), hessians=True) for _ in range(2))
    whole.count("up", x)
    scaled.count("up", x / scales)
    for found, expected in zip(whole.stats()["up"].divided(scales).hessian, scaled.stats()["up"].hessian, strict=True):
        size = expected.diagonal().sqrt()
        assert ((found - expected).abs() <= 1e-5 * size[:, None] * size).all()
