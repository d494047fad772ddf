"""Requests that wait for the engine."""

import asyncio

import pytest

from edge_awq.server.jobs import Job, Jobs
from edge_awq.server.requests import RequestError, parse


def test_who_left_or_is_served_does_not_count_as_waiting():
    async def wait():
        jobs, (one, two, three, four) = Jobs(2), (Job(parse("text", {"prompt": "a"}, "tiny")) for _ in range(4))
        jobs.put(one)
        jobs.put(two)
        with pytest.raises(RequestError, match="2 requests are waiting"):
            jobs.put(three)
        one.left = True
        jobs.put(three)
        with pytest.raises(RequestError, match="2 requests are waiting"):
            jobs.put(four)
        two.begun = True
        jobs.put(four)

    asyncio.run(wait())


def test_nothing_waits_once_nobody_works():
    class Interrupted:
        def settings(self, **changes):
            raise KeyboardInterrupt

    async def stop():
        jobs, (one, two, three) = Jobs(9), (Job(parse("text", {"prompt": "a"}, "tiny")) for _ in range(3))
        jobs.put(one)
        jobs.put(two)
        with pytest.raises(KeyboardInterrupt):
            jobs.work(Interrupted(), None, print)
        for job in (one, two):
            with pytest.raises(RequestError, match="stopping"):
                await anext(job.events())
        with pytest.raises(RequestError, match="stopping"):
            jobs.put(three)

    asyncio.run(stop())
