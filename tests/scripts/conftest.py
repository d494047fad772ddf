"""The scripts are not a package: tests import them as a user's shell runs them, from their own folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
