"""edge-awq eval: transformers' own loss as the oracle, references that are kept, and what is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import assert_refused, command, make_model

from edge_awq.evaluate.evaluate import BUILT_IN
from edge_awq.evaluate.reference import read_reference
from edge_awq.runner.vocabulary import read_vocabulary
from edge_awq.texts import cut_windows, read_pieces

WINDOW = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, its bundles, and the model as transformers runs it."""
    folder = tmp_path_factory.mktemp("eval")
    model = make_model(folder / "model")
    for name, options in (("fp16", ["--precision", "fp16"]), ("rtn", ["--recipe", "rtn"])):
        result = command("build", folder / "model", "-o", folder / name, *options)
        assert result.code == 0, result
    return folder, model


def results_of(*arguments):
    result = command("eval", *arguments, "--window", WINDOW, "--json")
    assert result.code == 0, result
    return json.loads(result.out)


@pytest.fixture(scope="module")
def expected(made):
    """Mean negative log likelihood by transformers' loss, and log probabilities, on windows of the built-in text."""
    folder, model = made
    windows = cut_windows(read_vocabulary(folder / "rtn").tokenizer, read_pieces(BUILT_IN), 5, WINDOW)
    ids = torch.tensor(windows.ids)
    labels = ids.clone()
    labels[:, : windows.opening] = -100
    with torch.no_grad():
        found = model(ids, labels=labels)
    return float(found.loss), found.logits.log_softmax(-1).double().numpy()[:, max(windows.opening - 1, 0) : -1]


def test_perplexity_is_that_of_transformers(made, expected):
    folder, _ = made
    answer = results_of(folder / "fp16", "--windows", 5)
    [found] = answer["results"]
    assert (answer["windows"], answer["window_tokens"], answer["text"]) == (5, WINDOW, "built-in")
    # fp16 weights are the checkpoint's own; the engine's logits are within 1e-5 of transformers' (relative L2)
    assert found["nll_nats"] == pytest.approx(expected[0], abs=1e-3)
    assert found["perplexity"] == pytest.approx(np.exp(expected[0]), rel=1e-3) and found["kl_nats"] is None


