"""Family files: what a mistake in one says, which family a config.json belongs to, and what no family can run."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.model.alibi import alibi_slopes
from edge_awq.model.config import parse_config
from edge_awq.model.expression import evaluate
from edge_awq.model.family import FOLDER, SPLITS, find_family, load_families, read_family
from edge_awq.model.folds import fold_groups
from edge_awq.model.naming import SPLITS as SPLIT_FUNCTIONS
from edge_awq.model.naming import split_fused
from edge_awq.toml import tomllib

MPT = {"model_type": "mpt", "d_model": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 100, "max_seq_len": 64}
FALCON = {"model_type": "falcon", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "vocab_size": 100}
OPT = {"model_type": "opt", "hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
       "vocab_size": 100, "max_position_embeddings": 64}
NEOX = {"model_type": "gpt_neox", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 64}
GEMMA = {"model_type": "gemma2", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 100,
         "max_position_embeddings": 64, "query_pre_attn_scalar": 16, "sliding_window": 8}
LLAMA = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}


def of(kind, **changes):
    return {**LLAMA, "model_type": kind, **changes}


def parse(raw):
    return parse_config(raw, find_family(raw))


# Edits of mpt.toml, and what the error says.
MISTAKES = {
    "unknown-key": ('name        = "mpt"', 'name = "mpt"\nspeed = "high"', "the file has unknown keys: speed"),
    "missing-key": ('mlp         = "plain"\n', "", "mpt.toml: the file lacks keys: mlp"),
    "unknown-word": ('"alibi"\n', '"sinus"\n', "position = 'sinus' is not known"),
    "unknown-size": ('n_heads"', 'n_heads"\nnum_wheels = "n_wheels"', "unknown keys: num_wheels"),
    "missing-size": ('num_layers        = "n_layers"\n', "", "lacks keys: num_layers"),
    "no-expression": ('"4 * d_model"', '"4 + d_model"', "'4 + d_model' is no expression"),
    "unknown-layer": ('down      = "ffn.down_proj"', 'down = "ffn.down_proj"\nside = "x"', "unknown keys: side"),
    "missing-layer": ('o         = "attn.out_proj"\n', "", "[block] lacks keys: o"),
    "unknown-split": ('split = "blocks"', 'split = "braided"', "[block] qkv: split = 'braided' is not known"),
    "fused-key": ('split = "blocks"', 'split = "blocks", order = 1', "[block] qkv has unknown keys: order"),
    "fold-source": ('source  = "activation"', 'source = "act"', "[[fold]]: source = 'act' is not known"),
    "fold-linear": ('linears = ["down"]', 'linears = ["lower"]', "[[fold]]: linears = 'lower' is not known"),
    "outer-name": ('head       = "lm_head"', 'top = "lm_head"', "[names] has unknown keys: top"),
    "syntax": ("[names]", "[names", "not valid TOML"),
    "unknown-pairs": ('name        = "mpt"', 'name = "mpt"\nrotary_pairs = "odd"', "rotary_pairs = 'odd' is not known"),
    "unknown-qk-norm": ('name        = "mpt"', 'name = "mpt"\nqk_norm = "all"', "qk_norm = 'all' is not known"),
    "types-no-list": ('model_types = ["mpt"]', 'model_types = "mpt"', "model_types = 'mpt', a list is expected"),
    "name-no-text": ('name        = "mpt"', "name = 7", "name = 7, a text is expected"),
    "size-no-text": ('"n_layers"', "24", "config.num_layers = 24, a text is expected"),
    "fused-no-list": ('into = ["q", "k", "v"]', 'into = "qkv"', "[block] qkv: into = 'qkv', a list is expected"),
    "fused-no-name": ('{ from = "attn.Wqkv"', "{ from = 1", "[block] qkv: from = 1"),
    "fold-no-list": ('linears = ["down"]', 'linears = "down"', "linears = 'down', a list is expected"),
    "no-table": ('name        = "mpt"', 'name = "mpt"\nmatch = 3', "[match] = 3, a table is expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_family_file_is_named(tmp_path, mistake):
    old, new, message = MISTAKES[mistake]
    text = (FOLDER / "mpt.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mpt.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(EdgeAwqError) as caught:
        read_family(path)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("raw", "message"), [
    ({**MPT, "attn_config": {"alibi": False}}, "attn_config.alibi = False is not supported for family 'mpt'"),
    ({**MPT, "attn_config": {"qk_ln": True}}, "attn_config.qk_ln = True is not supported"),
    ({**MPT, "attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm = True"),
    ({**MPT, "attn_config": {"attn_type": "multiquery_attention"}}, "attn_config.attn_type = 'multiquery_attention'"),
    ({**MPT, "logit_scale": "inv_sqrt_d_model"}, "logit_scale = 'inv_sqrt_d_model'"),
    ({**MPT, "attn_config": {"clip_qkv": -6}}, "attn_config.clip_qkv = -6, a positive number"),
    ({**MPT, "expansion_ratio": "four"}, "expansion_ratio = 'four', a positive number"),
    ({**MPT, "expansion_ratio": 2.5}, "expansion_ratio * d_model or 4 * d_model = 320.0, a positive whole number"),
    ({**MPT, "n_layers": 10**12}, "n_layers = 1000000000000, a positive whole number below 10000"),
    ({**MPT, "n_heads": 3}, "3 heads do not share 128 hidden channels"),
    ({**MPT, "tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes', true or false"),
    ({**FALCON, "alibi": True}, "alibi = True is not supported for family 'falcon'"),
    ({**FALCON, "parallel_attn": False}, "no family of model type 'falcon' has"),
    ({**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3}, "4 query heads do not share 3 KV heads"),
    ({**FALCON, "activation": "snake"}, "activation 'snake' is not known"),
    ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before = False is not supported"),
    ({**NEOX, "use_parallel_residual": 7}, "no family of model type 'gpt_neox' has use_parallel_residual = 7"),
    ({**NEOX, "rotary_pct": 1.5}, "1.5 of head size 32 cannot be rotated"),
    ({**NEOX, "rotary_pct": 0.1}, "0.1 of head size 32 cannot be rotated"),
    ({**NEOX, "rope_scaling": "yarn"}, "rope_parameters = 'yarn', a table is expected"),
    ({**NEOX, "original_max_position_embeddings": 32,
      "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 factors for 4"),
    ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ({**GEMMA, "attn_logit_softcapping": "soft"}, "attn_logit_softcapping = 'soft', a positive number"),
    ({**GEMMA, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0, a positive number"),
    (of("gemma", hidden_act="relu"), "hidden_act = 'relu' is not supported for family 'gemma'"),
    (of("stablelm", use_parallel_residual=True), "use_parallel_residual = True is not supported"),
    (of("granite", rms_norm_eps=1e-6, residual_multiplier=0), "residual_multiplier = 0, a positive number"),
    (of("granitemoehybrid", num_local_experts=32), "num_local_experts = 32 is not supported"),
    (of("granitemoehybrid", num_local_experts=0, position_embedding_type="rope", layer_types=["attention", "mamba"]),
     "layer_types = ['attention', 'mamba'] is not supported for family 'granite4'"),
    (of("cohere", use_qk_norm=True), "use_qk_norm = True is not supported"),
    (of("smollm3", no_rope_layers=[1, 0, 1]), "no_rope_layer_interval = [1, 0, 1], 4 entries of 0 or 1"),
    (of("smollm3", no_rope_layers=[1, 0, 1, 2]), "= [1, 0, 1, 2], 4 entries of 0 or 1"),
    (of("smollm3", no_rope_layer_interval=0), "= 0, a positive whole number"),
    (of("phi", qk_layernorm=True), "qk_layernorm = True is not supported for family 'phi'"),
    ({"model_type": "gpt_bigcode", "multi_query": False}, "multi_query = False is not supported"),
    (of("stablelm", qk_layernorm=True), "qk_layernorm = True is not supported"),
])
def test_a_config_that_contradicts_its_family_is_refused(raw, message):
    with pytest.raises(EdgeAwqError) as caught:
        parse(raw)
    assert message in caught.value.message
    assert caught.value.hint


def test_one_model_type_can_have_several_families():
    assert find_family(FALCON).name == "falcon"
    assert find_family({**FALCON, "new_decoder_architecture": False, "multi_query": True}).name == "falcon"
    assert find_family({**FALCON, "new_decoder_architecture": True}).name == "falcon_new"
    assert find_family({**NEOX, "use_parallel_residual": False}).name == "gpt_neox_sequential"
    one_norm = {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}
    assert find_family({**FALCON, **one_norm}).name == "falcon_one_norm"


def test_what_config_says_is_taken():
    """The values that the tiny models of the other tests leave at a default."""
    mpt = parse({**MPT, "expansion_ratio": 3, "attn_config": {"alibi_bias_max": 4, "clip_qkv": 6}})
    assert (mpt.intermediate_size, mpt.alibi_max_bias, mpt.clip_qkv) == (384, 4, 6)
    assert parse(FALCON).intermediate_size == 512
    assert parse({**FALCON, "ffn_hidden_size": 320}).intermediate_size == 320
    old = parse({**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 20000})
    assert (old.rope.rotary_size, old.rope.theta) == (16, 20000)
    assert parse(of("gemma", hidden_act="gelu")).activation == "gelu_tanh"  # as the first files have it
    assert parse(of("granite")).attention_scale == parse(of("granite")).logit_scale == 1
    granite = parse(of("granite", rms_norm_eps=1e-5, residual_multiplier=0.5, embedding_multiplier=12.0,
                       logits_scaling=8.0))
    assert (granite.norm_eps, granite.embed_scale, granite.logit_scale) == (4e-5, 24, 0.125)
    assert parse(of("smollm3")).rotated == (True, True, True, False)
    assert parse(of("smollm3", no_rope_layers=[0, 1, 1, 0, 1])).rotated == (False, True, True, False)
    cohere = parse(of("cohere2", sliding_window=8, sliding_window_pattern=2))
    assert (cohere.windows, cohere.rotated) == ((8, None, 8, None), (True, False, True, False))
    assert [cohere.rope_of(layer) is None for layer in range(4)] == [False, True, False, True]
    olmo = parse(of("olmo3", sliding_window=8, rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert olmo.windows == (8, 8, 8, None) and (olmo.rope.kind, olmo.local_rope.kind) == ("linear", "default")
    assert (olmo.norm_size("q_norm"), olmo.norm_size("k_norm")) == (128, 64)
    assert parse(of("exaone4")).rotated is None
    assert parse(of("exaone4", sliding_window=8)).rotated == (True, True, True, False)
    gptj = {"model_type": "gptj", "n_embd": 42, "n_layer": 2, "n_head": 3, "n_positions": 64, "vocab_size": 100}
    assert parse({**gptj, "rotary_dim": 10}).rope.rotary_size == 10  # 10 * 3 / 42 is a little less than 10 / 14
    gemma = parse(GEMMA)
    assert gemma.windows == (8, None, 8, None)
    assert (gemma.attention_scale, gemma.embed_scale) == (0.25, 128**0.5)
    gemma3 = parse({**GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3,
                    "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert gemma3.windows == (8, 8, None, 8, 8, None, 8)
    assert (gemma3.rope.theta, gemma3.rope.kind) == (1e6, "linear")
    assert (gemma3.local_rope.theta, gemma3.local_rope.kind) == (500, "default")
    assert [gemma3.rope_name(layer) for layer in (0, 2)] == ["local_rope", "rope"]


@pytest.mark.parametrize(("text", "value"), [
    ("a", 3), ("b.c", 2.0), ("5", 5), ("2 * a", 6), ("a * b.c ^ 2", 12.0), ("a ^ -1", 1 / 3), ("z", None),
    ("z * a", None), ("b", {"c": 2.0}), ("word", "gelu"),
])
def test_expressions(text, value):
    assert evaluate(text, {"a": 3, "b": {"c": 2.0}, "word": "gelu", "z": None}) == value


@pytest.mark.parametrize("heads", [1, 3, 4, 12, 16])
def test_alibi_slopes_are_those_of_the_paper(heads):
    """n heads: 2^(-8/n), its square, its cube ...; between powers of two, the next power's odd ones fill up."""
    power = 2 ** int(np.log2(heads))
    expected = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    expected += [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * (heads - power), 2)]
    np.testing.assert_allclose(alibi_slopes(heads, 8), expected, rtol=1e-6)


