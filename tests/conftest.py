"""Shared fixtures and the hardware lanes."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["EDGE_AWQ_METER"] = "none"  # tests that measure name their meter; this machine's own would be luck
