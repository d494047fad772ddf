"""The way between HTTP and the engine: requests wait in a queue, what they bring goes back event by event."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import dataclass

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.answer import Answer, Observers
from edge_awq.runner.generate import Token
from edge_awq.runner.metrics import RunSummary
from edge_awq.runner.one_line import chat_line
from edge_awq.runner.session import Session
from edge_awq.server.requests import AnswerRequest, RequestError

STOPPING = RequestError("the server is stopping", 503)


@dataclass(frozen=True)
class Done:
    """The end of an answer; ``summary`` is None where the client left before the first token."""

    summary: RunSummary | None


Event = Token | Done | RequestError


class Job:
    """A request on its way.

    Attributes:
        begun: its turn has come.
        left: the client is gone; the answer ends at the next token.
        watcher: the task that notices; kept here, as one that nothing refers to may vanish.
    """

    def __init__(self, request: AnswerRequest) -> None:
        """Made in the server's thread, within its event loop."""
        self.request = request
        self.begun = self.left = False
        self.watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Called by the engine's thread; the last event is Done or an error."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Token | Done]:
        """All events; for the server's thread.

        Raises:
            RequestError: what went wrong.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, RequestError):
                raise event
            yield event
            if isinstance(event, Done):
                return


class Jobs:
    """Requests that wait, first come first served."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: list[Job] = []  # those that may be: only the server's thread looks here
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._stopped = False

    def put(self, job: Job) -> None:
        """Let a request wait; called by the server's thread.

        Raises:
            RequestError: too many wait already, or nobody works any more.
        """
        self._waiting = [each for each in self._waiting if not (each.begun or each.left)]
        if len(self._waiting) >= self._most_waiting:
            raise RequestError(f"{self._most_waiting} requests are waiting already; try again later", 503)
        self._waiting.append(job)
        self._queue.put(job)
        if self._stopped:  # asked after the put, so that either this or the end of ``work`` sees the other
            raise STOPPING

    def work(self, session: Session, observers: Observers, tell: Callable[[str], None]) -> None:
        """Answer one request after another, until something is raised, such as KeyboardInterrupt.

        Args:
            tell: gets a line about each answer.
        """
        job = None
        try:
            while True:
                job = self._queue.get()
                job.begun = True
                _answer(job, session, observers, tell)
        finally:
            self._stopped = True
            if job is not None:
                job.tell(STOPPING)
            while not self._queue.empty():
                self._queue.get().tell(STOPPING)


def _answer(job: Job, session: Session, observers: Observers, tell: Callable[[str], None]) -> None:
    request = job.request
    if job.left:
        job.tell(Done(None))
        return
    try:
        settings = session.settings(**request.changes)
        answer = Answer(session, request.encode(session), settings, observers)
    except EdgeAwqError as error:
        job.tell(_as_request_error(error, 400))
        return
    try:
        with closing(iter(answer)) as tokens:
            for token in tokens:
                job.tell(token)
                if job.left:
                    break
    except EdgeAwqError as error:
        tell(f"{request.kind}: {error.message}")
        job.tell(_as_request_error(error, 500))
        return
    job.tell(Done(answer.summary))
    line = chat_line(answer.summary, answer.energy, session.engine.context, answer.tokens[-1].finish_reason)
    tell(f"{request.kind} {line}")


def _as_request_error(error: EdgeAwqError, status: int) -> RequestError:
    return RequestError(f"{error.message} ({error.hint})" if error.hint else error.message, status)
