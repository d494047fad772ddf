"""Tokens chosen by the lowered graph: those that the host, or the kernel, would choose from its logits."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import ReferenceEngine, build_tiny, random_ids
from test_sample import run as run_kernel

from edge_awq.engine.trt.lower import LoweringOptions
from edge_awq.engine.trt.names import SAMPLE_SETTINGS
from edge_awq.runner.generate import GenerationSettings, generate
from edge_awq.runner.prefix import PrefixEngine
from edge_awq.runner.sampling import SamplingSettings
from tokenizers_made_here import train_byte_level

PROMPT, COUNT = random_ids(11), 24
TOKENIZER = train_byte_level()
GREEDY = GenerationSettings(max_tokens=COUNT, sampling=SamplingSettings(temperature=0))
DRAWN = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
SEED = 2**63 + 9


class ChoosingEngine(ReferenceEngine):
    """It takes the graph's own choices."""

    def step(self, token_id):
        raise AssertionError("logits are not asked for")

    def step_greedy(self, token_id):
        return int(self.reference([token_id])["tokens"].reshape(-1)[0])

    def begin_sampling(self, sampling):
        self.reference.settings[:] = [getattr(sampling, name) for name in SAMPLE_SETTINGS]
        self.reference.seed = sampling.seed

    step_sampled = step_greedy


@pytest.mark.parametrize("major", [8, 10])
@pytest.mark.parametrize("architecture", ["llama3", "mpt", "gemma2"])
def test_tokens_are_those_of_the_logits(architecture, major, tmp_path):
    build_tiny(tmp_path, architecture)
    from_logits = ReferenceEngine(tmp_path, LoweringOptions(major))
    chosen = PrefixEngine(ChoosingEngine(tmp_path, LoweringOptions(major, choose=True)))
    expected = [token.token_id for token in generate(from_logits, TOKENIZER, PROMPT, GREEDY)]
    assert [token.token_id for token in generate(chosen, TOKENIZER, PROMPT, GREEDY)] == expected
    assert len(expected) == COUNT


@pytest.mark.parametrize("major", [8, 10])
def test_drawn_tokens_are_those_of_the_kernel(major, tmp_path):
    build_tiny(tmp_path, "llama3")
    from_logits = ReferenceEngine(tmp_path, LoweringOptions(major))
    chosen = PrefixEngine(ChoosingEngine(tmp_path, LoweringOptions(major, choose=True)))
    settings = GenerationSettings(max_tokens=COUNT, sampling=SamplingSettings(**DRAWN, seed=SEED))
    token, *rest = (token.token_id for token in generate(chosen, TOKENIZER, PROMPT, settings))
    from_logits.prefill(PROMPT)
    for following in rest:
        past, logits = from_logits.length, from_logits.step(token)
        (token,), _ = run_kernel(logits[None].astype(np.float32), DRAWN, SEED - 2**64, past)
        assert token == following
    assert len(set(rest)) > COUNT / 2
