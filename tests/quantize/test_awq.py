"""Blocks and heads through the quantizer: what is stored, what is reported, and that nothing depends on chance."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from edge_awq.errors import EdgeAwqError
from edge_awq.layout import plan_layout
from edge_awq.model.decoder import embed_tokens, load_decoder, run_block
from edge_awq.model.folds import fold_groups, has_act_scale
from edge_awq.quantize.awq import QuantizeSettings, quantize_block, quantize_head, to_half
from edge_awq.quantize.unit import fold_scales, requantize
from edge_awq.target import QuantSpec
from quantized import AWQ, BEST, RTN, quantize_model
from tiny import ARCHITECTURES, UNGROUPED, make_tiny

FP16 = QuantizeSettings("fp16", "awq", AWQ.quant)
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}


def make(tmp_path, architecture="llama3", **changes):
    make_tiny(tmp_path, architecture, **changes)
    return load_decoder(tmp_path)


def token_ids(decoder, sequences=4, tokens=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, decoder.config.vocab_size, (sequences, tokens), generator=generator)


def with_head(settings, bits, symmetric=False):
    return dataclasses.replace(settings, quant=QuantSpec(128, symmetric, bits))


@pytest.mark.parametrize("architecture", [
    "llama2", "llama-biased", "llama-wide-heads", "qwen2", "mpt", "mpt-clipped", "falcon-biased", "falcon-40b", "opt",
    "opt-gelu", "gemma2", "qwen3", "starcoder2", "stablelm", "granite", "glm4", "cohere", "olmo2",
    "exaone4", "phi", "nemotron"])
def test_folding_leaves_the_function_as_it_was(tmp_path, architecture):
    """Every fold group of the family, with scales over four orders of magnitude; float32 rounds each product anew."""
    decoder = make(tmp_path, architecture)
    family, config = decoder.family, decoder.config
    weights = decoder.block(0)
    if has_act_scale(family, config):
        weights["act_scale.weight"] = torch.ones(config.intermediate_size)
    x = torch.randn(2, 20, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = run_block(decoder.config, 0, weights, x)
    folded = {name: tensor.clone() for name, tensor in weights.items()}
    done = []
    for fold in fold_groups(family, config):
        inputs = weights[f"{fold.linears[0]}.weight"].shape[1]
        if len(weights[f"{fold.source}.weight"]) == inputs:
            scales = torch.logspace(-2, 2, inputs)[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
            fold_scales(folded, fold, scales)
            done.append(fold.source)
    assert ("v" in done) == (config.q_size == config.kv_size and config.clip_qkv is None)
    assert ("act_scale" in done) == (config.mlp == "plain" and config.activation != "relu")
    expected_of_all = {"up" if "gate" in family.linears or config.activation == "relu" else "act_scale"}
    assert expected_of_all | ({"attn_norm"} & set(family.norms)) <= set(done)
    found = run_block(decoder.config, 0, folded, x)
    # 2^-24 per rounding, two more roundings per product, sums of at most 512 products: well below 1e-5 of the output.
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("head_bits", [4, 8, 16])
@pytest.mark.parametrize("settings", [AWQ, BEST, RTN, FP16], ids=["awq", "best", "rtn", "fp16"])
@pytest.mark.parametrize("architecture", ["llama-biased", "qwen2", "mpt", "falcon-biased", "opt", "gemma3"])
def test_the_tensors_are_those_of_the_planned_layout(tmp_path, architecture, settings, head_bits):
    decoder = make(tmp_path, architecture)
    settings = with_head(settings, head_bits)
    found = quantize_model(decoder, token_ids(decoder), settings).tensors
    planned = plan_layout(decoder, settings.precision, settings.quant, context=8)
    tables = ("embed.", "positions.", "rope.", "local_rope.")
    expected = {spec.name: (spec.dtype, spec.shape) for spec in planned if not spec.name.startswith(tables)}
    stored = {name: (DTYPES[t.dtype], tuple(t.shape)) for name, t in found.items() if not name.startswith(tables)}
    assert stored == expected


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(UNGROUPED)))
def test_no_block_of_any_architecture_gets_worse_than_plain_rounding(tmp_path, architecture):
    decoder = make(tmp_path, architecture)
    for report in quantize_model(decoder, token_ids(decoder), AWQ).reports:
        assert {"awq": report.loss_awq, "rtn": report.loss_rtn}[report.kept] == min(report.loss_awq, report.loss_rtn)
        for fold in report.folds:
            assert fold.skipped or fold.loss_after <= fold.loss_before


@pytest.mark.parametrize("architecture", ["mpt", "falcon-40b", "gpt-neox"])
def test_outliers_behind_a_plain_activation_are_scaled_down(tmp_path, architecture):
    """One of 64 inner channels is 30 times as large; a vector on the activation's output takes its scale."""
    make_tiny(tmp_path, architecture)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(("up_proj.weight", "h_to_4h.weight")):
            tensor[::64] *= 30
    save_file(tensors, path)
    decoder = load_decoder(tmp_path)
    hidden = embed_tokens(decoder.config, decoder.embedding(), token_ids(decoder))
    block, _ = quantize_block(decoder, 0, hidden, AWQ)
    report = next(fold for fold in block.report.folds if fold.source == "act_scale")
    assert report.ratio > 0 and report.loss_after < 0.7 * report.loss_before
    assert block.report.kept == "awq" and block.report.loss_awq < block.report.loss_rtn
    scale = block.tensors["act_scale.weight"]
    large = torch.zeros(len(scale), dtype=torch.bool)
    large[::64] = True
    assert scale[large].median() < scale[~large].median()


