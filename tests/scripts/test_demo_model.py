"""The demo model: an ordinary Hugging Face folder, made from nothing but Python's own library."""

import json
import math
import textwrap
from dataclasses import replace

import pytest
import torch
import transformers

from demo_settings import DemoSettings, Phase
from edge_awq.bench.stdlib_text import BOS, EOS, chat_document, documented_functions, read_corpus
from edge_awq.errors import EdgeAwqError
from edge_awq.model.decoder import load_decoder, logits
from make_demo_model import RECORD, is_current, make_demo_model

TINY = DemoSettings(vocab_size=512, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=2, num_kv_heads=1,
                    context=64, text_size=300_000, phases=(Phase(20, 8, 32), Phase(4, 4, 64)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_demo_model(tmp_path_factory.mktemp("demo") / "model", TINY)


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def test_transformers_loads_it_and_computes_the_same(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, TINY.vocab_size, (2, TINY.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
    found = logits(load_decoder(folder), ids)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5  # the bound of tests/model


def test_a_few_steps_already_teach_it_something(record):
    assert record["loss"] < 0.9 * math.log(TINY.vocab_size)


def test_same_settings_give_the_same_bytes(folder, tmp_path):
    again = make_demo_model(tmp_path / "again", TINY)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_second_call_changes_nothing(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_demo_model(folder, TINY) == folder
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_other_settings_are_not_current(folder):
    assert is_current(folder, TINY)
    assert not is_current(folder, replace(TINY, seed=1))


def test_a_failure_leaves_nothing_under_the_final_name(tmp_path):
    with pytest.raises(EdgeAwqError, match="do not share 3 KV heads"):
        make_demo_model(tmp_path / "model", replace(TINY, num_kv_heads=3))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size"])
def test_groups_of_128_divide_the_real_model(field):
    assert getattr(DemoSettings(), field) % 128 == 0


def test_tokenizer_is_lossless_and_opens_with_bos(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n\treturn  'naïve 漢字 🙂'\r\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[0] == BOS
    assert tokenizer.decode(ids[1:]) == text


def test_chat_template_is_what_it_was_trained_on(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "Return one."}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    answer = "def one():\n    return 1"
    assert chat_document("Return one.", answer) == f"{prompt}{answer}{EOS}\n"


def test_corpus_is_the_same_on_every_call_and_within_its_limit():
    first, second = read_corpus(200_000), read_corpus(200_000)
    assert first == second
    assert 100_000 < sum(map(len, first.training)) <= 200_000
    assert not set(first.training) & set(first.held_out)


def test_documented_functions_are_cut_out_whole():
    documented = 'def f(self):\n    """Say f.\n\n    More."""\n    return "f"'
    source = f"class A:\n{textwrap.indent(documented, '    ')}\n\n    def undocumented(self):\n        return 1\n"
    assert list(documented_functions(source)) == [("Say f.", documented)]
