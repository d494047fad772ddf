"""Tokenizers: SentencePiece itself is the oracle of the conversion, transformers that of special tokens."""

import json

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, processors

from edge_awq.errors import EdgeAwqError
from edge_awq.model.sentencepiece import convert_sentencepiece, read_sentencepiece
from edge_awq.model.tokenizer import copy_tokenizer, open_tokenizer, read_tokenizer
from tokenizers_made_here import CORPUS, LLAMA, train_byte_level, train_sentencepiece

RAW = {key: LLAMA[key] for key in ("byte_fallback", "normalization_rule_name", "remove_extra_whitespaces")}
MODELS = {
    "llama2-mistral": {"model_type": "bpe", **LLAMA},
    "bpe-nfkc": {"model_type": "bpe"},
    "gemma": {"model_type": "bpe", **RAW, "add_dummy_prefix": False, "user_defined_symbols": ["<turn>", "▁▁", "\n\n"]},
    "symbols": {"model_type": "bpe", **RAW, "user_defined_symbols": ["<turn>", "|x|"]},
    "unigram-bytes": {"model_type": "unigram", **RAW},
    "unigram-nfkc": {"model_type": "unigram"},
    "unigram-no-prefix": {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False},
}
TEXTS = ["", " ", "  two before", "after  ", " both ", "\n", "line\nbreak\r\n", "\ttab", "a" * 40, " " * 17, "😀",
         "👩‍👩‍👧 familie", "日本語 und größer", "unknown: ༀ ꙮ 𒀀", "▁ written out ▁▁", "<0x41> spelled", "½ \ufb01",
         "½½½", "x<turn>y", "a <turn> b\n\nc", "1234567890", "\u200b\u00a0\u3000", "e\u0301 combining"]
ALPHABET = sorted(set("".join(CORPUS)) | set(" \n\t▁ༀ😀<>|"))


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """SentencePiece's own processor, and our tokenizer after a round trip through tokenizer.json."""
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    processor = train_sentencepiece(path, **MODELS[request.param])
    return processor, Tokenizer.from_str(convert_sentencepiece(read_sentencepiece(path)).to_str())


def assert_same(pair, text: str) -> None:
    processor, tokenizer = pair
    expected, found = processor.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
    if expected != found:
        # Unigram segmentations of exactly the same score: SentencePiece adds float32, tokenizers float64.
        assert sorted(expected) == sorted(found)
        assert processor.decode(expected) == tokenizer.decode(found)
    if processor.unk_id() not in expected:
        assert tokenizer.decode(found) == processor.decode(expected)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_and_text_equal_sentencepiece(pair, text):
    assert_same(pair, text)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(ALPHABET, max_size=40),
                      st.lists(st.sampled_from(CORPUS), min_size=1, max_size=3).map("\n ".join)))
def test_ids_and_text_equal_sentencepiece_on_any_text(pair, text):
    # Names of control symbols and of "unknown" are these tokens here, as in transformers; SentencePiece spells them.
    processor = pair[0]
    names = [processor.id_to_piece(index) for index in range(processor.get_piece_size())
             if processor.is_control(index) or processor.is_unknown(index)]
    assume(not any(name in text for name in names))
    # The two documented differences: a symbol alone, and grapheme clusters where the model normalizes.
    if text not in ("<turn>", "|x|"):
        assert_same(pair, text.replace("\u200d", ""))


def test_every_llama_line_has_exactly_the_ids_of_sentencepiece(tmp_path):
    """No ties in BPE: here nothing but equality counts."""
    processor = train_sentencepiece(tmp_path / "tokenizer.model", "bpe", **LLAMA)
    tokenizer = convert_sentencepiece(read_sentencepiece(tmp_path / "tokenizer.model"))
    for text in [*CORPUS, *TEXTS]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text), text


def test_special_and_unknown_tokens_have_no_text(pair):
    processor, tokenizer = pair
    ids = [processor.bos_id(), *processor.encode("the fox"), processor.unk_id(), processor.eos_id()]
    assert tokenizer.decode(ids) == "the fox"


def test_the_file_is_read_as_the_protobuf_library_reads_it(tmp_path):
    path = tmp_path / "tokenizer.model"
    train_sentencepiece(path, "unigram", bos_id=-1, **RAW)
    expected = sentencepiece_model_pb2.ModelProto()
    expected.ParseFromString(path.read_bytes())
    found = read_sentencepiece(path)
    assert [(piece.text, piece.score, piece.kind) for piece in found.pieces] == \
        [(piece.piece, piece.score, piece.type) for piece in expected.pieces]
    trainer, normalizer = expected.trainer_spec, expected.normalizer_spec
    assert (found.algorithm, found.unk_id, found.bos_id, found.eos_id, found.byte_fallback) == \
        (trainer.model_type, trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.byte_fallback)
    assert (found.charsmap, found.add_dummy_prefix, found.remove_extra_whitespaces) == \
        (normalizer.precompiled_charsmap, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces)


