"""The built-in calibration text: enough of it for any tokenizer, clean, and of many kinds."""

import unicodedata
from pathlib import Path

import pytest

import edge_awq.quantize

FILES = sorted((Path(edge_awq.quantize.__file__).parent / "text").glob("*.txt"))
# Large vocabularies (128k to 256k entries) make about this much of English; code and other languages give more tokens.
BYTES_PER_TOKEN = 4.6
SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "THAI", "CJK", "HIRAGANA",
           "HANGUL")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_text_is_clean(path):
    text = path.read_text(encoding="utf-8")
    assert unicodedata.is_normalized("NFC", text)
    assert text.endswith("\n") and "\r" not in text
    assert not [character for character in text if unicodedata.category(character) in ("Cc", "Co", "Cn")
                and character not in "\n\t"]


def test_it_suffices_for_16_sequences_of_512_tokens():
    assert sum(path.stat().st_size for path in FILES) / BYTES_PER_TOKEN >= 1.5 * 16 * 512


def test_no_passage_is_there_twice():
    paragraphs = [paragraph for path in FILES for paragraph in path.read_text(encoding="utf-8").split("\n\n")
                  if len(paragraph) > 80]
    assert len(paragraphs) == len(set(paragraphs))


def test_many_scripts_are_represented():
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    names = [unicodedata.name(character, "") for character in text if character.isalpha()]
    for script in SCRIPTS:
        assert sum(name.startswith(script) for name in names) >= 50, script
