"""What every kernel test uses."""

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """Seeded by the test's own name."""
    return np.random.default_rng(list(request.node.name.encode()))
