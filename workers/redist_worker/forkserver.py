"""A single-threaded process that forks executors in milliseconds.

The worker's main thread forks it before it starts any thread; it imports what an executor needs and then only waits for
requests. Executors are its children: the kernel kills them when it dies, and it when the worker dies. If it dies by
itself, `ForkServer` starts another one by exec, since the worker has threads by then.

Requests and reports are datagrams over a socket pair; the server does not look into the options::

    worker -> server   id (8 bytes), options; with descriptors for the child
    server -> worker   JSON ["started", ID, PID] | ["failed", ID, TEXT] | ["exited", ID, STATUS, PEAK]
                       STATUS: exit code, or -SIGNAL; PEAK: the most memory it had, bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redist_worker.ending import run_and_exit
from redist_worker.parent import die_with_parent

__all__ = ["ForkServer", "Job", "serve"]

logger = logging.getLogger("redist.worker")

_LARGEST = 65536
_MOST_FDS = 253  # more do not travel in one message
_NUMBER = struct.Struct("<Q")
_PRELOAD = ("redist_worker.executor",)

Job = Callable[[bytes, list[int]], int]
"""What a forked child does: options and descriptors in, exit code out."""


class ForkServer:
    """The worker's end.

    `start` must be called by the main thread before there is any other; the rest belongs to one event loop.
    """

    pid: int
    #: called with the id given to `spawn`, the exit status (negative: signal) and the peak of memory of a child that ended
    on_exit: Callable[[int, int, int], None] | None
    #: called when the server itself has died, and with it all children
    on_lost: Callable[[], None] | None

    def __init__(self) -> None:
        self.pid = 0
        self.on_exit = None
        self.on_lost = None
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: dict[int, asyncio.Future[int]] = {}

    def start(self) -> None:
        """Fork the server."""
        ours, theirs = _pair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            run_and_exit(lambda: _as_server(theirs, parent))
        theirs.close()
        self.pid = pid
        self._socket = ours

    def start_again(self) -> None:
        """Start a new server in place of one that died, by exec."""
        ours, theirs = _pair()
        safe = ["-P"] if sys.flags.safe_path else []
        self._process = subprocess.Popen(
            [sys.executable, *safe, "-m", "redist_worker.forkserver", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.pid = self._process.pid
        self._socket = ours
        if self._loop is not None:
            self._loop.add_reader(ours.fileno(), self._read)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Receive reports in `loop`."""
        assert self._socket is not None
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._read)

    async def spawn(self, number: int, options: bytes, fds: Sequence[int] = ()) -> int:
        """Fork a child; return its pid.

        Parameters
        ----------
        number : int
            An id of the caller's choice, never used before.
        options : bytes
            What the child is given.
        fds : sequence of int
            Descriptors for the child; the caller may close its own afterwards.

        Raises
        ------
        OSError
            If the server died or cannot fork.
        """
        if self._socket is None or self._loop is None:
            raise ConnectionError("the process that starts executors is not running")
        started: asyncio.Future[int] = self._loop.create_future()
        self._starting[number] = started
        try:
            socket.send_fds(self._socket, [_NUMBER.pack(number) + options], list(fds))
            return await started
        finally:
            self._starting.pop(number, None)

    def _read(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(_LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._report(*json.loads(data))

    def _report(self, what: str, number: int, detail: Any, peak: int = 0) -> None:
        started = self._starting.get(number)
        if what == "started" and started is not None and not started.done():
            started.set_result(detail)
        elif what == "failed" and started is not None and not started.done():
            started.set_exception(OSError(f"an executor cannot be forked: {detail}"))
        elif what == "exited" and self.on_exit is not None:
            self.on_exit(number, detail, peak)

    def _lost(self) -> None:
        self._detach()
        self._reap()
        for started in self._starting.values():
            if not started.done():
                started.set_exception(ConnectionError("the process that starts executors died"))
        if self.on_lost is not None:
            self.on_lost()

    def _detach(self) -> None:
        if self._socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def close(self) -> None:
        """Stop the server, and with it every child that is still there."""
        if self._socket is not None:
            self._detach()
            self._reap()


# --- the server's end -----------------------------------------------------------------------------------------------


def serve(sock: socket.socket, job: Job) -> None:
    """Answer requests until the worker's end closes; a child runs `job`."""
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    children: dict[int, int] = {}
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == wake:
                os.read(wake, 4096)
                _report_exits(sock, children)
                continue
            data, fds, _, _ = socket.recv_fds(sock, _LARGEST, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            if not data:
                _end(children)
                return
            (number,), options = _NUMBER.unpack_from(data), data[_NUMBER.size :]
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                _tell(sock, ["failed", number, str(error)])
                continue
            finally:
                if os.getpid() == parent:
                    for fd in fds:
                        os.close(fd)
            if pid == 0:
                signal.set_wakeup_fd(-1)
                selector.close()
                for fd in (sock.detach(), wake, waker):
                    os.close(fd)
                run_and_exit(partial(_as_child, job, options, fds, parent))
            children[pid] = number
            _tell(sock, ["started", number, pid])


def _report_exits(sock: socket.socket, children: dict[int, int]) -> None:
    while children:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return
        pid = ended.si_pid
        # what the child started goes with it; until it is reaped nobody else can have its number
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        number = children.pop(pid, None)
        if number is not None:
            _tell(sock, ["exited", number, os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024])


def _end(children: dict[int, int]) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            os.killpg(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


def _tell(sock: socket.socket, report: list[Any]) -> None:
    with contextlib.suppress(OSError):  # the worker is gone; the kernel ends us in a moment
        sock.send(json.dumps(report).encode())


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _as_server(sock: socket.socket, parent: int) -> int:
    die_with_parent(parent)
    os.setsid()
    for name in _PRELOAD:
        __import__(name)
    from redist_worker.executor import run

    gc.collect()
    gc.freeze()
    serve(sock, run)
    return 0


def _as_child(job: Job, options: bytes, fds: list[int], parent: int) -> int:
    die_with_parent(parent)
    os.setsid()
    for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    return job(options, fds)


if __name__ == "__main__":
    run_and_exit(lambda: _as_server(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
