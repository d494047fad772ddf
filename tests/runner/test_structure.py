"""Answers of a form, by a model that wants anything but; json, jsonschema and re say whether they are right."""

import json
import re
import sys

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edge_awq.errors import EdgeAwqError
from edge_awq.model.tokenizer import read_tokenizer
from edge_awq.runner.generate import GenerationSettings, Start, generate
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.sampling import SamplingSettings
from edge_awq.runner.structure import ANY_OBJECT, Structures
from edge_awq.runner.vocabulary import Vocabulary
from tokenizers_made_here import LLAMA, train_byte_level, train_sentencepiece

PAD = 37  # logits beyond the vocabulary, as many models have them
SCHEMAS = {
    "object": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"},
                                                "ok": {"type": "boolean"}},
               "required": ["name", "age", "ok"], "additionalProperties": False},
    "nested": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"enum": ["größer", "日本", 5, None, 1.5]}},
    "reference": {"$defs": {"leaf": {"const": "x"}}, "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]},
}


class RandomEngine:
    """Any token may come, and whole texts are likeliest that are of no form."""

    context = 400

    def __init__(self, vocab_size, seed):
        self.vocab_size, self.length, self._random = vocab_size, 0, np.random.default_rng(seed)

    def prefill(self, ids):
        return self.logits(ids)[-1]

    def step(self, token_id):
        return self.logits([token_id])[0]

    def logits(self, ids):
        self.length += len(ids)
        return self._random.normal(size=(len(ids), self.vocab_size)).astype(np.float32)

    def step_greedy(self, token_id):
        raise AssertionError("the device knows no form")

    begin_sampling = step_sampled = step_greedy

    def truncate(self, length):
        self.length = length


def byte_level(path):
    return train_byte_level(), "<|end|>"


def sentence_pieces(path):
    """As Llama 2's, with bytes for what the vocabulary lacks."""
    train_sentencepiece(path / "tokenizer.model", **LLAMA)
    return read_tokenizer(path), "</s>"


@pytest.fixture(scope="module", params=[byte_level, sentence_pieces], ids=["byte-level", "sentencepiece"])
def vocabulary(request, tmp_path_factory):
    tokenizer, end = request.param(tmp_path_factory.mktemp("tokenizer"))
    return Vocabulary(tokenizer, None, (tokenizer.token_to_id(end),), SamplingSettings(), None)


@pytest.fixture(scope="module")
def structures(vocabulary):
    return Structures(vocabulary, vocabulary.tokenizer.get_vocab_size() + PAD)


def answer(vocabulary, structure, seed, lookup=0, **settings):
    """Text and why it ended."""
    engine = RandomEngine(vocabulary.tokenizer.get_vocab_size() + PAD, seed)
    sampling = SamplingSettings(seed=seed, **settings)
    tokens = list(generate(LookupEngine(engine, lookup) if lookup else engine, vocabulary.tokenizer, [1],
                           GenerationSettings(300, eos_ids=vocabulary.eos_ids, sampling=sampling),
                           start=Start(structure=structure)))
    assert all(token.finish_reason is None for token in tokens[:-1])
    return "".join(token.text for token in tokens), tokens[-1].finish_reason


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 3, "repetition_penalty": 1.3}], ids=str)
@pytest.mark.parametrize("name", SCHEMAS)
def test_json_of_a_schema(vocabulary, structures, name, settings):
    for seed in range(5):
        text, reason = answer(vocabulary, structures.of_schema(SCHEMAS[name]), seed, **settings)
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        assert reason == "eos" and text == json.dumps(json.loads(text), ensure_ascii="\\u" in text)


def test_any_object(vocabulary, structures):
    zeros = np.zeros(vocabulary.tokenizer.get_vocab_size() + PAD, np.float32)
    possible = np.flatnonzero(np.isfinite(structures.of_schema(ANY_OBJECT).restrict(zeros)))
    assert {vocabulary.decode([token]) for token in possible} <= {"{", "{}", '{"'} and possible.size


@pytest.mark.parametrize("pattern", ["[0-9]{4}-[0-9]{2}-[0-9]{2}", "(yes|no), because [a-z ]{5,12}[.]", "日本|Straße"])
def test_text_of_a_regular_expression(vocabulary, structures, pattern):
    for seed in range(5):
        text, reason = answer(vocabulary, structures.of_regex(pattern), seed)
        assert re.fullmatch(pattern, text) and reason == "eos"


def test_guesses_do_not_change_what_comes(vocabulary, structures):
    pattern = "(ab){20}"
    text, reason = answer(vocabulary, structures.of_regex(pattern), 1, lookup=5)
    assert (text, reason) == ("ab" * 20, "eos")


def test_a_form_that_may_go_on_ends_where_the_model_does(vocabulary, structures):
    found = {answer(vocabulary, structures.of_regex("(x|y){1,200}"), seed) for seed in range(8)}
    assert {reason for _, reason in found} == {"eos"} and len({len(text) for text, _ in found}) > 1
    assert all(re.fullmatch("[xy]+", text) for text, _ in found)


def test_each_answer_begins_anew(vocabulary, structures):
    first, second = structures.of_regex("a"), structures.of_regex("a")
    first.accept(vocabulary.tokenizer.token_to_id("a"))
    assert first.is_complete and not second.is_complete


@pytest.mark.parametrize(("schema", "said"), [
    ({"type": "nonsense"}, "Invalid type: nonsense"), ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"$ref": "#/nowhere"}, "'/nowhere' does not exist"), ({"not": {}}, r'Unimplemented keys: \["not"\]'),
])
def test_schemas_that_are_not_possible(structures, schema, said):
    with pytest.raises(EdgeAwqError, match=f"json_schema is not possible: .*{said}") as caught:
        structures.of_schema(schema)
    assert caught.value.hint


def test_no_regular_expression(structures):
    with pytest.raises(EdgeAwqError, match=r"regex is not possible: .*unclosed group"):
        structures.of_regex("(a")


def test_logits_that_are_no_numbers_are_still_seen(vocabulary, structures):
    logits = np.full(vocabulary.tokenizer.get_vocab_size() + PAD, np.nan, np.float32)
    assert np.isnan(structures.of_regex("a").restrict(logits)).any()


def test_tokenizers_that_are_not_known():
    strange = Vocabulary(Tokenizer(models.WordLevel({"a": 0}, "a")), None, (), SamplingSettings(), None)
    with pytest.raises(EdgeAwqError, match="not possible with this model's tokenizer"):
        Structures(strange, 1)


def test_without_the_package(monkeypatch, vocabulary):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EdgeAwqError, match="llguidance") as caught:
        Structures(vocabulary, 10)
    assert "edge-awq[structured]" in caught.value.hint


@pytest.mark.parametrize("given", [
    {"json_schema": 5}, {"json_schema": False}, {"regex": 5}, {"json_schema": {}, "regex": "a"},
    {"regex": "a", "ignore_eos": True},
], ids=str)
def test_settings_that_are_not_possible(given):
    with pytest.raises(EdgeAwqError) as caught:
        GenerationSettings(**given)
    assert caught.value.hint
