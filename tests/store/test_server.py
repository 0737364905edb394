from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from redist.errors import ServerRefused, StoreError
from redist.store.connect import endpoint
from redist.store.server import EmbeddedServer, default_maxmemory, server_binary
from servers import REDIS_SERVER, alive, wait_until


def command(server: EmbeddedServer, *args: str) -> object:
    wire = endpoint(server.url).open()
    try:
        return wire.call(*args)
    finally:
        wire.close()


def setting(server: EmbeddedServer, name: str) -> str:
    return command(server, "CONFIG", "GET", name)[1].decode()


def test_simple() -> None:
    with EmbeddedServer() as server:
        assert server.running
        assert command(server, "PING") == b"PONG"
        assert f"process_id:{server.pid}".encode() in command(server, "INFO", "server")
        assert server.url.startswith("unix:///")
        directory = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert setting(server, "maxmemory-policy") == "noeviction"
        assert setting(server, "appendonly") == "no"
        assert setting(server, "save") == ""
        assert int(setting(server, "maxmemory")) == default_maxmemory()
        pid = server.pid
    assert not server.running
    assert not directory.exists()
    assert not alive(pid)
    with pytest.raises(StoreError, match="does not run"):
        _ = server.pid
    server.stop()


def test_start_is_quick() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        with EmbeddedServer():
            times.append(time.perf_counter() - started)
    # The server itself sleeps for 30 ms to measure its clock.
    assert min(times) < 0.2


def test_the_memory_of_the_machine() -> None:
    assert 0 < default_maxmemory() <= psutil.virtual_memory().total // 4 + 1
    with EmbeddedServer(maxmemory=10_000_000) as server:
        assert setting(server, "maxmemory") == "10000000"


def test_start_again_at_the_same_address() -> None:
    with EmbeddedServer() as server:
        url, pid = server.url, server.pid
        assert server.start() is server
        assert server.pid == pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.running)
        server.start()
        assert server.url == url
        assert server.pid != pid
        assert command(server, "PING") == b"PONG"
        server.stop()
        server.start()
        assert server.url == url


def test_persistent(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(directory=data) as server:
        url = server.url
        assert url == f"unix://{data}/redist.sock"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert setting(server, "appendfsync") == "everysec"
        command(server, "SET", "a", "1")
    with EmbeddedServer(directory=data) as server:
        assert server.url == url
        assert command(server, "GET", "a") == b"1"
        command(server, "SET", "b", "2")
        command(server, "WAITAOF", "1", "0", "5000")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.running)
        server.start()
        assert command(server, "MGET", "a", "b") == [b"1", b"2"]
    assert not (data / "dump.rdb").exists()


def test_one_server_a_directory(tmp_path: Path) -> None:
    with EmbeddedServer(directory=tmp_path):
        with pytest.raises(StoreError, match="in use by another server"):
            EmbeddedServer(directory=tmp_path).start()
    EmbeddedServer(directory=tmp_path).start().stop()


def test_a_long_directory(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    with EmbeddedServer(directory=long) as server:
        assert str(long) not in server.url
        command(server, "SET", "a", "1")
    with EmbeddedServer(directory=long) as server:
        assert command(server, "GET", "a") == b"1"


def test_a_long_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedServer() as server:
        assert command(server, "PING") == b"PONG"
    assert list(long.iterdir()) == []


def test_tcp() -> None:
    with EmbeddedServer(bind="127.0.0.1") as server:
        assert server.url == f"redis://127.0.0.1:{server.port}"
        assert server.port > 0
        assert command(server, "PING") == b"PONG"
        assert setting(server, "bind") == "127.0.0.1"
        port = server.port
        server.stop()
        server.start()
        assert server.port == port


def test_every_address_wants_a_password(tmp_path: Path) -> None:
    with EmbeddedServer(bind="0.0.0.0", directory=tmp_path) as server:
        with pytest.raises(ServerRefused, match="wants a password"):
            endpoint(f"redis://127.0.0.1:{server.port}").open()
        with pytest.raises(ServerRefused, match="wants a password"):
            endpoint(f"unix://{tmp_path}/redist.sock").open()
        wire = endpoint(server.local_url).open()
        assert wire.call("PING") == b"PONG"
        wire.close()
        kept = (tmp_path / "password").read_text().strip()
        assert f":{kept}@" in server.url
        assert kept not in repr(server)
        assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
        assert kept not in " ".join(psutil.Process(server.pid).cmdline())
    with EmbeddedServer(bind="0.0.0.0", directory=tmp_path) as server:
        assert f":{kept}@" in server.local_url


def test_a_port_that_is_taken() -> None:
    with EmbeddedServer(bind="127.0.0.1") as server:
        with pytest.raises(StoreError, match=r"did not start \(exit status 1\): .*in use") as caught:
            EmbeddedServer(bind="127.0.0.1", port=server.port).start()
        assert "overcommit_memory" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"persistent": True}, ValueError, "needs a directory"),
        ({"port": -1}, ValueError, "port -1"),
        ({"maxmemory": -5}, ValueError, "maxmemory -5"),
        ({"directory": "/proc/nowhere"}, StoreError, "directory /proc/nowhere cannot be used"),
        ({"bind": "192.0.2.1"}, StoreError, r"cannot listen at 192\.0\.2\.1"),
        ({"settings": {"nonsense": "1"}}, StoreError, "did not start"),
        ({"settings": {"dir": "a\nb"}}, ValueError, "control character"),
        ({"program": "/bin/false"}, StoreError, r"did not start \(exit status 1\)"),
    ],
)
def test_refused(options: dict, error: type[Exception], match: str) -> None:
    before = set(Path(tempfile.gettempdir()).glob("redist-*"))
    with pytest.raises(error, match=match):
        EmbeddedServer(**options).start()
    assert set(Path(tempfile.gettempdir()).glob("redist-*")) <= before


@pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
def test_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIST_SERVER", "redis-server")
    assert server_binary() == REDIS_SERVER
    with EmbeddedServer() as server:
        assert b"redis_mode" in command(server, "INFO", "server")
    monkeypatch.setenv("REDIST_SERVER", "no-such-program")
    with pytest.raises(StoreError, match="no-such-program is no program"):
        server_binary()


# --- with its owner -------------------------------------------------------------------------------------------------

OWNER = """
import os, sys, time
from redist.store.server import EmbeddedServer
server = EmbeddedServer(directory=sys.argv[2] if len(sys.argv) > 2 else None).start()
print(server.pid, server._private, flush=True)
{}
"""


def run_owner(body: str, *args: object) -> tuple[subprocess.Popen[str], int, Path]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OWNER.format(body), "owner", *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, private = process.stdout.readline().split()
    return process, int(pid), Path(private)


def gone(pid: int, private: Path) -> bool:
    return not alive(pid) and not private.exists()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_with_a_killed_owner(how: signal.Signals, persistent: bool, tmp_path: Path) -> None:
    process, pid, private = run_owner("time.sleep(100)", *([tmp_path] if persistent else []))
    assert alive(pid)
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    wait_until(lambda: gone(pid, private))


@pytest.mark.parametrize("body", ["", "sys.exit(3)", "del server", "server = None; os._exit(0)"])
def test_it_goes_with_an_owner_that_ends(body: str) -> None:
    process, pid, private = run_owner(body)
    process.wait(10)
    process.stdout.close()
    wait_until(lambda: gone(pid, private))


def test_ctrl_c_does_not_reach_it() -> None:
    process, pid, private = run_owner(
        "import signal; signal.signal(signal.SIGINT, lambda *_: print('int', flush=True))\n"
        "print('ready', flush=True)\ntime.sleep(100)"
    )
    assert process.stdout.readline() == "ready\n"
    assert os.getsid(pid) != os.getsid(process.pid)
    assert os.getpgid(pid) != os.getpgid(process.pid)
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "int\n"
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: gone(pid, private))


def test_it_outlives_the_thread_that_started_it() -> None:
    servers: list[EmbeddedServer] = []
    thread = threading.Thread(target=lambda: servers.append(EmbeddedServer().start()))
    thread.start()
    thread.join()
    assert command(servers[0], "PING") == b"PONG"
    servers[0].stop()


def test_a_forked_child_neither_stops_nor_keeps_it() -> None:
    server = EmbeddedServer().start()
    pid, private = server.pid, Path(server._private)
    child = os.fork()
    if child == 0:
        server.stop()
        del server
        time.sleep(60)
        os._exit(0)
    try:
        assert command(server, "PING") == b"PONG"
        server.stop()
        wait_until(lambda: gone(pid, private))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_no_descriptor_is_left() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    EmbeddedServer().start().stop()
    before = open_files()
    for _ in range(3):
        with EmbeddedServer() as server:
            command(server, "PING")
    assert open_files() <= before


def test_a_killed_guard() -> None:
    server = EmbeddedServer().start()
    pid = server.pid
    server._guard._process.kill()
    server._guard._process.wait()
    assert alive(pid)
    server.stop()
    wait_until(lambda: not alive(pid))
