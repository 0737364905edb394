from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import redist
from redist.cli import main
from redist.cluster import LocalCluster
from redist.errors import ConnectionLost
from redist.store.acl import acl_line
from redist.store.connect import endpoint
from redist.store.server import _free_port
from servers import Server, alive, wait_until


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


class Started:
    """A command that runs."""

    def __init__(self, *args: str, before: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom redist.cli import main; main()", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self, signum: int | None = signal.SIGTERM) -> tuple[int, str]:
        """Return the exit code and standard error."""
        if signum is not None:
            self.process.send_signal(signum)
        _, error = self.process.communicate(timeout=20)
        return self.process.returncode, error


def test_overview_is_quick_and_names_everything() -> None:
    output = run("--help")
    for command in ("worker", "server", "doctor", "why", "memory", "acl", "ping"):
        assert f"  {command} " in output
        assert "Usage:" in run(command, "--help")
    assert run("--version").startswith("main ") or "0.1" in run("--version")
    assert "No such command" in run("nonsense", code=2)


def test_acl() -> None:
    line = run("acl", "bob", "--namespace", "team", "--password", "pw").strip()
    assert line == acl_line("bob", "team", password="pw")
    assert "+spublish" in run("acl", "bob", "--cluster")
    assert "empty" in run("acl", "bob", "--password", "", code=2)
    made = [CliRunner().invoke(main, ["acl", "bob"]) for _ in range(2)]
    passwords = [re.search(r" >(\w+) ", result.stdout).group(1) for result in made]
    assert passwords[0] != passwords[1]
    assert len(passwords[0]) >= 32
    assert all(password in result.stderr for password, result in zip(passwords, made))
    assert made[0].stdout.count("\n") == 1
    assert "namespace 'a b'" in run("acl", "bob", "--namespace", "a b", code=2)


def test_acl_of_the_configured_address() -> None:
    with redist.config.set(address="redis://h?namespace=team"):
        assert run("acl", "bob", "--password", "pw").strip() == acl_line("bob", "team", password="pw")
        assert "redist:{other}:" in run("acl", "bob", "--namespace", "other")
        assert "namespace 'a b'" in run("acl", "bob", "--namespace", "a b", code=2)
    with redist.config.set(address="redis+cluster://h?namespace=team"):
        line = run("acl", "bob", "--password", "pw").strip()
        assert line == acl_line("bob", "team", password="pw", cluster=True)


# --- server ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_server(signum: signal.Signals) -> None:
    command = Started("server")
    url = command.line()
    assert url.startswith("unix://")
    wire = endpoint(url).open()
    pid = int(wire.call("INFO", "server").decode().partition("process_id:")[2].split("\r")[0])
    wire.close()
    code, error = command.end(signum)
    assert code == 0
    # How to connect comes first, before what the server says; its greeting and its advice about the host are left out.
    assert error.splitlines()[0].startswith("connect with")
    assert f"redist worker '{url}'" in error
    for noise in ("overcommit_memory", "version=", "Running mode", "Killed"):
        assert noise not in error
    assert not alive(pid)
    assert not Path(url.removeprefix("unix://")).exists()


#: A command that does more, in `struck`, when it has written a line.
STRUCK = """
import signal, sys

class Struck:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, text):
        self.file.write(text)
        self.file.flush()
        if text:
            struck()

sys.stdout = Struck(sys.stdout)
"""


def test_server_that_is_ended_as_soon_as_its_address_is_read() -> None:
    """It has said how to connect by then, and a second signal does no more than the first."""
    before = """
def struck():
    signal.raise_signal(signal.SIGTERM)

def ignore(signum, handler, change=signal.signal):
    if handler is signal.SIG_IGN:
        signal.signal = change
        signal.raise_signal(signal.SIGINT)
    return change(signum, handler)

signal.signal = ignore
"""
    command = Started("server", before=STRUCK + before)
    url = command.line()
    code, error = command.end(None)
    assert error.splitlines() == [f"connect with  redist.Client({url!r})  or  redist worker '{url}'"]
    assert code == 0


def test_server_that_is_ended_just_before_it_waits() -> None:
    """The signal interrupts no wait: here because another thread is given it."""
    before = "def struck(): signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    command = Started("server", before=f"{STRUCK}\n{before}")
    assert command.line()
    assert command.end()[0] == 0


def test_server_with_data_and_tcp(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        command = Started("server", "--dir", str(tmp_path), "--port", "0", "--maxmemory", "64MiB", "--quiet")
        url = command.line()
        assert url.startswith("redis://127.0.0.1:")
        wire = endpoint(url).open()
        assert wire.call("GET", "a") == expected
        assert wire.call("CONFIG", "GET", "maxmemory")[1] == b"67108864"
        wire.call("SET", "a", "1")
        wire.close()
        assert command.end() == (0, "")


def test_two_servers_on_one_directory(tmp_path: Path) -> None:
    # In the command's own process the lock has the lowest free descriptor, which the guard's shell uses too.
    first = Started("server", "--dir", str(tmp_path), "--quiet")
    assert first.line()
    second = Started("server", "--dir", str(tmp_path), "--quiet")
    code, error = second.end(signum=None)
    assert code == 78
    assert "in use by another server" in error
    assert first.end() == (0, "")


def test_server_for_other_hosts_has_a_password(tmp_path: Path) -> None:
    command = Started("server", "--bind", "0.0.0.0", "--port", "0", "--quiet", REDIST_PASSWORD="s3cret")
    assert command.line().startswith("redis://:s3cret@")
    assert command.end()[0] == 0


def test_server_that_cannot_start() -> None:
    command = Started("server", "--dir", "/proc/nowhere")
    code, error = command.end(None)
    assert code == 78
    assert "redist: the directory /proc/nowhere cannot be used" in error
    assert "is no amount of memory" in run("server", "--maxmemory", "much", code=2)


def test_server_says_what_it_does() -> None:
    command = Started("server")
    wire = endpoint(command.line()).open()
    with pytest.raises(ConnectionLost):
        wire.call("SHUTDOWN", "NOSAVE")
    wire.close()
    code, error = command.end(None)
    assert code == 0
    assert "User requested shutdown" in error


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_server_names_what_keeps_it_from_starting(tmp_path: Path, quiet: list[str]) -> None:
    def refused(*args: str, code: int = 78, **environment: str) -> str:
        command = Started("server", *args, *quiet, **environment)
        status, error = command.end(None)
        assert status == code
        assert "Traceback" not in error
        assert "overcommit_memory" not in error
        assert "see its log" not in error
        if code == 78:
            assert error.count("\n") == 1
            assert error.startswith("redist: ")
        return error

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = refused("--port", str(port))
        assert f"127.0.0.1:{port}: bind: Address already in use" in error
    assert "nohost.invalid" in refused("--bind", "nohost.invalid", "--port", "7")
    assert "cannot be used" in refused("--dir", "/proc/nowhere")
    (tmp_path / "appendonlydir").write_text("")
    assert "appendonlydir" in refused("--dir", str(tmp_path))
    (tmp_path / "password").mkdir()
    assert f"{tmp_path}/password" in refused("--dir", str(tmp_path), "--bind", "0.0.0.0", "--port", "0")
    assert "it said nothing" in refused(REDIST_SERVER="false")
    assert "No such option" in refused("--foo", code=2)
    assert "'-5' is no amount of memory" in refused("--maxmemory", "-5", code=2)
    assert "the address to listen at is empty" in refused("--bind", "", code=2)
    error = refused("--port", "0", code=2, REDIST_PASSWORD="se\ncret")
    assert "'requirepass' has a control character" in error
    assert "cret" not in error.replace("REDIST", "")


def test_server_that_dies() -> None:
    command = Started("server")
    url = command.line()
    wire = endpoint(url).open()
    pid = int(wire.call("INFO", "server").decode().partition("process_id:")[2].split("\r")[0])
    wire.close()
    os.kill(pid, signal.SIGKILL)
    code, error = command.end(None)
    assert code == 1
    assert "the server ended with status 137" in error


# --- worker ---------------------------------------------------------------------------------------------------------


def test_worker(valkey: Server, namespace: str) -> None:
    port = _free_port("127.0.0.1")
    command = Started(
        "worker",
        valkey.url,
        "--namespace",
        namespace,
        "--name",
        "me",
        "--executors",
        "2",
        "--resources",
        "GPU=1",
        "--threads",
        "3",
        "--memory-limit",
        "300MiB",
        "--host",
        "127.0.0.2",
        "--port",
        str(port),
        "--grace",
        "0",
    )
    wire = valkey.endpoint(namespace).open()
    prefix = f"redist:{{{namespace}}}:"
    wait_until(lambda: wire.call("HLEN", f"{prefix}executors") == 2, 20)
    assert wire.call("HVALS", f"{prefix}workers") == [b"me"]
    ordinal = wire.call("HKEYS", f"{prefix}workers")[0].decode()
    # The command has become the worker.
    record = f"{prefix}caller:{ordinal}"
    found = wire.call("HMGET", record, "pid", "resources", "threads", "memory_limit", "address")
    given = (command.process.pid, "GPU=1", 3, 300 << 20, f"tcp://127.0.0.2:{port}")
    assert found == [str(value).encode() for value in given]
    output = run("ping", valkey.url, "--namespace", namespace, "--worker")
    assert "is well" in output
    assert output.strip().endswith(": me")
    assert command.end(signal.SIGINT)[0] == 0
    assert wire.call("HLEN", f"{prefix}workers") == 0
    assert "no living worker" in run("ping", valkey.url, "--namespace", namespace, "--worker", code=69)
    wire.close()


def test_a_password_leaves_the_command_line(acl_server: Server, namespace: str) -> None:
    import psutil

    command = Started("worker", acl_server.url, "--namespace", namespace, "--grace", "0")
    wire = acl_server.endpoint(namespace).open()
    wait_until(lambda: wire.call("HLEN", f"redist:{{{namespace}}}:workers") == 1, 20)
    wire.close()
    assert "secret" not in " ".join(psutil.Process(command.process.pid).cmdline())
    assert command.end()[0] == 0


def test_worker_refused() -> None:
    assert "unknown scheme" in run("worker", "http://h", code=2)
    assert "a number from 1, or 'auto'" in run("worker", "redis://h", "--executors", "few", code=2)
    assert "--threads" in run("worker", "redis://h", "--threads", "0", code=2)
    assert "is no amount of memory" in run("worker", "redis://h", "--memory-limit", "much", code=2)
    assert "'GPU' is no resource" in run("worker", "redis://h", "--resources", "GPU", code=2)
    assert "is no span of time" in run("worker", "redis://h", "--grace", "soon", code=2)
    assert "'LOUD' is not one of" in run("worker", "redis://h", "--log-level", "LOUD", code=2)
    for option in ("--segments", "--spill-dir"):
        assert "there is no directory /nowhere" in run("worker", "redis://h", option, "/nowhere/x", code=2)


def test_worker_warns_of_a_limit_below_what_it_needs(valkey: Server, namespace: str) -> None:
    command = Started("worker", valkey.url, "--namespace", namespace, "--grace", "0", "--memory-limit", "4MB")
    assert "the memory limit of 4,000,000 bytes (3.81 MiB) is less than" in command.process.stderr.readline()
    assert "is ready" in command.process.stderr.readline()
    assert command.end()[0] == 0
    status, error = Started("worker", valkey.url, "--memory-limit", "1kB").end(None)
    assert status == 2
    assert "Error: The memory limit of 1,000 bytes (1000 B) has no room for values" in error


def test_one_usage_of_a_worker() -> None:
    """What is wrong with a worker's arguments is said in the same way, whoever sees it."""

    def inner(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "redist_worker", *args], capture_output=True, text=True)

    assert inner("--help").stdout == Started("worker", "--help").process.communicate()[0].replace(
        "Usage: -c ", "Usage: redist "
    )
    for args in (["--nonsense=1"], ["--memory-limit=much"], ["--threads=few"]):
        for ended in (inner("redis://h", *args), inner("redis://h", *args, "--name=x")):
            assert ended.returncode == 2
            assert ended.stderr.startswith(
                "Usage: redist worker [OPTIONS] [URL]\nTry 'redist worker --help' for"
            )
            assert "\nError: " in ended.stderr


def test_a_bad_setting_is_named_as_it_is_written() -> None:
    _, error = Started("worker", "redis://h", REDIST_WORKER__MEMORY__READY="much").end(None)
    assert "\nError: worker.memory.ready: 'much' is no amount of memory" in error


def test_who_is_started_by_a_cluster_does_not_warn_again() -> None:
    """Of settings that there are not: the environment of both is the same."""
    environment = {**os.environ, "REDIST_WORKER__THREAD": "2"}
    for args, times in (["--memory-limit=much"], 1), (["--memory-limit=much", "--die-with-parent=0"], 0):
        ended = subprocess.run(
            [sys.executable, "-m", "redist_worker", "redis://h", *args],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert ended.stderr.count("redist has no setting 'worker.thread'") == times


def test_the_address_may_be_configured(cluster: LocalCluster) -> None:
    def ended(*args: str, **environment: str) -> tuple[int, str, str]:
        process = Started(*args, **environment).process
        output, error = process.communicate(timeout=20)
        return process.returncode, output, error

    there = {"REDIST_ADDRESS": cluster.scheduler_address}
    assert ended("ping", "--worker", **there)[0] == 0
    assert "healthy" in ended("doctor", **there)[1]
    assert "is not known" in ended("why", "nothing", **there)[1]
    assert (
        ended("worker", REDIST_ADDRESS="redis://127.0.0.1:1", REDIST_WORKER__CONNECT_TIMEOUT="0.1")[0] == 69
    )
    for args in (["ping"], ["doctor"], ["why", "nothing"], ["worker"]):
        code, _, error = ended(*args)
        assert code == 2
        assert "Missing argument 'URL', and REDIST_ADDRESS is not set either." in error


def test_worker_says_soon_that_it_waits_for_its_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}"
        command = Started("worker", url, "--connect-timeout", "300")
        said = command.process.stderr.readline()
        assert f"nothing answers at {url}" in said
        assert "Trying again for 300 s (--connect-timeout)" in said
        assert command.end()[0] == 0
        command = Started("worker", url, "--connect-timeout", "0.3")
        code, error = command.end(None)
        assert code == 69
        assert error.splitlines()[-1].endswith("Gave up after 0.3 s (--connect-timeout)")
        assert "Traceback" not in error


@pytest.mark.parametrize("option", ["--segments", "--spill-dir"])
def test_worker_makes_no_path(valkey: Server, namespace: str, tmp_path: Path, option: str) -> None:
    missing = tmp_path / "missing"
    args = ("worker", valkey.url, "--namespace", namespace, "--grace", "0", option)
    variable = f"REDIST_WORKER__{option[2:].upper().replace('-', '_')}"
    for way, code in (((*args, str(missing / "below")), 2), (args[:-1], 78)):
        command = Started(*way, **{variable: str(missing / "below")})
        status, error = command.end(None)
        assert status == code
        assert f"there is no directory {missing}" in error
    assert not missing.exists()
    command = Started(*args, str(missing))
    wait_until(lambda: f"made the directory {missing} for payloads" in command.process.stderr.readline(), 20)
    assert missing.exists()
    assert command.end()[0] == 0


@pytest.mark.parametrize("option", ["--segments", "--spill-dir"])
def test_a_place_that_cannot_be_used(valkey: Server, namespace: str, tmp_path: Path, option: str) -> None:
    """It is said at the start, not when the first payload goes there."""
    file = tmp_path / "file"
    file.write_text("")
    kind = "segment" if option == "--segments" else "spill"
    refused = f"/sys/redist: no {kind} directory can be made there: "  # not even root may
    for place, why in ((str(file), f"{file}: not a directory"), ("/sys/redist", refused)):
        command = Started("worker", valkey.url, "--namespace", namespace, option, place)
        status, error = command.end(None)
        assert status == 78
        assert why in error


def test_a_refused_worker_leaves_a_predecessors_payloads(
    valkey: Server, namespace: str, tmp_path: Path
) -> None:
    segments = tmp_path / "segments"
    args = ("worker", valkey.url, "--namespace", namespace, "--name", "w", "--segments", str(segments))
    command = Started(*args)
    wait_until(lambda: list(segments.glob("*/worker.json")), 20)
    command.end(signal.SIGKILL)
    (home,) = segments.iterdir()
    (tmp_path / "file").write_text("")
    assert Started(*args, "--spill-dir", str(tmp_path / "file")).end(None)[0] == 78
    assert home.exists()


# --- looking --------------------------------------------------------------------------------------------------------


def test_ping(cluster: LocalCluster) -> None:
    assert "is well" in run("ping", cluster.scheduler_address)
    assert f"{cluster.endpoint.url} is well" in run("ping", cluster.scheduler_address, "--worker")
    assert "nothing answers" in run("ping", "redis://127.0.0.1:1", code=69)


def test_ping_finds_no_worker_whose_lease_has_run_out(valkey: Server, namespace: str) -> None:
    wire = valkey.endpoint(namespace).open()
    prefix = f"redist:{{{namespace}}}:"
    wire.call("HSET", f"{prefix}workers", "1", "old")
    wire.call("HSET", f"{prefix}caller:1", "host", socket.gethostname(), "seen", "1000", "lease", "10000")
    assert "no living worker" in run("ping", valkey.url, "--namespace", namespace, "--worker", code=69)
    wire.close()
    valkey.forget(namespace)


def test_memory(cluster: LocalCluster) -> None:
    with cluster.get_client() as client:
        future = client.scatter(b"x" * 3_000_000)
        wait_until(lambda: client.memory().total.managed > 3_000_000)
        lines = [line.split("  ") for line in run("memory", cluster.scheduler_address).splitlines()]
        assert [cell.strip() for cell in lines[0] if cell][:3] == ["limit", "managed", "unmanaged"]
        kinds = [line[0] for line in lines[1:]]
        assert kinds == ["worker"] * len(cluster.workers) + ["host", "total"]
        assert "2.9 MiB" in run("memory", cluster.scheduler_address)
        del future


def test_why(cluster: LocalCluster) -> None:
    with cluster.get_client() as client:
        future = client.submit(sum, [1, 2], key="mine")
        assert future.result() == 3
        output = run("why", "mine", cluster.scheduler_address)
        assert "mine: in memory" in output
        assert "held by client" in output
        pair = client.submit(sum, [1], key=("x", 0))
        assert pair.result() == 1
        assert "('x', 0): in memory" in run("why", "('x', 0)", cluster.scheduler_address)
    assert "is not known" in run("why", "mine", cluster.scheduler_address, code=1)
    assert "cannot be the empty string" in run("why", "", cluster.scheduler_address, code=78)


def test_doctor(cluster: LocalCluster) -> None:
    assert "healthy" in run("doctor", cluster.scheduler_address)
    wire = cluster.endpoint.open()
    wire.call("HSET", f"{cluster.endpoint.prefix}key:broken", "state", "memory")
    output = run("doctor", cluster.scheduler_address, "--patience", "0", code=1)
    assert "'broken'" in output
    wire.call("DEL", f"{cluster.endpoint.prefix}key:broken")
    wire.close()


def test_doctor_of_a_namespace_that_never_was(cluster: LocalCluster) -> None:
    output = run("doctor", cluster.scheduler_address, "--namespace", "tpyo", code=1)
    assert "there is no namespace tpyo at" in output
    assert "nothing was ever stored" in output
    assert "healthy" not in output
    assert run("memory", cluster.scheduler_address, "--namespace", "tpyo", code=1) == output


def test_a_tenant_can_look(acl_server: Server, namespace: str) -> None:
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, address=acl_server.url, namespace=namespace)
    with cluster:
        assert "healthy" in run("doctor", acl_server.url, "--namespace", namespace)
        run("why", "nothing", acl_server.url, "--namespace", namespace, code=1)
        assert "is well" in run("ping", acl_server.url, "--namespace", namespace, "--worker")
