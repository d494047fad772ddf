"""The routes: /health, /v1/models, /v1/chat/completions, /v1/completions."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_awq.runner.generate import Token
from edge_awq.server.answers import DONE, Reply, event
from edge_awq.server.jobs import Done, Job, Jobs
from edge_awq.server.requests import Kind, RequestError, parse

_BODY_BYTES, _TOKEN_BYTES = 1 << 20, 64  # a body has so many, or so many for each token of the context if that is more


@dataclass(frozen=True)
class Served:
    """What the routes need.

    Attributes:
        model: its name.
        context: tokens of its KV cache.
        key: what clients must send as a bearer token; None for nothing.
    """

    model: str
    context: int
    jobs: Jobs
    key: str | None = None
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def body_bytes(self) -> int:
        """Of a request at most: what could never fit would cost memory and time, and others would wait."""
        return max(_BODY_BYTES, _TOKEN_BYTES * self.context)

    def describe(self) -> dict[str, Any]:
        """The model as the API lists it."""
        return {"id": self.model, "object": "model", "created": self.since, "owned_by": "edge-awq",
                "context": self.context}


def make_app(served: Served) -> Starlette:
    """The application; every failure is an error object of the API."""
    routes = [
        Route("/health", partial(_health, served)),
        Route("/v1/models", partial(_models, served)),
        Route("/v1/models/{name:path}", partial(_model, served)),
        Route("/v1/chat/completions", partial(_complete, served, "chat"), methods=["POST"]),
        Route("/v1/completions", partial(_complete, served, "text"), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={
        RequestError: _refuse, HTTPException: _refuse_route, ClientDisconnect: _left})


async def _health(served: Served, request: Request) -> Response:
    return JSONResponse({"status": "ok", "model": served.model})


async def _models(served: Served, request: Request) -> Response:
    _check_key(served, request)
    return JSONResponse({"object": "list", "data": [served.describe()]})


async def _model(served: Served, request: Request) -> Response:
    _check_key(served, request)
    if request.path_params["name"] != served.model:
        raise RequestError(f"the model {request.path_params['name']!r} is not served here", 404, "model")
    return JSONResponse(served.describe())


async def _complete(served: Served, kind: Kind, request: Request) -> Response:
    _check_key(served, request)
    wanted = parse(kind, await _body(request, served.body_bytes), served.model)
    job = Job(wanted)
    served.jobs.put(job)
    job.watcher = asyncio.create_task(_notice_end(request, job))
    events, reply = job.events(), Reply(kind, served.model)
    first = await anext(events)  # what cannot be answered is known by now, so that its status is right
    if wanted.stream:
        return StreamingResponse(_stream(job, first, events, reply), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store"})
    last, calls = first, [] if isinstance(first, Done) else [*first.calls]
    async for happened in events:
        if isinstance(happened, Done):
            return JSONResponse(reply.whole(happened.summary, last, calls))
        last = happened
        calls += happened.calls
    return await _left()


async def _stream(
    job: Job, first: Token | Done, events: AsyncIterator[Token | Done], reply: Reply
) -> AsyncIterator[bytes]:
    try:
        if job.request.kind == "chat":
            yield event(reply.begin())
        happened = first
        while not isinstance(happened, Done):
            for piece in reply.pieces(happened):
                yield event(piece)
            happened = await anext(events)
        if job.request.include_usage and happened.summary is not None:
            yield event(reply.usage(happened.summary))
        yield DONE
    except RequestError as error:  # too late for a status
        yield event(error.to_dict())
    finally:
        job.left = True


async def _notice_end(request: Request, job: Job) -> None:
    """Wait for the client to go, or for the response's end."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.left = True


async def _body(request: Request, most: int) -> Any:
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > most:
            raise RequestError(f"the body is larger than {most} bytes", 413)
    try:
        return json.loads(read)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error


def _check_key(served: Served, request: Request) -> None:
    sent = request.headers.get("authorization", "").encode("latin-1")  # the bytes that came
    if served.key is not None and not secrets.compare_digest(sent, f"Bearer {served.key}".encode()):
        raise RequestError("the key is missing or wrong; send 'Authorization: Bearer KEY'", 401)


async def _refuse(request: Request, error: RequestError) -> Response:
    # Not a JSONResponse, which fails on a half of a character.
    return Response(json.dumps(error.to_dict()), error.status, media_type="application/json")


async def _left(*_: Any) -> Response:
    return Response(status_code=204)  # nobody reads it: the client left


async def _refuse_route(request: Request, error: HTTPException) -> Response:
    table = RequestError(f"{request.method} {request.url.path}: {error.detail}", error.status_code).to_dict()
    return JSONResponse(table, error.status_code, headers=error.headers)
