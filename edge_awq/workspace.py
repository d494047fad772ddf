"""The folder NAME.partial in which a bundle grows: it survives a kill, and the next build goes on from there."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_awq.bundle import MANIFEST, Bundle, Manifest, seal, write_text
from edge_awq.errors import EdgeAwqError

_JOURNAL = "build.json"
_KEPT = "kept-"  # begins the names of files for builds that go on, which the bundle does not get


@dataclass(frozen=True)
class Journal:
    """How far a build got: units of work done, and what each of them reported.

    Attributes:
        fingerprint: hash of everything that decides the result; a build with another one cannot go on from here.
        carried: the file that holds what the last unit left for the next, None when nothing.
    """

    fingerprint: str
    done: int = 0
    report: tuple[dict[str, Any], ...] = ()
    carried: str | None = None


class Workspace:
    """NAME.partial beside the bundle that it becomes; one build at a time may hold it.

    Args:
        final: the bundle's folder.
        inputs: everything that decides the result, as JSON-able values.
        resume: True insists on going on, False starts over, None goes on where it can.

    Raises:
        EdgeAwqError: ``final`` has no name of its own, such as "." or "/".
    """

    def __init__(self, final: Path, inputs: dict[str, Any], resume: bool | None = None) -> None:
        if not final.name:
            raise EdgeAwqError(f"output '{final}': a bundle is a folder with a name", hint="use -o NAME.bundle")
        self.final = final.resolve() if final.is_symlink() else final  # what is replaced is the folder, not the link
        self.folder = self.final.with_name(self.final.name + ".partial")
        self.fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        self._resume = resume

    def finished(self) -> Bundle | None:
        """The final bundle, when it exists already and was built from the same inputs.

        Raises:
            EdgeAwqError: the name is taken by something else.
        """
        if not self.final.exists():
            return None
        if not (self.final / MANIFEST).is_file():
            raise EdgeAwqError(f"{self.final} exists and is not a bundle", hint="choose another output with -o")
        if self._resume is False:
            return None
        bundle = Bundle.open(self.final, verify=False)
        if bundle.manifest.fingerprint == self.fingerprint:
            return bundle
        raise EdgeAwqError(f"{self.final} exists and was built from another model or with other settings",
                           hint="choose another output with -o, or replace it with --fresh")

    def __enter__(self) -> Workspace:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)  # the folder itself is the lock: nothing to clean up
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.journal = self._take_up()
        except BlockingIOError as error:
            os.close(self._lock)
            raise EdgeAwqError(f"{self.final}: another build is writing it", hint="wait until it ends") from error
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _take_up(self) -> Journal:
        """The journal of an earlier build with the same inputs, or a fresh folder."""
        found = _read_journal(self.folder / _JOURNAL)
        if self._resume is not False and found is not None and found.fingerprint == self.fingerprint:
            self._remove_strays(found)
            return found
        if self._resume is True:
            raise EdgeAwqError(f"{self.folder}: nothing to resume with this model and these settings",
                               hint="leave --resume out to start over")
        for leftover in self.folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return Journal(self.fingerprint)

    def _remove_strays(self, journal: Journal) -> None:
        """Remove what a kill left that came between carrying a unit over and recording it, or just after."""
        for path in self.folder.glob("carried-*"):
            if path.name != journal.carried:
                path.unlink()

    def finish_unit(self, report: dict[str, Any] | None, carry: Callable[[Path], None] | None = None) -> None:
        """Record one more unit as done; ``carry`` writes what the next unit needs into the path it is given."""
        before, done = self.journal, self.journal.done + 1
        carried = before.carried
        if carry is not None:
            carried = f"carried-{done}"
            carry(self.folder / carried)
        reports = before.report if report is None else (*before.report, report)
        self.journal = Journal(self.fingerprint, done, reports, carried)
        write_text(self.folder / _JOURNAL, json.dumps(dataclasses.asdict(self.journal)))
        if before.carried not in (None, carried):
            (self.folder / before.carried).unlink(missing_ok=True)

    def kept(self, name: str) -> Path:
        """Where a file lies that a build which goes on later finds again, and the bundle does not get."""
        return self.folder / f"{_KEPT}{name}"

    def carried(self) -> Path | None:
        """What the last unit left for the next."""
        return None if self.journal.carried is None else self.folder / self.journal.carried

    def seal(self, manifest: Manifest) -> Bundle:
        """Turn the folder into the final bundle."""
        for leftover in (self.carried(), self.folder / _JOURNAL, *self.folder.glob(f"{_KEPT}*")):
            if leftover is not None:
                leftover.unlink(missing_ok=True)
        return seal(self.folder, manifest, self.final)


def _read_journal(path: Path) -> Journal | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return Journal(table["fingerprint"], table["done"], tuple(table["report"]), table["carried"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never written, or by another version: there is nothing to go on from


def describe_file(path: Path) -> list[Any]:
    """Name, size and modification time: enough to notice that a large file is another one, without reading it."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]
