"""Random work on one segment directory by several processes, of which some die, fork or are interrupted.

Every payload's size and bytes follow from its name, so whoever reads one knows what has to be there. By hand, for longer
than the test does it: ``python tests/memory/memory_stress.py SECONDS [SEED]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 -- an interrupt while it is imported would spoil it for good
from memory_helpers import Bytes, Loop

from redist.errors import DiskFull, SegmentGone, SegmentsFull
from redist.memory import collapser, huge_pages, pool
from redist.memory.broker import Broker
from redist.memory.broker_client import BrokerClient
from redist.memory.directory import SegmentDirectory
from redist.memory.moving import Mover
from redist.memory.payloads import open_payload

MIB = 1 << 20
LIMIT = 24 * MIB
CLIENTS = 3
#: small ones share arenas; larger ones than 256 KiB are recycled, those from 1 MiB on by kept mappings
SIZES = (5_000, 9_000, 30_000, 60_000, 300_000, MIB + 17, 2 * MIB, 2 * MIB + 5_000)
#: From 2 MiB on they have huge pages: half of the processes wait for them, what others write gets them later.
HUGE = {huge_pages: {"LEAST": 2 * MIB, "_PAUSE": 0.05}, collapser: {"_SETTLES": 0.0, "_PIECE": 2 * MIB}}
SLOW = {"_SLOW": 0.0, "_SLACK": 0.0}, {"_SLOW": 10.0}
_PAGE = random.Random(0).randbytes(1 << 16)
#: names that may be alive: a client looks for those that it and others made last
_WINDOW = 24


def content(name: str) -> bytes:
    """Return the bytes of the payload of this name."""
    rng = random.Random(name)
    size = rng.choice(SIZES)
    head = rng.randbytes(64)
    return (head + _PAGE * (1 + size // len(_PAGE)))[: size - 64] + head


class Client:
    """One process that writes, reads and drops payloads at random; never returns another payload's bytes unnoticed."""

    def __init__(self, socket: str, segments: str, number: int, seed: int) -> None:
        self.broker = BrokerClient(socket, timeout=20)
        self.segments = segments
        self.number = number
        self.rng = random.Random(seed)
        self.made = 0
        self.held: list[tuple[str, memoryview]] = []
        self.counts = {"put": 0, "full": 0, "read": 0, "gone": 0, "interrupted": 0}
        self.armed = False
        signal.signal(signal.SIGINT, self.interrupt)
        # Python itself drops an interrupt that comes inside of a finalizer
        sys.unraisablehook = lambda error: (
            None if error.exc_type is KeyboardInterrupt else sys.__unraisablehook__(error)
        )

    def interrupt(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            work = self.rng.choices(
                [self.put, self.read, self.drop, self.fork, self.threads], [30, 60, 40, 1, 2]
            )[0]
            try:
                self.armed = True
                work()
            except KeyboardInterrupt:
                self.counts["interrupted"] += 1
            except SegmentsFull:
                self.counts["full"] += 1
            self.armed = False
        for name, view in self.held:
            self.check(name, view)
        self.held.clear()
        self.broker.close()

    def put(self) -> None:
        names = []
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            self.made += 1
            names.append(f"{self.number}.{self.made}")
        self.broker.put([(name, 1, Bytes(content(name), pieces=self.rng.choice((1, 3)))) for name in names])
        self.counts["put"] += len(names)

    def some_name(self) -> str:
        number = self.rng.choice((self.number, self.rng.randrange(self.number + 2)))
        return f"{number}.{max(1, self.made - self.rng.randrange(-4, _WINDOW))}"

    def read(self) -> None:
        name = self.some_name()
        try:
            mapping = open_payload(self.segments, name, 1, writable=self.rng.random() < 0.1)
        except SegmentGone:
            self.counts["gone"] += 1
            return
        self.counts["read"] += 1
        self.check(name, mapping.view)
        if self.rng.random() < 0.4:
            self.held.append((name, mapping.view))
        while len(self.held) > self.rng.randrange(1, 8):
            self.check(*self.held.pop(self.rng.randrange(len(self.held))))

    def check(self, name: str, view: memoryview) -> None:
        if view != content(name):
            armed, self.armed = self.armed, False
            raise AssertionError(f"{name}: {bytes(view[:8])!r}, not {content(name)[:8]!r}; {armed}")

    def drop(self) -> None:
        self.broker.drop([(self.some_name(), 1) for _ in range(self.rng.randrange(1, 4))])

    def fork(self) -> None:
        self.armed = False
        seed = self.rng.getrandbits(32)
        child = os.fork()
        if child:
            if self.rng.random() < 0.5:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        try:
            self.rng = random.Random(seed)
            self.number += 1_000_000
            for name, view in self.held:
                self.check(name, view)
            for work in (self.put, self.read, self.drop):
                with contextlib.suppress(SegmentsFull):
                    work()
            os._exit(0)
        except BaseException as error:
            print(f"forked child: {error!r}", file=sys.stderr, flush=True)
            os.killpg(0, signal.SIGUSR1)  # ends this client, which the test notices
        os._exit(1)

    def threads(self) -> None:
        self.armed = False
        errors: list[BaseException] = []

        def work(names: list[str]) -> None:
            try:
                self.broker.put([(name, 1, Bytes(content(name))) for name in names])
            except SegmentsFull:
                pass
            except BaseException as error:
                errors.append(error)

        threads = []
        for _ in range(3):
            self.made += 2
            names = [f"{self.number}.{self.made - 1}", f"{self.number}.{self.made}"]
            threads.append(threading.Thread(target=work, args=(names,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class Stress:
    """The worker's side: a directory, its broker, what moves payloads, and clients that come and go.

    Parameters
    ----------
    directory : SegmentDirectory
        An empty directory, of `LIMIT` bytes.
    loop : Loop
        Runs the broker.
    seed : int
        What happens, as far as processes and threads leave a choice.
    """

    def __init__(self, directory: SegmentDirectory, loop: Loop, seed: int) -> None:
        self.directory = directory
        self.loop = loop
        self.rng = random.Random(seed)
        self.mover = Mover(directory)
        # one thread moves payloads, as in a worker
        self.moving = ThreadPoolExecutor(1)
        self.broker = Broker(directory, make_room=self.make_room)
        self.clients: list[subprocess.Popen[str]] = []
        self.started = 0
        self.counts: dict[str, int] = {}

    async def make_room(self, need: int) -> bool:
        running = asyncio.get_running_loop()
        if self.directory.reap() + self.directory.trim(need) >= need:
            return True
        with contextlib.suppress(DiskFull):
            return await running.run_in_executor(self.moving, self.mover.make_room, need) > 0
        return False

    def start_client(self, seconds: float) -> subprocess.Popen[str]:
        # one's number is what readers guess: few, and each a name space of its own
        self.started += 1
        arguments = [
            self.broker.address,
            self.directory.path,
            self.started,
            self.rng.getrandbits(32),
            seconds,
        ]
        client = subprocess.Popen(
            [sys.executable, __file__, "client", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.clients.append(client)
        return client

    def await_client(self, client: subprocess.Popen[str]) -> None:
        """Wait until a client has its handler of signals."""
        assert client.stdout is not None
        client.stdout.readline()

    def run(self, seconds: float) -> None:
        """Have clients work for so long; raise what went wrong in one of them."""
        self.loop.run(self.broker.start())
        end = time.monotonic() + seconds
        for client in [self.start_client(seconds) for _ in range(CLIENTS)]:
            self.await_client(client)
        while (left := end - time.monotonic()) > 0:
            self.step(left)
        for client in self.clients:
            self.end(client)
        self.settle()

    def step(self, left: float) -> None:
        """Do what a worker does, or what happens to its clients."""
        directory, rng = self.directory, self.rng
        copies = list(directory.files)
        what = rng.random()
        if what < 0.02 and left > 0.5:
            client = self.clients.pop(rng.randrange(len(self.clients)))
            client.send_signal(signal.SIGKILL)
            self.end(client, killed=True)
            self.await_client(self.start_client(left))
        elif what < 0.1:
            self.clients[rng.randrange(len(self.clients))].send_signal(signal.SIGINT)
        elif what < 0.5 and copies:
            count = rng.choice((1, 3, len(copies) // 2))
            self.loop.run(self.call(directory.drop_all, rng.sample(copies, min(count, len(copies)))))
        elif what < 0.8 and copies:
            copy = rng.choice(copies)
            with contextlib.suppress(DiskFull):
                self.moving.submit(self.move, copy).result()
        elif what < 0.9:
            self.loop.run(self.call(directory.reap))
        time.sleep(rng.random() * 0.01)

    def move(self, copy: tuple[str, int]) -> None:
        """Move a payload, or the arena that it is in, to where it is not."""
        arenas, mover = self.directory.arenas, self.mover
        place = arenas._places.get(copy)
        if place is not None:
            (mover.move_arena_in if arenas.is_spilled(*copy) else mover.move_arena_out)(place[0])
        else:
            (mover.move_out if self.directory.files.get(copy) else mover.move_in)(*copy)

    async def call(self, function: Any, *args: object) -> None:
        function(*args)

    def end(self, client: subprocess.Popen[str], *, killed: bool = False) -> None:
        out, err = client.communicate(timeout=60)
        if killed and client.returncode == -signal.SIGKILL:
            return
        if client.returncode or "Traceback" in err or "Exception ignored" in err:
            raise AssertionError(f"client ended with {client.returncode}: {err[-3000:]}")
        for item in out.split():
            name, _, count = item.partition("=")
            self.counts[name] = self.counts.get(name, 0) + int(count)

    def settle(self) -> None:
        """Drop everything, and see that what is counted is what is there."""
        directory = self.directory
        deadline = time.monotonic() + 10
        while self.broker.peers or directory.arenas.open:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.broker.peers} connections, {directory.arenas.open} open arenas stay"
                )
            self.loop.run(self.call(directory.arenas.seal_idle, 0.0))
            time.sleep(0.01)
        assert self.broker.granted == 0
        self.loop.run(self.call(directory.reap))
        assert directory.lingering == 0
        self.compare()
        on_disk = {
            entry.name: entry.stat().st_blocks * 512
            for entry in os.scandir(directory.spill.path or "/proc/self/fd")
            if "." in entry.name or entry.name.startswith("arena-")
        }
        assert sorted(on_disk) == sorted(directory.spill.files)
        # a file with many holes may take a block more, for where its parts are
        assert sum(on_disk.values()) <= directory.spill.used + 4096 * len(on_disk), (
            on_disk,
            directory.spill.files,
        )
        for name, attempt in list(directory.files):
            view = open_payload(directory.path, name, attempt).view
            if view != content(name):
                raise AssertionError(f"{name} has other bytes")
            del view
        directory.drop_all(list(directory.files))
        directory.reap()
        self.compare()
        assert directory.files == {}
        assert directory.total == directory.lingering == directory.spill.used == 0
        assert directory.space.used == directory.pool.total
        directory.trim(LIMIT)
        self.compare()
        assert directory.space.used == 0
        self.loop.run(self.broker.close())
        self.moving.shutdown()

    def compare(self) -> None:
        """Compare the bytes that are counted with those that files take."""
        ours = ("id", "index", "lock", "socket", "space", "touched", "spill")
        taken = {
            entry.name: entry.stat().st_blocks * 512
            for entry in os.scandir(self.directory.path)
            if entry.name not in ours
        }
        used = self.directory.space.used
        assert sum(taken.values()) <= used, (taken, used)
        if not any(
            name.startswith("arena-") for name in taken
        ):  # whose last pages are reserved, and may be unwritten
            assert sum(taken.values()) == used, (taken, used, self.directory.files)
        assert not any(name.startswith("grant-") for name in taken), taken


def give_huge_pages(number: int) -> None:
    for module, values in HUGE.items():
        vars(module).update(values)
    vars(huge_pages).update(SLOW[number % 2])


def main() -> None:
    if sys.argv[1] == "client":
        socket, segments, number, seed, seconds = sys.argv[2:]
        give_huge_pages(int(number))
        client = Client(socket, segments, int(number), int(seed))
        print("ready", flush=True)
        client.run(time.monotonic() + float(seconds))
        print(*(f"{name}={count}" for name, count in client.counts.items()))
        return
    seconds, first = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    until, seed = time.monotonic() + seconds, first
    pool.IDLE = 0.2
    give_huge_pages(first)
    while time.monotonic() < until:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        parent, disk = tempfile.mkdtemp(prefix="redist-stress-", dir=base), tempfile.mkdtemp()
        try:
            directory, loop = SegmentDirectory.create(parent, limit=LIMIT), Loop()
            directory.spill.configure(str(Path(disk) / "spill"), 3 * LIMIT)
            stress = Stress(directory, loop, seed)
            stress.run(min(10.0, seconds))
            print(f"seed {seed}: {stress.counts}", flush=True)
            directory.close()
            loop.close()
        finally:
            shutil.rmtree(parent, ignore_errors=True)
            shutil.rmtree(disk, ignore_errors=True)
        seed += 1


if __name__ == "__main__":
    main()
