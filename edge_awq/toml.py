"""TOML on every Python that JetPack ships (3.10 has no tomllib)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error names the file and the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise EdgeAwqError(f"{path}: not valid TOML: {error}", hint="correct the line it names") from error
