"""Real engines with our plugins, built and run by the product on a GPU, against the canonical graph on the CPU."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools

import numpy as np
import pytest
from trt_models import (
    CONTEXT,
    MODELS,
    PROMPT,
    STEPS,
    CanonicalModel,
    Expected,
    make_tiny_bundle,
    random_ids,
    relative_l2,
    rounding_limit,
)

from edge_awq.engine.trt import compile_bundle, open_engine
from edge_awq.engine.trt.names import SAMPLE_SETTINGS
from edge_awq.engine.trt.plan_cache import read_engine
from edge_awq.engine.trt.reference_sample import draw
from edge_awq.progress import Lines
from edge_awq.runner.sampling import SamplingSettings

pytestmark = pytest.mark.trt

MOST_ENGINE_BYTES = 20 << 20
ROWS = (1, 2, 5, 8)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(model, toolkit, tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp(model), model)


@pytest.fixture(scope="module")
def notes():
    return []


@pytest.fixture(scope="module")
def report(bundle, notes):
    """What compiling says; the engine is in the bundle from here on."""
    return compile_bundle(bundle.path, Lines(notes.append))


@pytest.fixture
def engine(bundle, report):
    opened = open_engine(bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def expected(bundle, model):
    found = Expected(bundle, MODELS[model])
    assert found.close_calls() == 0  # otherwise another seed is needed
    return found


def test_compile_makes_both_passes(report, bundle, notes):
    """No pass is left out, a decode step has all that can be fused, and the engine holds no weights."""
    print(report)
    assert list(report.passes) == ["decode", "prefill"], notes
    assert report.engine_bytes < MOST_ENGINE_BYTES
    stored = read_engine(bundle.path / report.file)
    assert not stored.passes["decode"]["declined"]
    assert all(table["weights"] for table in stored.passes.values())


def test_every_step_is_the_models(engine, expected):
    """A prompt in chunks, then 64 steps, all but two of them from one CUDA graph: the logits after each."""
    off = [relative_l2(engine.prefill(expected.prompt), expected.logits[0])]
    for token, logits in zip(expected.tokens[:-1], expected.logits[1:], strict=True):
        off.append(relative_l2(engine.step(token), logits))
    print(f"relative L2: largest {max(off):.2e}, of the limit {max(off) / expected.limit:.2f}")
    assert max(off) <= expected.limit
    assert engine.length == PROMPT + STEPS


def test_greedy_tokens_are_the_models(engine, expected):
    """64 tokens chosen on the device, each fed to the next step, are those of the canonical graph."""
    tokens = [int(engine.prefill(expected.prompt).argmax())]
    for _ in range(STEPS):
        tokens.append(engine.step_greedy(tokens[-1]))
    assert tokens == expected.tokens


def test_drawn_tokens_are_those_of_the_logits(engine, expected):
    """32 tokens drawn on the device, each fed to the next step; then the logits of the same steps, and numpy's draws.

    A limit of a draw is too near for fp32 once in a million (tests/plugins/test_sample.py).
    """
    sampling, seed = SamplingSettings(temperature=0.8, top_k=60, top_p=0.95, min_p=0.001), 2**40 + 3
    engine.prefill(expected.prompt)
    engine.begin_sampling(dataclasses.replace(sampling, seed=seed))
    tokens = [expected.tokens[0]]
    for _ in range(32):
        tokens.append(engine.step_sampled(tokens[-1]))
    engine.truncate(PROMPT)
    settings = np.array([getattr(sampling, name) for name in SAMPLE_SETTINGS], np.float32)
    (key,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    for place, (token, following) in enumerate(itertools.pairwise(tokens), PROMPT):
        logits = engine.step(token)
        assert draw(logits, settings, int(key), place) == following
    assert len(set(tokens)) > 5


def test_random_text_one_by_one(engine, bundle):
    """Tokens that no model would choose: every position of the cache counts."""
    ids, reference = random_ids(40, seed=2), CanonicalModel(bundle)
    exact = reference(ids)
    found = np.array([engine.step(token).copy() for token in ids])
    limit = rounding_limit(bundle)
    off = [relative_l2(*pair) for pair in zip(found, exact, strict=True)]
    print(f"relative L2: largest {max(off):.2e}, of the limit {max(off) / limit:.2f}")
    assert max(off) <= limit


@pytest.mark.parametrize("rows", ROWS)
def test_logits_of_several_rows(engine, bundle, rows):
    """What speculation runs: a few tokens at once behind others, first as it is, then from the graph."""
    ids, limit = random_ids(30 + rows, seed=rows), rounding_limit(bundle)
    exact = CanonicalModel(bundle)(ids)[30:]
    engine.prefill(ids[:30])
    for _ in range(2):
        engine.truncate(30)
        found = engine.logits(ids[30:])
        assert max(relative_l2(*pair) for pair in zip(found, exact, strict=True)) <= limit


def test_replays_of_a_graph_are_the_same_bits(engine):
    ids = random_ids(20, seed=3)
    engine.prefill(ids[:-1])
    seen = set()
    for _ in range(5):  # the first runs as it is, and is then captured
        engine.truncate(len(ids) - 1)
        seen.add(engine.step(ids[-1]).tobytes())
    assert len(seen) == 1 and engine._decode._graphs  # what cannot be captured would run without one


class CountingDriver:
    """libcuda, asked for the number of a graph's nodes before it is instantiated."""

    def __init__(self, library):
        self._library, self.nodes = library, []

    def __getattr__(self, name):
        return getattr(self._library, name)

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):
        count = ctypes.c_size_t()
        assert self._library.cuGraphGetNodes(graph, None, ctypes.byref(count)) == 0
        self.nodes.append(count.value)
        return self._library.cuGraphInstantiateWithFlags(executable, graph, flags)


def test_a_step_is_few_launches(engine, bundle):
    """Five a layer at most, and three: the embedding, the head and the choice of a token."""
    driver = engine._cuda._graphs._library = CountingDriver(engine._cuda._graphs._library)
    engine.step_greedy(3)
    print(f"nodes of a step's graph: {driver.nodes}")
    [nodes] = driver.nodes
    assert 1 <= nodes <= 5 * bundle.manifest.config["num_layers"] + 3


def test_truncated_text_goes_on_as_if_new(engine, expected):
    engine.prefill(random_ids(CONTEXT - 1, seed=4))
    engine.truncate(0)
    assert relative_l2(engine.prefill(expected.prompt), expected.logits[0]) <= expected.limit


def test_self_contained_engine(bundle, expected, toolkit, report, tmp_path):
    """Weights as constants of the engine, in place of inputs."""
    import shutil

    from edge_awq.bundle import ENGINES, Bundle

    copy = shutil.copytree(bundle.path, tmp_path / bundle.path.name, ignore=shutil.ignore_patterns(ENGINES))
    inside = compile_bundle(copy, weights_inside=True)
    assert list(inside.passes) == ["decode"] and inside.engine_bytes > 0
    engine = open_engine(Bundle.open(copy))
    try:
        assert relative_l2(engine.prefill(expected.prompt), expected.logits[0]) <= expected.limit
        tokens = [expected.tokens[0]]
        for _ in range(8):
            tokens.append(engine.step_greedy(tokens[-1]))
        assert tokens == expected.tokens[:9]
    finally:
        engine.close()
