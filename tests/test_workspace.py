"""Resuming: what a killed build leaves, and who may go on from it."""

import multiprocessing

import pytest

from edge_awq.errors import EdgeAwqError
from edge_awq.workspace import Workspace
from test_bundle import MANIFEST_OF_TEST

INPUTS = {"model": "a", "files": [["w", 1, 2]]}


def manifest_of(work):
    import dataclasses

    return dataclasses.replace(MANIFEST_OF_TEST, fingerprint=work.fingerprint)


def test_a_second_build_goes_on_where_the_first_was_killed(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.finish_unit({"block": 0}, lambda path: path.write_text("hidden 1"))
        work.finish_unit({"block": 1}, lambda path: path.write_text("hidden 2"))
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        assert work.journal.done == 2 and [entry["block"] for entry in work.journal.report] == [0, 1]
        assert work.carried().read_text() == "hidden 2"
        assert sorted(path.name for path in work.folder.iterdir()) == ["build.json", "carried-2"]


def test_what_a_kill_left_between_two_units_goes(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.finish_unit(None, lambda path: path.write_text("hidden 1"))
        for stray in ("carried-0", "carried-2", "carried-2.tmp"):
            (work.folder / stray).write_text("stray")
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        assert sorted(path.name for path in work.folder.iterdir()) == ["build.json", "carried-1"]


def test_other_inputs_start_over(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.finish_unit(None)
        (work.folder / "engines").mkdir()
    with Workspace(tmp_path / "x.bundle", {**INPUTS, "model": "b"}) as work:
        assert work.journal.done == 0 and not list(work.folder.iterdir())


def test_fresh_starts_over(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.finish_unit(None)
    with Workspace(tmp_path / "x.bundle", INPUTS, resume=False) as work:
        assert work.journal.done == 0


@pytest.mark.parametrize("journal", ["", "{", "[]", '{"fingerprint": 1}'])
def test_broken_journal_starts_over(tmp_path, journal):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.finish_unit(None)
        (work.folder / "build.json").write_text(journal)
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        assert work.journal.done == 0


def test_resume_insists(tmp_path):
    with pytest.raises(EdgeAwqError, match="nothing to resume"), Workspace(tmp_path / "x.bundle", INPUTS, resume=True):
        pass


def test_sealing_leaves_only_the_bundle(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        (work.folder / "model.onnx").write_text("graph")
        work.finish_unit(None, lambda path: path.write_text("hidden"))
        work.seal(manifest_of(work))
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]
    assert sorted(path.name for path in (tmp_path / "x.bundle").iterdir()) == ["manifest.json", "model.onnx"]


def test_a_finished_bundle_is_not_built_again_nor_overwritten(tmp_path):
    with Workspace(tmp_path / "x.bundle", INPUTS) as work:
        work.seal(manifest_of(work))
    assert Workspace(tmp_path / "x.bundle", INPUTS).finished().path == tmp_path / "x.bundle"
    assert Workspace(tmp_path / "x.bundle", {"other": 1}, resume=False).finished() is None
    with pytest.raises(EdgeAwqError, match="was built from another model") as caught:
        Workspace(tmp_path / "x.bundle", {"other": 1}).finished()
    assert "--fresh" in caught.value.hint


def test_something_else_of_that_name_is_never_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    for resume in (None, True, False):
        with pytest.raises(EdgeAwqError, match="is not a bundle"):
            Workspace(tmp_path / "photos", INPUTS, resume).finished()


def _hold(folder, ready, release):
    with Workspace(folder, INPUTS):
        ready.set()
        release.wait(30)


def test_two_builds_of_one_bundle(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "x.bundle", ready, release))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(EdgeAwqError, match="another build"), Workspace(tmp_path / "x.bundle", INPUTS):
            pass
    finally:
        release.set()
        other.join()
    with Workspace(tmp_path / "x.bundle", INPUTS):
        pass  # the lock went with the other process
