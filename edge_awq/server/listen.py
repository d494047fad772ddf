"""HTTP in a thread of its own, from a socket that was bound before anything long began."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from edge_awq.errors import EdgeAwqError
from edge_awq.server.app import Served, make_app

_STOP_S = 3.0  # for answers under way, which hear at once that the server stops


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address; nobody can connect before ``listening``.

    Raises:
        EdgeAwqError: the address is taken, not this machine's, or none.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # a name that cannot be one
        raise _not_here(host, port, error) from error
    return bound


def url(bound: socket.socket) -> str:
    """Where clients find it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def listening(bound: socket.socket, served: Served) -> Iterator[None]:
    """Answers requests meanwhile.

    Raises:
        EdgeAwqError: another server listens there by now.
    """
    try:
        bound.listen()
    except OSError as error:
        raise _not_here(*bound.getsockname()[:2], error) from error
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that left
    config = uvicorn.Config(make_app(served), log_level="warning", access_log=False, lifespan="off",
                            timeout_graceful_shutdown=round(_STOP_S))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True, name="http")
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off now is no news
        server.should_exit = True
        thread.join(2 * _STOP_S)


def _not_here(host: str, port: int, error: OSError | UnicodeError) -> EdgeAwqError:
    return EdgeAwqError(f"cannot listen at {host} port {port}: {getattr(error, 'strerror', 'not a host name')}",
                        hint="choose another --port or --host")
