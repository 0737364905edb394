"""The fork server: children in milliseconds, their ends reported, nothing left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from redist_worker.ending import run_and_exit
from redist_worker.forkserver import ForkServer, _pair, serve
from redist_worker.parent import die_with_parent


def job(options, fds):
    if options == b"hang":
        signal.pause()
    if options == b"fail":
        raise ValueError("this traceback is expected")
    if options.startswith(b"write "):
        os.write(fds[0], options[6:])
        return 0
    if options == b"memory":
        assert b"x" * (100 << 20)
        return 0
    if options == b"family":
        child = subprocess.Popen(["sleep", "1000"])
        os.write(fds[0], str(child.pid).encode())
        signal.pause()
    return int(options)


class Server(ForkServer):
    """A fork server with the job above."""

    def start(self):
        ours, theirs = _pair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            run_and_exit(lambda: (die_with_parent(parent), serve(theirs, job))[0] or 0)
        theirs.close()
        self._socket = ours


@pytest.fixture
def server():
    server = Server()
    server.start()
    yield server
    server.close()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def run(server, body, peaks=None):
    exits = {}

    def on_exit(number, status, peak):
        exits[number] = status
        if peaks is not None:
            peaks[number] = peak

    async def main():
        server.on_exit = on_exit
        server.attach(asyncio.get_running_loop())
        await asyncio.wait_for(body(exits), 20)

    asyncio.run(main())


def test_children_report_how_they_end(server):
    async def body(exits):
        assert await server.spawn(1, b"0") > 0
        await server.spawn(2, b"3")
        await server.spawn(3, b"fail")
        pid = await server.spawn(4, b"hang")
        os.kill(pid, signal.SIGUSR1)
        await until(lambda: len(exits) == 4)
        assert exits == {1: 0, 2: 3, 3: 1, 4: -signal.SIGUSR1}

    run(server, body)


def test_children_get_descriptors_and_a_session_of_their_own(server):
    async def body(exits):
        readable, writable = os.pipe()
        pid = await server.spawn(1, b"write hello", [writable])
        os.close(writable)
        await until(lambda: 1 in exits)
        assert os.read(readable, 100) == b"hello"
        os.close(readable)
        pid = await server.spawn(2, b"hang")
        await until(lambda: os.getsid(pid) == pid)

    run(server, body)


def print_peaks():
    peaks = {}

    async def body(exits):
        await server.spawn(1, b"0")
        await server.spawn(2, b"memory")
        await until(lambda: len(exits) == 2)

    server = Server()
    server.start()
    run(server, body, peaks)
    server.close()
    print(peaks[1], peaks[2])


def test_the_most_memory_that_a_child_had_is_known():
    # in a process that is as small as a fork server: a child starts with its parent's memory, here all that tests left
    program = "from worker.test_forkserver import print_peaks; print_peaks()"
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, *sys.path])
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    small, large = map(int, output.split())
    assert 1 << 20 < small < large - (60 << 20)


def test_what_a_child_started_goes_with_it(server):
    async def body(exits):
        readable, writable = os.pipe()
        pid = await server.spawn(1, b"family", [writable])
        grandchild = int(os.read(readable, 100))
        os.close(readable)
        os.close(writable)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: 1 in exits)
        await until(lambda: not alive(grandchild))

    run(server, body)


def test_a_child_takes_milliseconds(server):
    """Twenty are there before eight interpreters would be, however busy the machine is."""

    async def body(exits):
        begun = time.monotonic()
        for number in range(20):
            await server.spawn(number, b"0")
        await until(lambda: len(exits) == 20)
        took = time.monotonic() - begun
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", "import redist_worker.executor"], check=True)
        assert took < 8 * (time.monotonic() - begun)

    run(server, body)


def test_closing_ends_everything(server):
    pids = []

    async def body(exits):
        pids.extend([await server.spawn(1, b"hang"), await server.spawn(2, b"hang")])

    run(server, body)
    server.close()
    assert not any(map(alive, [server.pid, *pids]))


def test_children_die_with_the_server(server):
    async def body(exits):
        pids = [await server.spawn(1, b"hang"), await server.spawn(2, b"hang")]
        lost = []
        server.on_lost = lambda: lost.append(True)
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: lost and not any(map(alive, pids)))
        with pytest.raises(ConnectionError):
            await server.spawn(3, b"0")

    run(server, body)


def test_a_process_dies_with_its_parent_even_in_c_code():
    script = (
        "import ctypes, os, signal, sys\n"
        "from redist_worker.parent import die_with_parent\n"
        "parent = os.getpid()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    die_with_parent(parent)\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    ctypes.PyDLL(None).sleep(1000)  # holds the GIL\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
