"""The command-line helpers of the end-to-end tests serve here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "e2e"))
