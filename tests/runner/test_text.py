"""Streamed text: the tokenizer's own decode of all ids is the oracle, over any ids and any cut of the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers

from edge_awq.model.sentencepiece import convert_sentencepiece, read_sentencepiece
from edge_awq.runner.text import StopFilter, TextStream
from tokenizers_made_here import LLAMA, make_spaced, train_byte_level, train_sentencepiece

BROKEN = "\ufffd"
# Two ways in which files leave the first space of a text out.
MAKERS = {
    "byte-level": train_byte_level,
    "metaspace": lambda: make_spaced(decoders.Metaspace()),
    "strip": lambda: make_spaced(decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(),
                                                    decoders.Strip(" ", 1, 0)])),
}


def byte_fallback(folder, kind: str) -> Tokenizer:
    train_sentencepiece(folder / "tokenizer.model", kind, **LLAMA)
    return convert_sentencepiece(read_sentencepiece(folder / "tokenizer.model"))


@pytest.fixture(scope="module", params=["bpe", "unigram", *MAKERS])
def tokenizer(request, tmp_path_factory):
    if request.param in ("bpe", "unigram"):
        return byte_fallback(tmp_path_factory.mktemp("spm"), request.param)
    return MAKERS[request.param]()


def stream(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    text = TextStream(tokenizer, stop)
    pieces = []
    for token_id in ids:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    return [*pieces, text.finish()]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_pieces_make_up_the_decoded_text_for_any_ids(tokenizer, data):
    size = tokenizer.get_vocab_size()
    bytes_too = [index for index in range(size) if (tokenizer.id_to_token(index) or "").startswith("<0x")]
    ids = data.draw(st.lists(st.one_of(st.integers(0, size + 3), st.sampled_from(bytes_too or [0])), max_size=40))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab \nß日😀👩\u200d", max_size=30))
def test_no_piece_of_real_text_has_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert BROKEN not in "".join(pieces)


def test_an_emoji_of_four_byte_tokens_comes_whole():
    tokenizer = train_byte_level()
    ids = [tokenizer.token_to_id(token) for token in pre_tokenizers.ByteLevel(False).pre_tokenize_str("🦊")[0][0]]
    assert len(ids) == 4
    assert stream(tokenizer, ids) == ["", "", "", "🦊", ""]


def test_complete_text_is_not_held_back():
    tokenizer = train_byte_level()
    text = TextStream(tokenizer)
    for token_id in tokenizer.encode("the quick brown fox\n").ids:
        assert text.push(token_id) == tokenizer.decode([token_id])


def test_bytes_cut_short_come_out_at_the_end_as_the_tokenizer_writes_them(tokenizer):
    ids = tokenizer.encode("a😀", add_special_tokens=False).ids[:-1]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_special_tokens_have_no_text_and_added_ones_have():
    tokenizer = train_byte_level()
    assert "".join(stream(tokenizer, tokenizer.encode("<|begin|>a<|end|>b<tool>c").ids)) == "ab<tool>c"


@pytest.mark.parametrize("text", ["größer<|end|>日本<|end|><|begin|>", "<|begin|>a<|end|>b", "日<|begin|>本<|end|>"])
@pytest.mark.parametrize("missing", [0, 1])
def test_special_tokens_that_are_spelled_have_their_text(text, missing):
    tokenizer = train_byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    place = ids.index(tokenizer.token_to_id("<|end|>"))
    ids = ids[: place - missing] + ids[place:]  # a character may have been cut short before it
    both = [tokenizer.token_to_id(name) for name in ("<|begin|>", "<|end|>")]
    for spelled in (both, both[1:]):
        stream = TextStream(tokenizer, spelled=spelled)
        kept = [token_id for token_id in ids if token_id not in both or token_id in spelled]
        found = "".join([stream.push(token_id) for token_id in ids]) + stream.finish()
        assert found == tokenizer.decode(kept, skip_special_tokens=False)


def first_stop(text: str, stop: tuple[str, ...]) -> str:
    """What must be left: read letter by letter, cut where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        for one in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(one):
                return text[: end - len(one)]
    return text


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.text(alphabet="abc", max_size=5), max_size=12),
       stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_same_place_however_the_text_arrives(pieces, stop):
    stops = StopFilter(stop)
    passed = "".join(stops.push(piece) for piece in pieces) + stops.finish()
    assert passed == first_stop("".join(pieces), tuple(stop))
    assert stops.stopped == any(one in "".join(pieces) for one in stop)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab \nß日😀", max_size=20),
       stop=st.lists(st.text(alphabet="ab \nß日😀", min_size=1, max_size=3), min_size=1, max_size=2))
def test_stop_strings_straddle_tokens(tokenizer, text, stop):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(stream(tokenizer, ids, tuple(stop))) == first_stop(tokenizer.decode(ids), tuple(stop))


def test_a_stop_of_byte_tokens_stops_at_once(tmp_path):
    tokenizer = byte_fallback(tmp_path, "bpe")
    text = TextStream(tokenizer, ["\n"])
    for token_id in tokenizer.encode("the fox", add_special_tokens=False).ids:
        text.push(token_id)
    assert not text.stopped
    text.push(tokenizer.token_to_id("<0x0A>"))
    assert text.stopped
