"""The report as a user meets it: files, one page on its own, and nothing written when something is wrong."""

import csv
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib", reason="pip install 'edge-awq[plot]'")

from made_results import AGX, result
from made_runs import make_run

from edge_awq.bench.results import write_results
from edge_awq.cli import main


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_results(folder / "r.json", [result(**AGX), result(**AGX, model="falcon-7b", valid=False,
                                                            invalid_reasons=("it <throttled>",))])
    answer = report(folder / "r.json", make_run(folder), "-o", folder / "out")
    assert answer.exit_code == 0, answer.output
    return folder / "out", answer.stdout.split()


def test_files(made):
    folder, listed = made
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("figure", "context", "power-20260101T000000Z-abcdef")
                for kind in ("png", "svg")}
    tables = {f"{name}.{kind}" for name in ("figure", "results", "runs") for kind in ("md", "csv")}
    assert names == pictures | tables | {"report.html"}
    assert sorted(listed) == sorted(str(folder / name) for name in names)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures if name.endswith("png"))


def test_tables(made):
    folder, _ = made
    with (folder / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 14
    assert [row["model"] for row in rows if row["measured tok/s"]] == ["Llama-2-7B"]
    papers = {row["AWQ paper tok/s"] != "OOM": row["paper's share of limit"] != "" for row in rows}
    assert papers == {True: True, False: False}
    text = (folder / "results.md").read_text()
    assert "no: it <throttled>" in text and text.count("\n| ") == 4
    assert "interval_slower: 1 s instead of 0.1 s" in (folder / "runs.csv").read_text()


def test_page_stands_alone(made):
    page = (made[0] / "report.html").read_text()
    assert page.count("<svg") == 3 and "it &lt;throttled&gt;" in page and "1 of 2 results are invalid" in page
    assert not re.search(r'<(?:img|script|link)\b|src="|href="(?!#)|url\((?!#)', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)


def test_the_same_results_give_the_same_pictures(made, tmp_path):
    write_results(tmp_path / "r.json", [result(**AGX), result(**AGX, model="falcon-7b", valid=False,
                                                              invalid_reasons=("it <throttled>",))])
    assert report(tmp_path / "r.json", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "figure.svg").read_bytes() == (made[0] / "figure.svg").read_bytes()


@pytest.mark.parametrize(("name", "text", "word"), [
    ("missing.json", None, "no such file"), ("empty.json", "", "empty"), ("cut.json", '{"schema"', "cut off"),
    ("old.json", '{"schema": "edge-awq.results/0"}', "schema version 0, not 1")])
def test_bad_input_writes_nothing(tmp_path, name, text, word):
    if text is not None:
        (tmp_path / name).write_text(text)
    answer = report(tmp_path / name, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and answer.stderr.count("Error: ") == 1 and "Hint: " in answer.stderr
    assert name in answer.stderr and word in answer.stderr
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_compared(tmp_path):
    for name in ("a.json", "b.json"):
        write_results(tmp_path / name, [result(**AGX)])
    answer = report(tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "out")
    assert answer.exit_code == 1 and "cannot be one bar" in answer.stderr and not (tmp_path / "out").exists()


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    answer = report("-o", tmp_path / "out")
    assert answer.exit_code == 1 and "is a file" in answer.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = report("-o", tmp_path / "out")
    assert answer.exit_code == 1 and "edge-awq[plot]" in answer.stderr and not (tmp_path / "out").exists()
