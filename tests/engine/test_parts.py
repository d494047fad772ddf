"""A graph run part after part gives what one session gives, and each part has few constants."""

from __future__ import annotations

import numpy as np
import pytest
from built import build, canonical, random_ids

from edge_awq.engine.ort import parts
from edge_awq.engine.ort.accuracy import _feeds, _with_twins
from edge_awq.engine.ort.lower import lower
from edge_awq.engine.ort.parts import run_in_parts
from edge_awq.engine.ort.session import SessionSettings, create_session
from tiny import ARCHITECTURES, UNGROUPED

WHOLE = 2**40


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_give_the_bits_of_the_whole(architecture, tmp_path):
    build(tmp_path, architecture, *((16, 16) if architecture in UNGROUPED else (4, 8)))
    weights = tmp_path / "weights.safetensors"
    lowered, _ = lower(canonical(tmp_path))
    model = _with_twins(lowered)
    feeds = _feeds(model, weights, random_ids(9))
    session = create_session(model.SerializeToString(), weights, SessionSettings())
    expected = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    assert len(list(parts._parts(model, 1))) >= 4
    found = run_in_parts(model, weights, feeds, part_bytes=1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_part_holds_no_more_constants_than_it_may(tmp_path):
    build(tmp_path, "llama2")
    lowered, _ = lower(canonical(tmp_path))
    sizes = {tensor.name: parts._bytes(tensor) for tensor in lowered.graph.initializer}
    limit = 4 * max(sizes.values())
    cut = list(parts._parts(lowered, limit))
    assert 1 < len(cut) < len(lowered.graph.node)
    assert {node.name for part in cut for node in part} == {node.name for node in lowered.graph.node}
    for part in cut:
        assert sum(sizes[name] for name in {name for node in part for name in node.input} & sizes.keys()) <= limit


def test_small_parts_are_not_cut(tmp_path):
    build(tmp_path, "llama2")
    lowered, _ = lower(canonical(tmp_path))
    assert len(list(parts._parts(lowered, WHOLE))) == 1
