"""A Jetson's power modes: which there are, which one is set, setting another, and always setting it back.

nvpmodel lists its modes in /etc/nvpmodel.conf and keeps the current one's number in /var/lib/nvpmodel/status.

Not yet verified on device: files and messages are from Jetson Linux's documentation and public dumps.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.power.sysfs import is_tegra
from edge_awq.runner.board import power_mode, power_modes
from edge_awq.signals import ENDINGS
from edge_awq.tune.setters import PowerMode, Setter, allowed, find_setter

_BY_HAND = "try 'sudo nvpmodel -m {}' by hand"


class ModeRefused(EdgeAwqError):
    """A mode that was not set; the message says why, ``reason`` without the mode's name."""

    def __init__(self, mode: PowerMode, reason: str) -> None:
        super().__init__(f"power mode {mode.name} cannot be set: {reason}", hint=_BY_HAND.format(mode.number))
        self.reason = reason


class ModeSwitch:
    """Sets power modes of the board whose files are below ``root``, by ``setter``; None: what find_setter finds.

    Attributes:
        modes: all there are, in nvpmodel's order.
        original: the one that was set when this was made.
    """

    def __init__(self, root: Path = Path("/"), setter: Setter | None = None) -> None:
        if not is_tegra(root):
            raise EdgeAwqError("this machine is no Jetson, so it has no power modes to choose from",
                               hint="run it on the board; 'edge-awq bench' measures any machine")
        self.modes = tuple(PowerMode(number, name) for number, name in power_modes(root).items())
        if not self.modes:
            raise EdgeAwqError(f"{root / 'etc/nvpmodel.conf'} lists no power modes",
                               hint="in a container, run it on the board itself")
        self._root, self._touched = root, False
        self._setter = setter or find_setter()
        found = self.current()
        if found is None:
            raise EdgeAwqError(f"the board's power mode is not known ({root / 'var/lib/nvpmodel/status'}), so it could "
                               "not be set back", hint="set one with 'sudo nvpmodel -m NUMBER' first")
        self.original = found

    def current(self) -> PowerMode | None:
        """The mode that is set; None where the board does not say."""
        now = power_mode(self._root)
        return next((mode for mode in self.modes if now is not None and mode.number == now["id"]), None)

    def find(self, names: Sequence[str]) -> tuple[PowerMode, ...]:
        """Modes by name, or by number, in the order given.

        Raises:
            EdgeAwqError: the board has no such mode.
        """
        known = {key: mode for mode in self.modes for key in (str(mode.number), mode.name)}
        if unknown := [name for name in names if name not in known]:
            raise EdgeAwqError(f"power mode '{unknown[0]}' is not one of this board's",
                               hint=f"known: {', '.join(mode.name for mode in self.modes)}")
        return tuple(dict.fromkeys(known[name] for name in names))

    def set(self, mode: PowerMode) -> None:
        """Set a mode that is not set already.

        Raises:
            ModeRefused: it was not done, or needs a reboot.
        """
        if self.current() != mode:
            self._set(mode)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Set the original mode at the end, however the body ends: also by Ctrl-C, SIGTERM or a closed terminal.

        Raises:
            EdgeAwqError: it cannot be set back.
        """
        with allowed(self._setter), _on_signals(_interrupt, ENDINGS[1:]):
            try:
                yield
            finally:
                with _on_signals(signal.SIG_IGN, ENDINGS):  # nvpmodel inherits that it ignores them
                    self.restore()

    def restore(self) -> None:
        """Set the original mode if another one was asked for, even where that one looks unset: it may be half set."""
        if not self._touched:
            return
        try:
            self._set(self.original)
        except ModeRefused as refused:
            now = self.current()
            raise EdgeAwqError(f"the power mode could not be set back to {self.original.name}, it is "
                               f"{now.name if now else 'unknown'}: {refused.reason}", hint=refused.hint) from refused
        self._touched = False

    def _set(self, mode: PowerMode) -> None:
        self._touched = True
        reason = self._setter(mode)
        if reason is None and self.current() != mode:
            reason = "the board did not change"
        if reason is not None:
            raise ModeRefused(mode, reason)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers,
                numbers: Sequence[signal.Signals]) -> Iterator[None]:
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