@pytest.mark.parametrize("reference", ["model", "fp16"])
def test_divergence_from_a_reference(made, expected, reference):
    folder, _ = made
    answer = results_of(folder / "rtn", folder / "fp16", "--reference", folder / reference, "--windows", 5)
    four, sixteen = answer["results"]
    assert sixteen["kl_nats"] < 1e-6 and sixteen["top1_agreement"] > 0.99
    assert four["reference_perplexity"] == pytest.approx(np.exp(expected[0]), rel=1e-3)
    assert four["kl_nats"] > 1e-4 > abs(sixteen["excess_nats"]) and four["model"]["quant"]["recipe"] == "rtn"
    assert four["excess_nats"] == pytest.approx(four["nll_nats"] - np.log(four["reference_perplexity"]))
    from edge_awq import load

    windows = cut_windows(read_vocabulary(folder / "rtn").tokenizer, read_pieces(BUILT_IN), 5, WINDOW).ids
    divergences = []
    with load(folder / "rtn") as session:  # in one piece, with another context
        for ids, log_p in zip(windows, expected[1], strict=True):
            session.reset()
            log_q = torch.tensor(session.engine.logits(ids)).double().log_softmax(-1).numpy()[-1 - len(log_p) : -1]
            divergences.append((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    assert four["kl_nats"] == pytest.approx(np.mean(divergences), rel=0.02)


def test_a_kept_reference_gives_the_same_numbers_without_torch(made, tmp_path):
    folder, _ = made
    kept = tmp_path / "kept.npz"
    direct = results_of(folder / "rtn", "--reference", folder / "model", "--windows", 3)
    saved = command("eval", "--reference", folder / "model", "--save", kept, "--window", WINDOW, "--windows", 3)
    assert saved.code == 0 and saved.out == "" and "3 windows" in saved.err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.npz"]
    with np.load(kept) as members:  # numpy alone reads it
        assert members["ids"].shape == (3, WINDOW) and members["log_p_2"].dtype == np.float16
    script = ("import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
              "from edge_awq.__main__ import main; main()")
    arguments = ["eval", folder / "rtn", "--reference", kept, "--json"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["results"] == direct["results"] and again["reference"] == "model"


def test_windows_shorter_and_longer_than_a_part(made, tmp_path):
    """128 tokens run in three parts; the numbers are those of the same tokens in one."""
    folder, _ = made
    whole = json.loads(command("eval", folder / "fp16", "--window", 128, "--windows", 1, "--json").out)["results"][0]
    windows = cut_windows(read_vocabulary(folder / "fp16").tokenizer, read_pieces(BUILT_IN), 1, 128)
    with torch.no_grad():
        log_p = made[1](torch.tensor(windows.ids)).logits[0].double().log_softmax(-1).numpy()
    first = max(windows.opening - 1, 0)
    targets = np.array(windows.ids[0][first + 1 :])
    assert whole["tokens"] == len(targets)
    assert whole["nll_nats"] == pytest.approx(-log_p[first:-1][np.arange(len(targets)), targets].mean(), abs=1e-3)
    assert command("eval", folder / "fp16", "--window", 2, "--windows", 1).code == 0


def test_a_table_and_a_file(made, tmp_path):
    folder, _ = made
    out = tmp_path / "quality.json"
    result = command("eval", folder / "rtn", "--reference", folder / "fp16", "--window", WINDOW, "-o", out)
    assert result.code == 0 and "rtn" in result.out and "x reference" in result.out and "fp16" in result.out
    table = json.loads(out.read_text())
    assert table["reference"] == "fp16" and f"{table['results'][0]['kl_nats']:.5f}" in result.out


def test_a_bound_on_the_divergence_decides_the_exit_code(made):
    folder, _ = made
    arguments = ["eval", folder / "rtn", "--reference", folder / "fp16", "--window", WINDOW, "--windows", 2]
    assert command(*arguments, "--max-kl", 100).code == 0
    result = command(*arguments, "--max-kl", 0)
    assert result.code == 1 and "more than --max-kl 0" in result.err and "Hint: " in result.err
    assert command("eval", folder / "rtn", "--max-kl", 1).code == 2


def test_texts_of_ones_own(made, tmp_path):
    folder, _ = made
    lines = tmp_path / "mine.jsonl"
    lines.write_text("".join(json.dumps({"text": f"Number {n} is here. "}) + "\n" for n in range(60)))
    answer = results_of(folder / "rtn", "--text", lines, "--windows", 2)
    assert answer["text"] == str(lines) and answer["windows"] == 2


def test_what_cannot_be_evaluated_is_refused(made, tmp_path):
    folder, _ = made
    rtn, kept, empty, other = folder / "rtn", tmp_path / "kept.npz", tmp_path / "empty.txt", tmp_path / "other"
    empty.write_text("")
    assert command("eval", "--reference", rtn, "--save", kept, "--window", WINDOW, "--windows", 1).code == 0
    assert_refused(command("eval"), "nothing to evaluate")
    assert_refused(command("eval", rtn, "--save", tmp_path / "x.npz"), "--save without --reference")
    assert_refused(command("eval", rtn, "--text", empty), "no text to evaluate on")
    assert_refused(command("eval", rtn, "--text", tmp_path / "none.txt"), "none.txt", "cannot be read")
    assert_refused(command("eval", rtn, "--window", 5000), "5000", "256")
    assert_refused(command("eval", rtn, "--reference", kept, "--window", 8), "already")
    assert_refused(command("eval", tmp_path / "none"), "none")
    assert_refused(command("eval", rtn, "--reference", tmp_path / "none"), "none")
    make_model(other, vocab_size=400)
    assert command("build", other, "-o", tmp_path / "other.bundle", "--recipe", "rtn").code == 0
    assert_refused(command("eval", tmp_path / "other.bundle", "--reference", kept), "vocabulary", "400")


@pytest.mark.parametrize("damage", ["text", "cut", "member", "pickle"])
def test_a_damaged_reference_is_refused(made, tmp_path, damage):
    folder, _ = made
    kept = tmp_path / "kept.npz"
    assert command("eval", "--reference", folder / "rtn", "--save", kept, "--window", WINDOW, "--windows", 2).code == 0
    assert read_reference(kept).vocab_size > 0
    if damage == "text":
        kept.write_text("no reference")
    elif damage == "cut":
        kept.write_bytes(kept.read_bytes()[:5000])
    elif damage == "member":
        with np.load(kept) as members:
            parts = {name: members[name] for name in members.files if name != "log_p_1"}
        np.savez(kept, **parts)
    else:
        np.save(tmp_path / "pickled.npy", np.array([{}], object))
        shutil.move(tmp_path / "pickled.npy", kept)
    assert_refused(command("eval", folder / "rtn", "--reference", kept), "kept.npz", "not a reference, or damaged")


def test_a_reference_that_fails_leaves_nothing(made, tmp_path, monkeypatch):
    folder, _ = made
    from edge_awq.evaluate import evaluate

    def fail(log_p):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "to_halves", fail)
    result = command("eval", "--reference", folder / "rtn", "--save", tmp_path / "x.npz", "--window", WINDOW)
    assert result.code == 1 and "No space left" in result.err and not list(tmp_path.iterdir())
