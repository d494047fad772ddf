"""What every kernel test uses."""

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """Seeded by the test's own name."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="module")
def shared_device():
    """The library over the driver made for tests; built once."""
    from library_harness import Device

    return Device.make()


@pytest.fixture
def device(shared_device):
    """The same, as if nothing had been called yet."""
    shared_device.reset()
    return shared_device