@pytest.mark.parametrize("architecture", ["llama2", "llama-biased", "qwen2", "falcon-biased", "mpt"])
def test_best_keeps_the_best_of_three(tmp_path, architecture):
    decoder = make(tmp_path, architecture)
    reports = quantize_model(decoder, token_ids(decoder), with_head(BEST, 4)).reports
    for report in reports:
        losses = {"gptq": report.loss_gptq, "awq": report.loss_awq, "rtn": report.loss_rtn}
        assert losses[report.kept] == min(losses.values())
    assert "gptq" in {report.kept for report in reports}


def test_the_worse_candidate_is_not_kept(tmp_path, monkeypatch):
    """Ranges that cut everything away make AWQ the worse one."""
    decoder = make(tmp_path)
    hidden = F.embedding(token_ids(decoder), decoder.embed())
    monkeypatch.setattr("edge_awq.quantize.unit.search_ranges",
                        lambda weight, gram, grid: (torch.zeros(len(weight), len(gram)),) * 2)
    block, _ = quantize_block(decoder, 0, hidden, AWQ)
    plain, _ = quantize_block(decoder, 0, None, RTN)
    assert block.report.kept == "rtn"
    assert block.report.loss_awq > block.report.loss_rtn
    assert set(block.report.clipped.values()) == {0}
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in block.tensors.items())


def test_q_and_k_are_clipped_only_where_the_block_gains(tmp_path, monkeypatch):
    decoder = make(tmp_path)
    hidden = F.embedding(token_ids(decoder), decoder.embed())
    found = quantize_block(decoder, 0, hidden, AWQ)[0].report
    with monkeypatch.context() as patch:
        for module in ("unit", "choice"):
            patch.setattr(f"edge_awq.quantize.{module}.RISKY", ())
        always = quantize_block(decoder, 0, hidden, AWQ)[0].report
    monkeypatch.setattr("edge_awq.quantize.choice.requantize", never_clip(("q", "k")))
    never = quantize_block(decoder, 0, hidden, AWQ)[0].report
    assert found.loss_awq == min(always.loss_awq, never.loss_awq)
    assert (found.clipped["q"] + found.clipped["k"] > 0) == (always.loss_awq < never.loss_awq)


def never_clip(linears):
    """``requantize`` that takes no statistics for some linears."""
    return lambda unit, candidate, linear, stats: requantize(
        unit, candidate, linear, None if linear in linears else stats)


def test_reported_losses_are_those_of_what_is_stored(tmp_path):
    decoder = make(tmp_path)
    ids = token_ids(decoder)
    hidden = F.embedding(ids, decoder.embed())
    expected = run_block(decoder.config, 0, decoder.block(0), hidden)
    report = quantize_block(decoder, 0, hidden, AWQ)[0].report
    best = quantize_block(decoder, 0, hidden, BEST)[0].report
    assert (best.kept, best.loss_awq) == ("gptq", report.loss_awq)
    for settings, loss in ((AWQ, report.loss_awq), (RTN, report.loss_rtn), (BEST, best.loss_gptq)):
        meant = quantize_model(decoder, ids, settings).decoder
        error = (run_block(decoder.config, 0, meant.block(0), hidden) - expected).double()
        assert loss == pytest.approx(float((error.square().sum(-1) / expected.square().sum(-1)).mean()), rel=1e-4)