def test_a_converted_tokenizer_equals_transformers_around_special_tokens(tmp_path):
    """A chat as Llama 2 writes it, against the class that transformers has for it."""
    train_sentencepiece(tmp_path / "tokenizer.model", "bpe", **LLAMA)
    table = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(table))
    oracle = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    for text in ("<s>[INST] the fox [/INST] größer</s><s>[INST] 日本 [/INST]", "plain text", "the</s>\nfox"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text).ids == oracle.encode(text)


@pytest.mark.parametrize("config", [{"add_bos_token": True}, {"add_bos_token": False}, {}], ids=str)
def test_a_converted_tokenizer_begins_as_the_config_says(tmp_path, config):
    processor = train_sentencepiece(tmp_path / "tokenizer.model", "bpe", **LLAMA)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    begin = [] if config.get("add_bos_token") is False else [processor.bos_id()]
    assert read_tokenizer(tmp_path).encode("the fox").ids == begin + processor.encode("the fox")
    assert read_tokenizer(tmp_path).encode("").ids == begin


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_add_bos_token_overrules_a_tokenizer_json(tmp_path, wanted, saved):
    tokenizer = train_byte_level()
    bos_id = tokenizer.token_to_id("<|begin|>")
    if saved:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", bos_id)])
    else:
        tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|begin|>", "special": True}, "add_bos_token": wanted}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_tokenizer(tmp_path).encode("the fox").ids
    assert (found[0] == bos_id) == (saved if wanted is None else wanted)
    assert found[-1] == tokenizer.encode("the fox").ids[-1]


def test_tokens_added_to_a_sentencepiece_model_keep_their_ids(tmp_path):
    processor = train_sentencepiece(tmp_path / "tokenizer.model", "bpe", **LLAMA)
    size = processor.get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode("<|im_start|><|im_end|>", add_special_tokens=False).ids == [size, size + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 7}))
    with pytest.raises(EdgeAwqError, match=f"cannot have id {size + 7}"):
        read_tokenizer(tmp_path)


def test_a_bundle_gets_what_the_checkpoint_has(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    train_byte_level().save(str(source / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (source / name).write_text('{ "unknown_key": 1 }')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not this")
    names = copy_tokenizer(source, out)
    assert sorted(names) == sorted(path.name for path in out.iterdir())
    assert "README.md" not in names and len(names) == 5
    for name in names:
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_bundle_gets_a_converted_tokenizer_and_the_special_ids_of_the_config(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    processor = train_sentencepiece(source / "tokenizer.model", "bpe", **LLAMA)
    (source / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 7], "hidden_size": 8}))
    assert copy_tokenizer(source, out) == ("tokenizer.json", "generation_config.json")
    assert read_tokenizer(out).encode("größer").ids == [1, *processor.encode("größer")]
    assert json.loads((out / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 7]}


def test_lengths_written_into_a_tokenizer_json_are_not_obeyed(tmp_path):
    tokenizer = train_byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path / "tokenizer.json").encode(CORPUS[0]).ids == train_byte_level().encode(CORPUS[0]).ids


def damaged_proto(folder, change):
    train_sentencepiece(folder / "tokenizer.model", "bpe", **LLAMA)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(proto)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


DAMAGE = {
    "nothing-there": lambda folder: None,
    "json-cut-short": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "model"'),
    "json-of-something-else": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "json-not-text": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
    "model-empty": lambda folder: (folder / "tokenizer.model").write_bytes(b""),
    "model-of-tiktoken": lambda folder: (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n"),
    "model-cut-short": lambda folder: (
        train_sentencepiece(folder / "tokenizer.model"),
        (folder / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:-1000]),
    ),
    "model-of-words": lambda folder: damaged_proto(folder, lambda proto: setattr(proto.trainer_spec, "model_type", 3)),
    "model-without-vocabulary": lambda folder: damaged_proto(folder, lambda proto: proto.ClearField("pieces")),
    "model-with-a-lie": lambda folder: damaged_proto(
        folder, lambda proto: setattr(proto.trainer_spec, "unk_id", 10**6)),
    "config-damaged": lambda folder: (
        train_sentencepiece(folder / "tokenizer.model"), (folder / "tokenizer_config.json").write_text("{")),
    "added-tokens-damaged": lambda folder: (
        train_sentencepiece(folder / "tokenizer.model"), (folder / "added_tokens.json").write_text('{"a": "b"}')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_missing_or_damaged_tokenizer_is_one_clear_error(tmp_path, damage):
    DAMAGE[damage](tmp_path)
    with pytest.raises(EdgeAwqError) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_in_another_way(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(EdgeAwqError):
        read_sentencepiece(path)
