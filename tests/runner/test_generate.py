"""The generation loop with a scripted engine and a clock of its own."""

import pytest
import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import GenerationSettings, generate
from edge_awq.runner.sampling import SamplingSettings
from fakes import FakeClock, FakeEngine
from tiny import make_tiny
from tokenizers_made_here import train_byte_level

TOKENIZER = train_byte_level()
EOS = TOKENIZER.token_to_id("<|end|>")
BOS = TOKENIZER.token_to_id("<|begin|>")
GREEDY = SamplingSettings(temperature=0)


def ids_of(text: str) -> list[int]:
    """One token per letter."""
    return [TOKENIZER.token_to_id(letter) for letter in text]


def run(script, prompt=(1, 2, 3), context=64, **settings):
    clock = FakeClock()
    engine = FakeEngine([*script, *[EOS] * 5], clock, context)
    settings = GenerationSettings(**{"sampling": GREEDY, "eos_ids": (EOS,), **settings})
    return engine, list(generate(engine, TOKENIZER, prompt, settings, clock))


def test_tokens_carry_index_id_text_and_times():
    script = ids_of("the,fox!")
    engine, tokens = run(script)
    assert [token.index for token in tokens] == list(range(len(script) + 1))
    assert [token.token_id for token in tokens] == [*script, EOS]
    assert "".join(token.text for token in tokens) == "the,fox!"
    assert [token.t_s for token in tokens] == [3.0 + 0.25 * index for index in range(len(tokens))]
    assert [token.logits_s for token in tokens] == [token.t_s for token in tokens]
    assert engine.fed == [1, 2, 3, *script]


def test_the_time_a_consumer_takes_counts_into_later_tokens():
    clock = FakeClock()
    engine = FakeEngine(ids_of("abc"), clock)
    settings = GenerationSettings(max_tokens=3, sampling=GREEDY)
    times = []
    for token in generate(engine, TOKENIZER, [1], settings, clock):
        times.append(token.t_s)
        clock.advance(10.0)
    assert times == [1.0, 11.25, 21.5]


@pytest.mark.parametrize(("settings", "reason", "count"), [
    ({}, "eos", 6), ({"max_tokens": 4}, "length", 4), ({"max_tokens": 1}, "length", 1),
    ({"ignore_eos": True, "max_tokens": 7}, "length", 7), ({"eos_ids": (7, EOS)}, "eos", 6),
    ({"max_tokens": None}, "eos", 6),
])
def test_generation_ends_for_the_stated_reason(settings, reason, count):
    _, tokens = run(ids_of("12345"), **settings)
    assert len(tokens) == count
    assert [token.finish_reason for token in tokens] == [None] * (count - 1) + [reason]


def test_every_end_token_of_a_list_ends():
    script = ids_of("12345")
    _, tokens = run(script, eos_ids=(EOS, script[2]))
    assert (len(tokens), tokens[-1].finish_reason, "".join(token.text for token in tokens)) == (3, "eos", "12")


def test_a_stop_string_ends_the_text_before_it():
    script = ids_of("1234567890")
    _, tokens = run(script, stop=("345",))
    assert "".join(token.text for token in tokens) == "12"
    assert (tokens[-1].finish_reason, len(tokens)) == ("stop", 5)


def test_an_unfinished_stop_string_is_text():
    _, tokens = run(ids_of("12345"), stop=("56",))
    assert "".join(token.text for token in tokens) == "12345"
    assert tokens[-1].finish_reason == "eos"


def test_a_full_context_ends_with_length():
    engine, tokens = run(ids_of("1234567890"), prompt=[1, 2, 3], context=6, max_tokens=None)
    assert engine.length == 6
    assert (len(tokens), tokens[-1].finish_reason) == (4, "length")  # three fill the cache, one more is predicted


def test_a_prompt_that_fills_the_context_gives_one_token():
    _, tokens = run(ids_of("1234567890"), prompt=[1] * 6, context=6)
    assert (len(tokens), tokens[-1].finish_reason) == (1, "length")


def test_bytes_left_over_at_the_end_come_out():
    script = TOKENIZER.encode("🦊").ids[:2]
    _, tokens = run(script, max_tokens=2)
    assert "".join(token.text for token in tokens) == TOKENIZER.decode(script) == "\ufffd"


def test_too_long_a_prompt_names_both_numbers_and_the_remedy():
    with pytest.raises(EdgeAwqError, match=r"7 tokens.* 6") as caught:
        run([], prompt=[1] * 7, context=6)
    assert "context" in caught.value.hint


def test_the_room_left_in_the_cache_counts():
    clock = FakeClock()
    engine = FakeEngine([1] * 9, clock, context=6)
    engine.prefill([1, 2, 3, 4])
    with pytest.raises(EdgeAwqError, match=r"3 tokens.* 2"):
        generate(engine, TOKENIZER, [1, 2, 3], GenerationSettings(), clock)


