"""Run a program that ends with this process, however this process ends.

A small shell is the program's parent and reads from a pipe whose other end this process holds. When the pipe closes, by
release, exit or kill -9, the shell stops the program, waits for it, and removes the program's private directory. Both are in
a process session of their own, so that Ctrl-C in the terminal reaches neither. (The kernel's parent-death signal would not
do: it comes when the *thread* that started the program ends.)
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["Guard", "pidfd", "wait_for_end"]

_STOP_TIMEOUT = 15.0
#: ms between looks at a program, where there is no descriptor that tells of its end
_LOOK = 500
# Above what the shell uses for itself: it can name 0 to 9 only, and keeps copies from 10 on.
_FIRST_PASSED_FD = 64

# Arguments: the private directory, the signal that stops the program, the command. Descriptor 0 is the owner's pipe.
_SCRIPT = """
exec 3<&0 </dev/null
dir=$1 stop=$2
shift 2
"$@" 3<&- &
program=$!
exec 2>/dev/null
echo $program >"$dir/pid"
{
  read -r _
  kill -"$stop" $program
  i=0
  while [ $i -lt 100 ] && kill -0 $program; do sleep 0.1; i=$((i + 1)); done
  kill -KILL $program
} <&3 3<&- >/dev/null &
watch=$!
exec 3<&-
wait $program
status=$?
kill $watch
rm -rf "$dir"
exit $status
"""


class Guard:
    """A running program and the shell that guards it.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    directory : str
        A private directory that goes with the program.
    graceful : bool
        Whether the program is asked to end (SIGTERM, and SIGKILL after 10 s) or killed at once.
    output : file, optional
        Where its output and errors go; default: this process's own.
    pass_fds : sequence of int
        Descriptors of files that the program keeps open, under other numbers.

    Raises
    ------
    OSError
        If the shell cannot be started. The directory is removed.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        *,
        graceful: bool = False,
        output: IO[Any] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self._owner = os.getpid()
        reader, self._writer = os.pipe()
        passed: list[int] = []
        try:
            passed.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_PASSED_FD) for fd in pass_fds)
            self._process = subprocess.Popen(
                [
                    "/bin/sh",
                    "-c",
                    _SCRIPT,
                    "redist-guard",
                    directory,
                    "TERM" if graceful else "KILL",
                    *command,
                ],
                stdin=reader,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=passed,
                cwd="/",
            )
        except BaseException:
            self._close_pipe()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            for fd in (reader, *passed):
                os.close(fd)
        _guards.add(self)

    @property
    def running(self) -> bool:
        """Whether the program lives."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status of the program once it has ended, as a shell gives it."""
        return self._process.poll()

    @property
    def pid(self) -> int | None:
        """Process id of the program; None before it has started and after it has ended."""
        try:
            return int(Path(self.directory, "pid").read_text())
        except (OSError, ValueError):
            return None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the program to end by itself; return its status, None on time-out."""
        if timeout is not None and self._process.returncode is None:
            deadline = time.monotonic() + timeout
            wait_for_end(self._process.pid, timeout)
            timeout = max(0.0, deadline - time.monotonic())
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def wait_unless(self, wake: int) -> int | None:
        """Wait for the program to end by itself and return its status; None as soon as `wake` can be read."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        fd = pidfd(self._process.pid) if self.running else -1
        try:
            if fd >= 0:
                poll.register(fd, select.POLLIN)
            while self.running:
                if any(ready == wake for ready, _ in poll.poll(None if fd >= 0 else _LOOK)):
                    return None
        finally:
            if fd >= 0:
                os.close(fd)
        return self.status

    def release(self) -> None:
        """Stop the program and wait until it, its guard and the directory are gone; does nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        self._close_pipe()
        status = self.wait(_STOP_TIMEOUT)
        if status is None or status < 0:
            # The program does not even mind SIGKILL's deadline, or somebody killed the guard itself.
            pid = self.pid
            try:
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _close_pipe(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def forget(self) -> None:
        """In a forked child: let go of the pipe, so that the program still ends with its owner."""
        self._close_pipe()
        # Keeps Popen from warning of, or waiting for, what is not this process's child.
        self._process.returncode = 0


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for guard in list(_guards):
        guard.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)


def pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the process ends, -1 where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def wait_for_end(pid: int, timeout: float) -> None:
    """Wait for the end of a child that nobody reaps meanwhile; `subprocess` with a timeout looks only now and then."""
    fd = pidfd(pid)
    if fd >= 0:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, timeout) * 1000)
        os.close(fd)
