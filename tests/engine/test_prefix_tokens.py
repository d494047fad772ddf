"""A chat of three turns on the engine for processors: the tokens of a session that forgets, from fewer that are run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from built import build, random_ids

from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
from edge_awq.engine.ort.session import SessionSettings
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import GenerationSettings
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.sampling import SamplingSettings
from edge_awq.runner.session import Session
from tokenizers_made_here import train_byte_level

CONTEXT, COUNT = 128, 12
TURNS = [random_ids(14, seed=seed) for seed in (2, 3, 4)]  # what is said; the third begins to repeat the first
TURNS[2] = TURNS[0][:9] + TURNS[2]
SAMPLINGS = {"greedy": SamplingSettings(temperature=0),
             "penalty": SamplingSettings(temperature=0, repetition_penalty=1.5),
             "seeded": SamplingSettings(temperature=1.2, seed=7)}


class CountingEngine(OrtEngine):
    """Counts tokens that run; stops as on Ctrl-C after ``passes_left`` passes, ``before`` the next or at its end."""

    ran, passes_left, before = 0, None, False

    def _run(self, ids, logits):
        if self.passes_left == 0 and self.before:
            raise KeyboardInterrupt
        super()._run(ids, logits)
        self.ran += len(ids)
        if self.passes_left == 0:
            raise KeyboardInterrupt
        if self.passes_left is not None:
            self.passes_left -= 1


@pytest.fixture(scope="module", params=["llama2", "mistral", "mpt"])  # mistral: windows of 8
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build(folder, request.param)
    graph = folder / compile_bundle(folder, random_ids(24)).file
    return lambda: CountingEngine(graph, folder / "weights.safetensors",
                                  EngineSettings(CONTEXT, 16, SessionSettings(threads=1)))


def open_session(engine):
    loaded = SimpleNamespace(load_s=1.0, weight_bytes_per_token=1)
    return Session(engine, SimpleNamespace(tokenizer=train_byte_level()), loaded)


def options(sampling="greedy", count=COUNT):
    return GenerationSettings(max_tokens=count, sampling=SAMPLINGS[sampling])


def talk(session, sampling, is_forgetful=False):
    """(answers, summaries) of three turns, each prompt with all that was said before."""
    text, answers, summaries = [], [], []
    for said in TURNS:
        if is_forgetful:
            session.reset()
        text += said
        tokens = list(session.generate(text, options(sampling)))
        answers.append([token.token_id for token in tokens])
        summaries.append(session.summarize(tokens))
        text += answers[-1]
    return answers, summaries


@pytest.mark.parametrize("lookup", [0, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_three_turns(model, sampling, lookup):
    plain, counted = model(), model()
    expected, _ = talk(open_session(plain), sampling, is_forgetful=True)
    answers, summaries = talk(open_session(LookupEngine(counted, lookup) if lookup else counted), sampling)
    assert answers == expected
    turn, said = len(TURNS[0]) + COUNT, [len(each) for each in TURNS]
    assert [summary.prompt_tokens for summary in summaries] == [said[0], turn + said[1], 2 * turn + said[2]]
    assert [summary.reused_tokens for summary in summaries] == [0, turn - 1, 2 * turn - 1]
    for summary in summaries:
        run_tokens = summary.prompt_tokens - summary.reused_tokens
        assert summary.prefill_tok_s is not None and run_tokens <= said[2] + 1
    if not lookup:  # guesses that were wrong ran too
        assert counted.ran == sum(said) + 3 * COUNT - 1
        assert plain.ran == 3 * said[0] + 2 * said[1] + said[2] + (3 + 2 + 1) * COUNT - 3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("passes", [0, 1, 4])  # both chunks of a prompt, and a token of the answer
def test_a_turn_that_ctrl_c_ends(model, passes, before):
    """The next one is answered as ever, from what was in the cache."""
    prompt, engine = random_ids(30, seed=5), model()
    session = open_session(engine)
    list(session.generate(prompt[:4], options(count=1)))
    engine.passes_left, engine.before = passes, before
    with pytest.raises(KeyboardInterrupt):
        list(session.generate(prompt, options()))
    engine.passes_left = None
    found = [each.token_id for each in session.generate([*prompt, 7], options())]
    cached = [4, 20, 30, 30, 30, 30]  # of the prompt, after so many passes
    assert session.reused_tokens == cached[passes if before else passes + 1]
    assert found == [each.token_id for each in open_session(model()).generate([*prompt, 7], options())]


def test_a_turn_that_its_reader_leaves(model):
    session, prompt = open_session(model()), random_ids(20, seed=6)
    for token in session.generate(prompt, options()):
        if token.index == 3:
            break
    list(session.generate([*prompt, 1], options(count=1)))
    assert session.reused_tokens == 20


def test_a_prompt_that_is_refused_leaves_what_it_shares(model):
    session, prompt = open_session(model()), random_ids(20, seed=6)
    list(session.generate(prompt, options(count=1)))
    with pytest.raises(EdgeAwqError, match=f"{CONTEXT + 20} tokens, the context has room for {CONTEXT}"):
        session.generate([*prompt, *[1] * CONTEXT], options())
    list(session.generate([*prompt, 1], options(count=1)))
    assert session.reused_tokens == 20
