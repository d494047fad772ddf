"""onnxruntime, imported without its complaint about GPUs that are no PCI devices, such as a Jetson's.

Versions 1.23 to 1.26 at least print it on every import, before their logger can be told anything (microsoft/onnxruntime
issue 26763). It means nothing here, as every session runs on the processor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CARDS = Path("/sys/class/drm")
_COMPLAINT = b"device_discovery.cc"


@contextmanager
def without_complaint(cards: Path = CARDS) -> Iterator[None]:
    """Where onnxruntime would complain, what goes to standard error meanwhile comes afterwards, without that line."""
    found = [card / "device/vendor" for card in cards.glob("card*") if card.name[4:].isdigit()]  # not what hangs on it
    if all(vendor.exists() for vendor in found) or sys.stderr is None:  # None: closed
        yield
        return
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            written.seek(0)
            for line in written:
                if _COMPLAINT not in line:
                    os.write(2, line)


with without_complaint():
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

OrtValue, __version__ = onnxruntime.OrtValue, onnxruntime.__version__
__all__ = ["OrtValue", "__version__", "errors", "onnxruntime"]
