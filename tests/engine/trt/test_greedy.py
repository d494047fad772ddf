"""Greedy choices made by the lowered graph: the tokens that the host would choose from its logits."""

from __future__ import annotations

import pytest
from lowered import ReferenceEngine, build_tiny, random_ids

from edge_awq.engine.trt.lower import LoweringOptions
from edge_awq.runner.generate import GenerationSettings, generate
from edge_awq.runner.prefix import PrefixEngine
from edge_awq.runner.sampling import SamplingSettings
from tokenizers_made_here import train_byte_level

PROMPT, COUNT = random_ids(11), 24
TOKENIZER = train_byte_level()
GREEDY = GenerationSettings(max_tokens=COUNT, sampling=SamplingSettings(temperature=0))


class GreedyEngine(ReferenceEngine):
    """It takes the graph's own choices."""

    def step(self, token_id):
        raise AssertionError("logits are not asked for")

    def step_greedy(self, token_id):
        return int(self.reference([token_id])["tokens"].reshape(-1)[0])


@pytest.mark.parametrize("major", [8, 10])
@pytest.mark.parametrize("architecture", ["llama3", "mpt", "gemma2"])
def test_tokens_are_those_of_the_logits(architecture, major, tmp_path):
    build_tiny(tmp_path, architecture)
    from_logits = ReferenceEngine(tmp_path, LoweringOptions(major))
    chosen = PrefixEngine(GreedyEngine(tmp_path, LoweringOptions(major, choose=True)))
    expected = [token.token_id for token in generate(from_logits, TOKENIZER, PROMPT, GREEDY)]
    assert [token.token_id for token in generate(chosen, TOKENIZER, PROMPT, GREEDY)] == expected
    assert len(expected) == COUNT