def test_a_grouped_matrix_is_split_head_by_head():
    """Two KV heads of which each serves two query heads: rows are marked by what they are."""
    raw = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
    family, config = find_family(raw), parse(raw)
    order = ["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]
    rows = torch.arange(len(order)).repeat_interleave(config.head_size)
    for layer, heads in {"q": ["q0", "q1", "q2", "q3"], "k": ["k0", "k1"], "v": ["v0", "v1"]}.items():
        found = split_fused(family, config, layer, rows)
        assert found.tolist() == [order.index(head) for head in heads for _ in range(config.head_size)]


def test_every_way_to_split_is_implemented():
    assert set(SPLIT_FUNCTIONS) == set(SPLITS)


def test_what_cannot_absorb_a_scale_is_left_out():
    relu, gelu = parse(OPT), parse({**OPT, "activation_function": "gelu"})
    sources = [[fold.source for fold in fold_groups(find_family(OPT), config)] for config in (relu, gelu)]
    assert sources == [["attn_norm", "v", "mlp_norm", "up"], ["attn_norm", "v", "mlp_norm", "act_scale"]]
    clipped = parse({**MPT, "attn_config": {"clip_qkv": 6}})
    assert "v" not in {fold.source for fold in fold_groups(find_family(MPT), clipped)}


@pytest.mark.parametrize("family", load_families(), ids=lambda family: family.name)
def test_a_linear_takes_scales_from_one_fold_only(family):
    scaled = [linear for fold in family.fold for linear in fold.linears]
    assert len(scaled) == len(set(scaled)) and set(scaled) <= set(family.linears)


def test_the_example_of_the_documentation_is_the_shipped_file_but_for_sizes():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    shipped = tomllib.loads((FOLDER / "falcon.toml").read_text(encoding="utf-8"))
    for key in ("config", "defaults"):
        left_out = shipped[key].keys() - shown[key].keys()
        assert left_out <= {"num_layers", "num_heads", "vocab_size", "max_positions", "norm_eps", "activation",
                            "rope_theta", "tied_head"}
        shipped[key] = {name: value for name, value in shipped[key].items() if name not in left_out}
    assert shown == shipped
