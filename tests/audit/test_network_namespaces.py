"""Two hosts made of network namespaces, each with shared memory of its own: what travels between them, and a cut cable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import wait_until

PASSWORD = "test-password"
LEASE = "2 s"


class Host:
    """A network namespace with a cable to its peer; commands in it see a /dev/shm of their own."""

    def __init__(self, name: str, address: str, cable: str) -> None:
        self.name = name
        self.address = address
        self.cable = cable
        self._mounts: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "set", self.cable, "netns", self.name)
        self.ip("addr", "add", f"{self.address}/24", "dev", self.cable)
        self.ip("link", "set", self.cable, "up")
        self.ip("link", "set", "lo", "up")
        # a process that has mounts of its own, for others to join
        keeper = "mount -t tmpfs -o size=512m redist-test /dev/shm && echo ready && exec sleep 3600"
        self._mounts = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.name,
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                keeper,
            ],
            stdout=subprocess.PIPE,
        )
        assert self._mounts.stdout is not None
        assert self._mounts.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        if self._mounts is not None:
            self._mounts.kill()
            self._mounts.wait()
            assert self._mounts.stdout is not None
            self._mounts.stdout.close()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def ip(self, *args: str) -> None:
        _ip("-n", self.name, *args)

    def command(self, *args: str) -> list[str]:
        assert self._mounts is not None
        return ["nsenter", f"--mount=/proc/{self._mounts.pid}/ns/mnt", f"--net=/run/netns/{self.name}", *args]

    def run(self, program: str, url: str) -> dict:
        """Run a program as a client on this host, and return what it prints as JSON in its last line."""
        done = subprocess.run(
            self.command(sys.executable, "-c", textwrap.dedent(program), url),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        pytest.skip("network namespaces need root, ip, nsenter and unshare")
    tag = f"rd{os.getpid() % 100_000}"
    cables = f"{tag}a", f"{tag}b"
    made = subprocess.run(
        ["ip", "link", "add", cables[0], "type", "veth", "peer", "name", cables[1]],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no network interfaces can be made here")
    net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
    both = Host(f"{tag}-one", f"{net}.1", cables[0]), Host(f"{tag}-two", f"{net}.2", cables[1])
    try:
        for host in both:
            host.start()
        yield both
    finally:
        for host in both:
            host.stop()


@pytest.fixture(scope="module")
def url(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the first host, a worker on each; the address of the server."""
    one, _ = hosts
    directory = tmp_path_factory.mktemp("server")
    url = f"redis://:{PASSWORD}@{one.address}:6379"
    with ExitStack() as running:

        def start(host: Host, *args: str) -> None:
            path = directory / f"{host.name}-{args[0]}.log"
            log = running.enter_context(open(path, "wb"))
            process = subprocess.Popen(
                host.command(sys.executable, "-m", "redist", *args), stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "REDIST_PASSWORD": PASSWORD, "REDIST_WORKER__LEASE": LEASE},
            )  # fmt: skip

            def stop() -> None:
                process.terminate()
                process.wait(20)

            running.callback(stop)
            wait_until(
                lambda: b"://" in path.read_bytes() or process.poll() is not None, 20, "it has started"
            )
            assert process.poll() is None, path.read_text()

        start(one, "server", "--bind", one.address, "--dir", str(directory))
        for host in hosts:
            start(host, "worker", url, "--name", host.name, "--host", host.address)
        one.run(
            "import sys, redist; redist.Client(sys.argv[1]).wait_for_workers(2, timeout=30); print('{}')", url
        )
        yield url


def test_values_and_tasks_on_both(hosts: tuple[Host, Host], url: str) -> None:
    names = [host.name for host in hosts]
    for host in hosts:
        seen = host.run(
            f"""
            import json, sys
            import numpy as np
            from redist import Client
            with Client(sys.argv[1]) as client:
                here = [peer.name for peer in client._peers.workers() if peer.here]
                there = [client.scatter(np.full(1_000_000, i), workers=name, hash=False)
                         for i, name in enumerate({names!r})]
                sums = [client.submit(lambda a: int(a.sum()), f, workers=name).result(20)
                        for f in there for name in {names!r}]
                back = [int(a[-1]) for a in client.gather(there)]
            print(json.dumps(dict(here=here, sums=sums, back=back)))
            """,
            url,
        )
        assert seen == {"here": [host.name], "sums": [0, 0, 1_000_000, 1_000_000], "back": [0, 1]}


def test_many_payloads_in_one_gather(hosts: tuple[Host, Host], url: str) -> None:
    seen = hosts[1].run(
        f"""
        import json, sys
        import numpy as np
        from redist import Client
        with Client(sys.argv[1]) as client:
            futures = client.scatter([np.full(8_192, i) for i in range(500)], workers={hosts[0].name!r})
            got = client.gather(futures)
        print(json.dumps(dict(right=all(a[0] == a[-1] == i for i, a in enumerate(got)), n=len(got))))
        """,
        url,
    )
    assert seen == {"right": True, "n": 500}


def test_a_cut_cable(hosts: tuple[Host, Host], url: str, tmp_path: Path) -> None:
    """The second host computes a value that only it has and is cut off: the value is computed again, and it comes back."""
    one, two = hosts
    program = f"""
        import json, os, sys, time
        import numpy as np
        from redist import Client, wait
        cut, mended = {str(tmp_path / "cut")!r}, {str(tmp_path / "mended")!r}
        def make(n):
            return np.full(n, os.getpid())
        with Client(sys.argv[1]) as client:
            lasting = client.submit(make, 500_000, workers={two.name!r}, allow_other_workers=True, pure=False)
            wait(lasting)
            open(cut, "w").close()
            while not os.path.exists(mended + ".off"):
                time.sleep(0.05)
            last = client.submit(lambda a: float(len(a)), lasting, workers={one.name!r})
            length = last.result(40)
            open(mended, "w").close()
            client.wait_for_workers(2, timeout=40)
            again = client.submit(lambda: os.getpid(), workers={two.name!r}, pure=False).result(40)
        print(json.dumps(dict(length=length, again=again > 0)))
        """
    client = subprocess.Popen(
        one.command(sys.executable, "-c", textwrap.dedent(program), url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _await(tmp_path / "cut", client)
        two.ip("link", "set", two.cable, "down")
        (tmp_path / "mended.off").touch()
        _await(tmp_path / "mended", client)
        two.ip("link", "set", two.cable, "up")
        out, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors.decode()
        assert json.loads(out.splitlines()[-1]) == {"length": 500_000.0, "again": True}
    finally:
        client.kill()
        client.communicate()
        subprocess.run(["ip", "-n", two.name, "link", "set", two.cable, "up"], check=False)


def _await(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the file is there, or the process has ended, which its exit code will tell."""
    wait_until(lambda: path.exists() or process.poll() is not None, 60, f"{path.name} is there")
