"""Where the server listens."""

import pytest

from edge_awq.errors import EdgeAwqError
from edge_awq.server.listen import bind, listening


def test_two_that_start_at_once_do_not_both_serve():
    with bind("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with bind("127.0.0.1", port) as two:
            one.listen()
            with pytest.raises(EdgeAwqError, match=f"port {port}: Address already in use"), listening(two, None):
                pass