def test_an_empty_prompt_begins_with_bos_or_is_refused():
    engine, _ = run([], prompt=[], bos_id=BOS)
    assert engine.fed == [BOS]
    with pytest.raises(EdgeAwqError, match="empty"):
        run([], prompt=[])


@pytest.mark.parametrize("token_id", [-1, 600])
def test_ids_outside_the_vocabulary_are_refused(token_id):
    with pytest.raises(EdgeAwqError, match=str(token_id)):
        run([], prompt=[1, token_id])


def test_sampling_is_repeatable_and_sees_prompt_and_answer():
    def drawn(seed):
        clock = FakeClock()
        settings = GenerationSettings(max_tokens=20, sampling=SamplingSettings(seed=seed, temperature=3.0))
        return [token.token_id for token in generate(FakeEngine([5] * 30, clock), TOKENIZER, [1], settings, clock)]

    assert drawn(1) == drawn(1) != drawn(2)
    script = ids_of("1234")
    penalty = SamplingSettings(temperature=0, repetition_penalty=100)
    _, tokens = run(script, prompt=[script[0]], max_tokens=1, sampling=penalty)
    assert tokens[0].token_id != script[0]


class GreedyEngine(FakeEngine):
    """It notes what is called."""

    def step(self, token_id):
        self.calls.append("step")
        return super().step(token_id)

    def step_greedy(self, token_id):
        self.calls.append("greedy")
        return int(super().step(token_id).argmax())


class SamplingEngine(GreedyEngine):
    """It draws what is scripted."""

    def begin_sampling(self, sampling):
        self.calls.append(sampling)

    def step_sampled(self, token_id):
        self.calls.append("sampled")
        return int(FakeEngine.step(self, token_id).argmax())


SAMPLED = SamplingSettings(temperature=0.7, top_k=9)


@pytest.mark.parametrize(("kind", "sampling", "calls"), [
    (GreedyEngine, GREEDY, ["greedy"] * 4), (SamplingEngine, SamplingSettings(temperature=0, top_k=3), ["greedy"] * 4),
    (SamplingEngine, SamplingSettings(temperature=0, repetition_penalty=1.1), ["step"] * 4),
    (GreedyEngine, SAMPLED, ["step"] * 4), (SamplingEngine, SAMPLED, [SAMPLED, *["sampled"] * 4]),
    (SamplingEngine, SamplingSettings(seed=1, repetition_penalty=1.1), ["step"] * 4),
], ids=["greedy", "filtered", "penalty", "no draws", "sampled", "sampled with a penalty"])
def test_an_engine_chooses_where_it_can(kind, sampling, calls):
    clock = FakeClock()
    engine = kind(ids_of("12345"), clock)
    engine.calls = []
    tokens = list(generate(engine, TOKENIZER, [1], GenerationSettings(max_tokens=5, sampling=sampling), clock))
    assert engine.calls == calls
    assert [token.logits_s for token in tokens] == [1.0 + 0.25 * index for index in range(5)]
    if "step" not in calls:
        assert [token.token_id for token in tokens][1:] == ids_of("2345")


class TransformersEngine:
    """transformers' own model behind our protocol, so that the two loops are all that differs."""

    def __init__(self, model, context=64):
        self.context, self.vocab_size, self.length = context, model.config.vocab_size, 0
        self._model, self._ids = model, []

    def prefill(self, ids):
        self._ids += ids
        self.length = len(self._ids)
        with torch.no_grad():
            return self._model(torch.tensor([self._ids])).logits[0, -1].numpy()

    def step(self, token_id):
        return self.prefill([token_id])


@pytest.mark.parametrize(("penalty", "end", "count"), [(1.0, None, 24), (1.3, None, 24), (1.3, 9, 24)],
                         ids=["plain", "penalty", "ends"])
def test_greedy_answers_equal_those_of_transformers(tmp_path, penalty, end, count):
    model = make_tiny(tmp_path, "llama3")
    prompt = [3, 17, 17, 99, 5]
    options = {"max_new_tokens": count, "do_sample": False, "repetition_penalty": penalty, "pad_token_id": 0}
    open_ended = model.generate(torch.tensor([prompt]), **options, eos_token_id=None)[0, len(prompt) :].tolist()
    end_id = None if end is None else open_ended[end]
    expected = model.generate(torch.tensor([prompt]), **options, eos_token_id=end_id)[0, len(prompt) :].tolist()
    settings = GenerationSettings(max_tokens=count, eos_ids=() if end is None else (end_id,),
                                  sampling=SamplingSettings(temperature=0, repetition_penalty=penalty))
    tokens = list(generate(TransformersEngine(model), TOKENIZER, prompt, settings))
    assert [token.token_id for token in tokens] == expected
    assert tokens[-1].finish_reason == ("length" if end is None else "eos")


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 0), ("max_tokens", 1.5), ("stop", ("",)), ("stop", "text"),
                                             ("stop", (3,)), ("stop", 3), ("stop", {"a": 1}), ("ignore_eos", "no")])
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(EdgeAwqError, match=name):
        GenerationSettings(**{name: value})