def test_outputs_are_the_full_precision_inputs_of_the_next_block(tmp_path):
    decoder = make(tmp_path)
    hidden = F.embedding(token_ids(decoder), decoder.embed())
    _, outputs = quantize_block(decoder, 0, hidden, AWQ)
    expected = run_block(decoder.config, 0, decoder.block(0), hidden)
    assert torch.allclose(outputs, expected, rtol=1e-4, atol=1e-5)  # float32, other batch shapes


@pytest.mark.parametrize("settings", [AWQ, BEST], ids=["awq", "best"])
@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bits_wherever_the_input_lies_in_memory(tmp_path, threads, settings):
    torch.set_num_threads(threads)
    decoder = make(tmp_path, num_hidden_layers=1)
    hidden = F.embedding(token_ids(decoder), decoder.embed())
    moved = torch.empty(hidden.numel() + 3)[3:].view_as(hidden).copy_(hidden)  # as in a mapped file: off by 12 bytes
    runs = []
    for x in (hidden, moved):
        torch.rand(7)  # what others draw must not matter
        block, outputs = quantize_block(decoder, 0, x, settings)
        head = quantize_head(decoder, outputs, settings)
        runs.append((block.tensors | head.tensors | {"outputs": outputs}, block.report, head.report))
    first, second = runs
    assert first[1:] == second[1:]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_the_report_is_json(tmp_path):
    decoder = make(tmp_path)
    block, _ = quantize_block(decoder, 0, F.embedding(token_ids(decoder), decoder.embed()), AWQ)
    table = json.loads(json.dumps(dataclasses.asdict(block.report)))
    assert table["name"] == "blocks.0"
    assert set(table["clipped"]) == set(decoder.family.linears)
    assert min(table["clipped"][name] for name in ("o", "gate", "up", "down")) > 0
    folds = {fold["source"]: fold for fold in table["folds"]}
    assert folds["v"]["ratio"] is None and "64 outputs" in folds["v"]["skipped"]
    assert 0 <= folds["up"]["ratio"] < 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_symmetric_zero_points_are_all_eight(tmp_path, symmetric):
    decoder = make(tmp_path, intermediate_size=320)  # groups of 64: an odd number of them
    tensors = quantize_model(decoder, token_ids(decoder), with_head(AWQ, 4, symmetric)).tensors
    zeros = torch.cat([t[:, :2].flatten() for name, t in tensors.items() if name.endswith("zero_points")])
    assert (zeros.unique().tolist() == [0x08, 0x88]) == symmetric
    assert tensors["blocks.0.down.zero_points"].shape == (128, 3)
    assert (tensors["blocks.0.down.zero_points"][:, 2] < 16).all(), "the pad nibble is zero"


def test_inputs_that_no_group_divides_are_an_error(tmp_path):
    decoder = make(tmp_path, intermediate_size=200)
    with pytest.raises(EdgeAwqError, match=r"blocks\.1\.down: K = 200"):
        quantize_block(decoder, 1, None, RTN)


def test_fp16_stores_halves_and_refuses_what_they_cannot_hold(tmp_path):
    decoder = make(tmp_path)
    block, outputs = quantize_block(decoder, 0, None, FP16)
    assert outputs is None
    assert torch.equal(block.tensors["q.weight"], decoder.block(0)["q.weight"].half())
    assert torch.equal(block.tensors["attn_norm.weight"], decoder.block(0)["attn_norm.weight"])
    with pytest.raises(EdgeAwqError, match=r"blocks\.0\.q\.weight: the value -70000"):
        to_half("blocks.0.q.weight", torch.tensor([[1.0, -70000.0]]))


def test_outputs_that_overflow_are_an_error_that_names_the_block(tmp_path):
    decoder = make(tmp_path)
    hidden = F.embedding(token_ids(decoder), decoder.embed())
    hidden[0, 0] = torch.inf
    with pytest.raises(EdgeAwqError, match=r"blocks\.0: outputs overflow"):
        quantize_block(decoder, 0, hidden, AWQ)


@pytest.mark.parametrize("field", ["precision", "recipe"])
def test_unknown_settings_are_an_error_that_lists_the_known(field):
    with pytest.raises(EdgeAwqError, match=f"{field} = 'gptq'") as error:
        dataclasses.replace(AWQ, **{field: "gptq"})
    assert "w4a16" in error.value.hint or "awq, rtn" in error.value.hint
