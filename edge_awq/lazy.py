"""Optional packages, imported when they are first needed, with the remedy in the error."""

from __future__ import annotations

import importlib
from types import ModuleType

from edge_awq.errors import EdgeAwqError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of edge-awq brings it.

    Raises:
        EdgeAwqError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EdgeAwqError(
            f"this step needs the Python package '{error.name}', which is not installed",
            hint=f"pip install 'edge-awq[{extra}]'",
        ) from error
