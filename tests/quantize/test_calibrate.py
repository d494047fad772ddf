"""Calibration text: every source, short ones, bad ones; and the model's own text."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from edge_awq.errors import EdgeAwqError
from edge_awq.model.decoder import load_decoder, logits
from edge_awq.quantize import own_text
from edge_awq.quantize.calibrate import BUILT_IN, OWN, CalibrationSpec, calibrate
from tiny import make_tiny


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    make_tiny(folder, vocab_size=300, max_position_embeddings=640)
    return load_decoder(folder)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, ids 3 and up; BOS (1) before every text, as Llama has it."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {symbol: 3 + number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(7)  # some tokenizer.json files ask for it; calibration must not obey
    return tokenizer


def write(tmp_path, content, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_the_built_in_texts_are_enough(decoder, tokenizer):
    found = calibrate(decoder, tokenizer, CalibrationSpec())
    assert (found.ids.shape, found.ids.dtype, found.note) == ((16, 512), torch.int64, None)
    assert (found.ids[:, 0] == 1).all(), "every sequence opens as a prompt does"
    assert len({tuple(row) for row in found.ids.tolist()}) == 16
    assert tokenizer.truncation is not None, "the caller's tokenizer is left as it was"


def test_a_text_file_is_spread_over_its_length(decoder, tokenizer, tmp_path):
    source = write(tmp_path, "".join(f"{number:07d}\n" for number in range(1000)))
    found = calibrate(decoder, tokenizer, CalibrationSpec(source, sequences=4, tokens=81))
    assert [tokenizer.decode(row[1:8]) for row in found.ids.tolist()] == ["0000000", "0000160", "0000320", "0000480"]
    assert "0000009\n" in tokenizer.decode(found.ids[0].tolist())


def test_a_jsonl_file_is_read_text_by_text(decoder, tokenizer, tmp_path):
    lines = [json.dumps({"text": f"Straße {number} ", "id": number}) for number in range(40)]
    found = calibrate(decoder, tokenizer, CalibrationSpec(write(tmp_path, "\n".join(lines) + "\n\n", "a.jsonl"), 1, 64))
    assert tokenizer.decode(found.ids[0, 1:].tolist()).startswith("Straße 0 Straße 1 ")


def test_a_huge_file_is_read_only_as_far_as_needed(decoder, tokenizer, tmp_path):
    source = write(tmp_path, b"good text " * 20000 + b"\xff\xff")
    assert calibrate(decoder, tokenizer, CalibrationSpec(source, 2, 64)).ids.shape == (2, 64)


@pytest.mark.parametrize(("characters", "shape"), [(5, (1, 6)), (511, (1, 512)), (600, (1, 512)), (1200, (2, 512))])
def test_short_texts_work_and_say_so(decoder, tokenizer, tmp_path, characters, shape):
    found = calibrate(decoder, tokenizer, CalibrationSpec(write(tmp_path, "x" * characters)))
    assert found.ids.shape == shape
    assert found.note == f"{shape[0]} sequences of {shape[1]} tokens instead of 16 of 512"


def test_sequences_are_no_longer_than_the_models_positions(decoder, tokenizer):
    found = calibrate(decoder, tokenizer, CalibrationSpec(tokens=4096, sequences=2))
    assert found.ids.shape == (2, 640)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("empty.txt", b"", "no text"),
    ("empty.jsonl", b"\n\n", "no text"),
    ("latin.txt", "größer".encode("latin-1"), "not UTF-8"),
    ("latin.jsonl", b'{"text": "gr\xf6\xdfer"}', "not UTF-8"),
    ("binary.txt", bytes(range(256)), "not UTF-8"),
    ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
    ("plain.jsonl", b"just text\n", "line 1: not valid JSON"),
    ("list.jsonl", b'["text"]\n', 'line 1: an object with a string "text"'),
    ("other.jsonl", b'{"text": "a"}\n\n{"content": "b"}\n', 'line 3: an object with a string "text"'),
    ("number.jsonl", b'{"text": 3}\n', 'line 1: an object with a string "text"'),
    ("deep.jsonl", b"[" * 100000, "line 1: not valid JSON"),
], ids=lambda value: value if isinstance(value, str) and "." in value else "")
def test_bad_files_are_one_clear_error(decoder, tokenizer, tmp_path, name, content, message):
    with pytest.raises(EdgeAwqError) as error:
        calibrate(decoder, tokenizer, CalibrationSpec(write(tmp_path, content, name)))
    assert message in error.value.message
    assert name in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("source", ["missing.txt", "missing.jsonl", "."])
def test_what_is_no_file_is_an_error(decoder, tokenizer, tmp_path, source):
    with pytest.raises(EdgeAwqError, match="cannot be read") as error:
        calibrate(decoder, tokenizer, CalibrationSpec(str(tmp_path / source)))
    assert error.value.hint


def test_a_tokenizer_of_another_model_is_an_error(decoder, tokenizer, tmp_path):
    make_tiny(tmp_path, vocab_size=50)
    with pytest.raises(EdgeAwqError, match=r"token id \d+ of the tokenizer, 50 tokens in the model"):
        calibrate(load_decoder(tmp_path), tokenizer, CalibrationSpec(BUILT_IN))


@pytest.mark.parametrize("source", [BUILT_IN, OWN])
def test_one_token_too_many_is_an_error_whether_the_text_has_it_or_not(tokenizer, tmp_path, source):
    highest = max(tokenizer.get_vocab(with_added_tokens=False).values())
    make_tiny(tmp_path, vocab_size=highest)
    with pytest.raises(EdgeAwqError, match=f"token id {highest} of the tokenizer, {highest} tokens in the model"):
        calibrate(load_decoder(tmp_path), tokenizer, CalibrationSpec(source, 2, 10))


def test_the_models_own_text_is_seeded(decoder, tokenizer):
    first, again, other = (calibrate(decoder, tokenizer, CalibrationSpec(OWN, 3, 20, seed)).ids for seed in (0, 0, 1))
    assert first.shape == (3, 20)
    assert (first[:, 0] == 1).all(), "BOS"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_models_own_text_follows_its_distribution(decoder, tokenizer):
    """Mean log-likelihood of the text minus the mean entropy of the model is a sum of martingale differences."""
    ids = calibrate(decoder, tokenizer, CalibrationSpec(OWN, 32, 32)).ids
    log_p = logits(decoder, ids)[:, :-1].double().log_softmax(-1)
    surprise = log_p.gather(-1, ids[:, 1:, None])[..., 0] - (log_p.exp() * log_p).sum(-1)
    assert abs(float(surprise.mean())) < 4 * float(surprise.std()) / surprise.numel() ** 0.5


def test_a_model_that_does_not_fit_says_what_to_use_instead(decoder, tokenizer, monkeypatch):
    monkeypatch.setattr(own_text, "available_bytes", lambda: 1_000_000)
    with pytest.raises(EdgeAwqError, match=r"needs 0\.0 GB, 0\.0 GB are available") as error:
        calibrate(decoder, tokenizer, CalibrationSpec(OWN))
    assert "text" in error.value.hint


def test_a_model_without_a_first_token_says_so(decoder, tokenizer, tmp_path):
    make_tiny(tmp_path, vocab_size=tokenizer.get_vocab_size(), bos_token_id=None, eos_token_id=None)
    with pytest.raises(EdgeAwqError, match="bos_token_id"):
        calibrate(load_decoder(tmp_path), tokenizer, CalibrationSpec(OWN, 1, 4))
