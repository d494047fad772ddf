"""The decoder against transformers, the oracle: relative L2 error of the logits at most 1e-5 in float32."""

import pytest
import torch

from edge_awq.model.decoder import KvCache, load_decoder, logits
from tiny import ARCHITECTURES, make_tiny

LIMIT = 1e-5  # float32 has 6e-8 per operation; a few thousand of them, in another order, stay below this


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_tiny(folder, request.param)
    ids = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    return load_decoder(folder), ids, expected


def test_prefill_equals_transformers(pair):
    decoder, ids, expected = pair
    assert relative_l2(logits(decoder, ids), expected) <= LIMIT


def test_token_by_token_equals_transformers(pair):
    decoder, ids, expected = pair
    cache = KvCache()
    steps = [logits(decoder, ids[:, :13], cache)] + [logits(decoder, ids[:, i : i + 1], cache) for i in range(13, 40)]
    assert relative_l2(torch.cat(steps, dim=1), expected) <= LIMIT


def test_longrope_beyond_its_first_context_equals_transformers(tmp_path):
    """Only as a whole: at the first token beyond, transformers too turns queries otherwise than the keys it has."""
    model = make_tiny(tmp_path, "phi3-longrope", original_max_position_embeddings=32)
    ids = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = [model(ids[:, :count]).logits for count in (32, 40)]
    found = [logits(load_decoder(tmp_path), ids[:, :count]) for count in (32, 40)]
    assert all(relative_l2(one, other) <= LIMIT for one, other in zip(found, expected, strict=True))
    assert relative_l2(found[1][:, :32], found[0]) > 0.01
