"""What the processes of the tests do: tasks, and clients that are killed."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


def leaf(i: int, counts: str, pause: float = 0.0) -> int:
    """Note that it ran, and return its number."""
    if pause:
        time.sleep(pause)
    note(counts, f"leaf {i}")
    return i


def add(a: int, b: int, counts: str) -> int:
    note(counts, f"add {a} {b}")
    return a + b


def large(i: int) -> bytes:
    """A value in a segment."""
    return bytes([i % 256]) * 50_000


def gated(path: str, i: int) -> int:
    """Say that it runs, and end when the file `path` is there."""
    note(path + "-ran", str(i))
    while not os.path.exists(path):
        time.sleep(0.01)
    return i


def boxed(size: int) -> list[Any]:
    """A container, of `size` bytes and the only Future of a value in a segment."""
    from redist import get_client, wait

    inner = get_client().submit(large, 7, pure=False)
    wait(inner)
    return [inner, bytes(size)]


def boxed_many(count: int) -> list[Any]:
    """A container of the only Futures of `count` values in segments."""
    from redist import get_client

    held: list[Any] = get_client().scatter([bytes([i % 256]) * 5_000 for i in range(count)], hash=False)
    return held


def total(values: Any) -> int:
    return sum(values) if not isinstance(values[0], bytes) else sum(map(len, values))


def note(path: str, text: str) -> None:
    """Append a line, whole."""
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, text.encode() + b"\n")
        os.close(fd)


def graph(client: Any, width: int, counts: str = "", pause: float = 0.0) -> Any:
    """A tree of 2 * `width` - 1 tasks; its value is the sum of all numbers below `width`."""
    level = client.map(leaf, range(width), counts=counts, pause=pause, pure=False)
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        rest = [level[-1]] if len(level) % 2 else []
        level = [client.submit(add, a, b, counts, pure=False) for a, b in pairs] + rest
    return level[0]


def bundler(address: str, count: str) -> None:
    """A client that has made a part of the bundles of a value known, says so, and waits to be killed."""
    from redist import Client, committing

    client = Client(address, name="victim", heartbeat_interval=0.2)
    held = client.scatter(list(range(int(count))), hash=False)
    real, calls = committing.parse_commit, [0]

    def parse_commit(reply: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            print("ready", client.session.ordinal, flush=True)
            time.sleep(1000)
        return real(reply)

    committing.parse_commit = parse_commit
    client.publish_dataset(held, name="many")


def holder(address: str, lease: str) -> None:
    """A client that holds much, says so, and waits to be killed."""
    from redist import Client

    client = Client(address, name="victim", heartbeat_interval=float(lease) / 5)
    held = client.map(leaf, range(100), counts="", pure=False)
    held += client.map(large, range(5), pure=False)
    held += client.scatter([b"inline", b"s" * 100_000], hash=False)
    client.gather(held)
    held += client.map(leaf, range(1000, 1300), counts="", pause=0.01, pure=False)
    print("ready", client.session.ordinal, flush=True)
    time.sleep(1000)


def leaver(address: str) -> None:
    """A client whose interpreter ends with living Futures and running tasks."""
    from redist import Client

    client = Client(address, name="leaver")
    keep = client.map(leaf, range(50), counts="", pure=False)
    client.gather(keep[:10])
    print("ready", client.session.ordinal, flush=True)
    sys.modules["kept"] = keep  # type: ignore[assignment]  # alive until the very end


def interrupted(address: str) -> None:
    """A client that gets Ctrl-C in a wait, goes on, and says what it has."""
    from redist import Client

    with Client(address, name="interrupted") as client:
        future = client.submit(leaf, 7, "", 2.0, pure=False)
        try:
            print("ready", client.session.ordinal, flush=True)  # after this the signal may come
            future.result()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(future.result(), client.submit(leaf, 8, "", pure=False).result(), flush=True)


def family(count: int) -> list[Any]:
    """A task that makes others and returns their Futures."""
    from redist import get_client

    client = get_client()
    return [client.submit(leaf, i, "", pure=False) for i in range(count)]


def strike_when_armed(program: Callable[..., None]) -> list[bool]:
    """Have alarms raise KeyboardInterrupt while the first item of the list that is returned is True.

    Not where they would strike the `program` itself, which may be about to deal with one: that has come late, if it hit a
    Future's end, and the next is not far then.
    """
    import signal

    armed = [False]

    def strike(_: int, frame: FrameType | None) -> None:
        if armed[0] and frame is not None and frame.f_code is not program.__code__:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, strike)
    signal.signal(signal.SIGINT, strike)  # one that hit a Future's end is delivered again as this
    return armed


async def without_end(client: Any, rng: random.Random, i: int) -> None:
    """Submit, gather and scatter again and again."""
    while True:
        i += 1
        futures = [client.submit(leaf, i + k, "", pure=False) for k in range(rng.randrange(1, 8))]
        assert await client.gather(futures) == list(range(i, i + len(futures)))
        await client.scatter([i])


async def a_last_map(client: Any) -> None:
    futures = client.map(leaf, range(200), counts="", pure=False)
    assert await client.gather(futures) == list(range(200))


def storm(address: str, seed: str) -> None:
    """A client that gets Ctrl-C at random moments; nothing of it may be out of joint afterwards."""
    import signal

    from redist import Client

    rng = random.Random(seed)
    armed = strike_when_armed(storm)
    strikes = 0
    with Client(address, name="storm", heartbeat_interval=0.1) as client:
        print("ready", client.session.ordinal, flush=True)
        client.submit(leaf, 0, "").result()
        until = time.monotonic() + 3.0
        i = 0
        while time.monotonic() < until:
            try:
                armed[0] = True
                # Again and again: one that hits a `__del__` is swallowed by Python.
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 0.004, 0.05)
                while True:
                    i += 1
                    futures = [client.submit(leaf, i + k, "", pure=False) for k in range(rng.randrange(1, 8))]
                    assert client.gather(futures) == list(range(i, i + len(futures)))
            except KeyboardInterrupt:
                armed[0] = False
                strikes += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        futures = client.map(leaf, range(200), counts="", pure=False)
        assert client.gather(futures) == list(range(200))
        print("struck", strikes, flush=True)
        del futures
        until = time.monotonic() + 10.0
        while client.futures and time.monotonic() < until:
            time.sleep(0.01)
        print("left", len(client.futures), flush=True)


def interrupted_loop(address: str) -> None:
    """The same in an event loop, which ends; another one goes on."""
    import asyncio

    from redist import Client

    async def first() -> None:
        async with Client(address, name="interrupted", asynchronous=True) as client:
            future = client.submit(leaf, 7, "", 2.0, pure=False)
            print("ready", client.session.ordinal, flush=True)
            await future

    async def second() -> None:
        async with Client(address, name="again", asynchronous=True) as client:
            print(await client.submit(leaf, 8, "", pure=False), flush=True)

    try:
        asyncio.run(first())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    asyncio.run(second())


def storm_loop(address: str, seed: str) -> None:
    """The same in an event loop, where asyncio makes of a Ctrl-C a cancellation of what it runs."""
    import asyncio
    import signal

    from redist import Client

    rng = random.Random(seed)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))

    async def begin() -> Any:
        return await Client(address, name="storm", heartbeat_interval=0.1, asynchronous=True)

    async def work(client: Any, i: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 0.004)
        await without_end(client, rng, i)

    async def rest(client: Any) -> None:
        until = time.monotonic() + 10.0
        while client.futures and time.monotonic() < until:
            await asyncio.sleep(0.01)

    with asyncio.Runner() as runner:
        client = runner.run(begin())
        print("ready", client.session.ordinal, flush=True)
        strikes = 0
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            try:
                runner.run(work(client, 100 * strikes))
            except KeyboardInterrupt:
                strikes += 1
        runner.run(a_last_map(client))
        print("struck", strikes, flush=True)
        runner.run(rest(client))
        print("left", len(client.futures), flush=True)
        runner.run(client.close())


def storm_in_loop(address: str, seed: str) -> None:
    """The same where nobody makes a cancellation of it: it strikes what the loop runs, which is then run again."""
    import asyncio
    import contextlib
    import gc
    import signal

    from redist import Client

    rng = random.Random(seed)
    armed = strike_when_armed(storm_in_loop)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # of what was struck

    async def begin() -> Any:
        client = await Client(address, name="storm", heartbeat_interval=0.1, asynchronous=True)
        await client.gather([client.submit(leaf, 0, ""), await client.scatter(0)])
        return client

    async def rest(client: Any) -> None:
        until = time.monotonic() + 10.0
        while client.futures and time.monotonic() < until:
            gc.collect()  # a task of which the loop lost the next step
            await asyncio.sleep(0.01)

    def run(coroutine: Any) -> Any:
        """Run it to its end; a task that was struck may have left behind that the loop is to stop at its own."""
        task = loop.create_task(coroutine)
        while not task.done():
            with contextlib.suppress(RuntimeError):
                loop.run_until_complete(task)
        return task.result()

    client = run(begin())
    print("ready", client.session.ordinal, flush=True)
    strikes = 0
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        task = loop.create_task(without_end(client, rng, 100 * strikes))
        try:
            armed[0] = True
            # Again and again: one that hits a `__del__` is swallowed by Python.
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 0.004, 0.05)
            loop.run_until_complete(task)
        except (KeyboardInterrupt, asyncio.CancelledError, RuntimeError):
            armed[0] = False
            strikes += 1
            task.cancel()
    signal.setitimer(signal.ITIMER_REAL, 0)
    del task
    run(asyncio.wait_for(a_last_map(client), 20))
    print("struck", strikes, flush=True)
    run(rest(client))
    print("left", len(client.futures), flush=True)
    run(client.close())
    loop.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
