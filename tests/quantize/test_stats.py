"""Statistics of a linear's inputs against the same means over all tokens at once, in float64."""

import torch

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
