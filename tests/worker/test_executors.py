"""The worker's care for its executors, whose processes are made up."""

import asyncio
import os
import time

from redist_worker.executors import Executors


class ForkServer:
    """Its children register and die at once, as the test says."""

    def __init__(self, end):
        self.spawned = 0
        self.end = end

    async def spawn(self, number, options, fds):
        self.spawned += 1
        if not self.executors._closing:
            asyncio.get_running_loop().call_later(0.002, self.end, self, number)
        return os.getpid()


def run(tmp_path, end, enough=100):
    """Return how many are started within a second, or `enough`."""

    async def main():
        server = ForkServer(end)

        async def on_lost(*_):
            pass

        executors = Executors(server, 1, 1, "w", str(tmp_path), lambda _: None, on_lost, on_lost)
        server.executors = executors
        await executors.start()
        over = time.monotonic() + 1.0
        while server.spawned < enough and time.monotonic() < over:
            await asyncio.sleep(0.01)
        executors._closing = True
        await asyncio.sleep(0.01)
        for executor in executors:  # the last one still has a moment to live
            executors._discard(executor)
        return server.spawned

    return asyncio.run(main())


def test_one_that_dies_right_after_it_registered_is_started_again_with_pauses(tmp_path):
    def end(server, number):
        for executor in server.executors:
            executor.marks.ordinal = 7
        server.on_exit(number, 1, 0)

    assert 2 <= run(tmp_path, end) <= 6


def test_one_that_dies_of_what_it_runs_is_started_again_at_once(tmp_path):
    def end(server, number):
        for executor in server.executors:
            executor.marks.ordinal = 7
            executor.marks.set(0, 4711)
        server.on_exit(number, -11, 0)

    assert run(tmp_path, end, enough=7) >= 7
