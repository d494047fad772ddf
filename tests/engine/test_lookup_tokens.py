"""Prompt lookup on the engine for processors: the tokens of plain greedy decoding, one for one."""

from __future__ import annotations

import pytest
from built import build, random_ids

from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
from edge_awq.engine.ort.session import SessionSettings
from edge_awq.runner.lookup import LookupEngine

PROMPT, COUNT = [*random_ids(12), *random_ids(12)], 60  # a text that repeats itself


def greedy(engine):
    token = int(engine.prefill(PROMPT).argmax())
    tokens = [token]
    while len(tokens) < COUNT:
        token = int(engine.step(token).argmax())
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("architecture", ["llama2", "mpt"])
def test_lookup_gives_the_tokens_of_plain_greedy(architecture, tmp_path):
    build(tmp_path, architecture)
    report = compile_bundle(tmp_path, random_ids(24))
    settings = EngineSettings(128, 16, SessionSettings(threads=1))
    engine = OrtEngine(tmp_path / report.file, tmp_path / "weights.safetensors", settings)
    plain = greedy(engine)
    for guesses in (1, 3, 7):
        engine.truncate(0)
        looked_up = LookupEngine(engine, guesses)
        assert greedy(looked_up) == plain
        assert looked_up.guessed > 0
