"""Workers with little memory: what does not fit goes to disk, executors pause, and who takes too much is ended."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import redist
from redist import Client, wait
from redist.diagnostics.doctor import examine
from redist.errors import KilledWorker, SegmentsFull
from redist.memory import pool
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header, file_name
from redist.memory.limits import MemoryLimits
from redist.memory.writer import SegmentWriter
from redist_worker.pressure import Pressure
from servers import set_apart, wait_until
from worker.little_memory import MB, files_in, metrics, small, worker

pytestmark = pytest.mark.timeout(180)

SIZE = 8 * MB


def make(i: int, nbytes: int = SIZE) -> Any:
    return np.full(nbytes // 8, i, dtype=np.int64)


def keep(nbytes: int) -> None:
    redist.kept = np.ones(nbytes // 8)  # type: ignore[attr-defined]


def check(array: Any) -> int:
    assert (array == array[0]).all()
    return int(array[0])


def payloads(path: str) -> dict[str, int]:
    """Return the bytes that the payload files in a directory take."""
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(path):
            if name.partition(".")[2].isdigit():
                with suppress(FileNotFoundError):  # it goes just now
                    found[name] = os.stat(f"{path}/{name}").st_blocks * 512
    return found


def spilled(client: Client) -> dict[str, int]:
    return payloads(f"{worker(client)['local_directory']}/spill")


def about(said: int, found: int) -> bool:
    return abs(said - found) <= 0.02 * found


def own_pages(pid: int) -> int:
    """Return the bytes of a process that are of no file; of what it shares with the process it was forked from its part."""
    maps = psutil.Process(pid).memory_maps(grouped=False)
    return sum(each.pss * each.anonymous // each.rss for each in maps if each.rss)


def in_memory(client: Client) -> dict[str, int]:
    return payloads(worker(client)["local_directory"])


def test_five_times_the_limit(tmp_path: Path) -> None:
    with small(tmp_path, executors_per_worker=2) as client:
        futures = client.map(make, range(80))
        checks = client.map(check, futures)
        assert client.gather(checks) == list(range(80))
        assert sum(spilled(client).values()) > 3 * 128 * MB
        wait_until(
            lambda: sum(in_memory(client).values()) <= 0.6 * 128 * MB, what="the rest has gone to disk"
        )
        for i in (0, 40, 79):
            array = futures[i].result()
            assert check(array) == i
            del array
        assert all(len(client.who_has(future)[future.key]) == 1 for future in (futures[0], futures[79]))
        del futures, checks
        # On a busy machine an executor may be killed for the memory it takes: what it wrote and had not told of goes, too.
        wait_until(lambda: not spilled(client) and not in_memory(client), what="the payloads are gone")


def test_tasks_that_make_data_do_not_run_ahead(tmp_path: Path) -> None:
    def noting(path: str, what: str, function: Any, argument: Any) -> Any:
        with open(path, "a") as file:
            print(what, file=file)
        return function(argument)

    path = str(tmp_path / "order")
    with small(tmp_path) as client:
        futures = [client.submit(noting, path, "made", make, i, pure=False) for i in range(60)]
        checks = [client.submit(noting, path, "used", check, future, pure=False) for future in futures]
        assert client.gather(checks) == list(range(60))
        steps = [1 if line == "made" else -1 for line in Path(path).read_text().split()]
        assert sum(steps) == 0
        # 60 MB are a few of them; in the order of submission all 60 would be made first
        assert max(itertools.accumulate(steps)) < 40


def test_what_the_worker_says_is_so(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        futures = client.map(make, range(30))
        wait(futures)

        (executor,) = metrics(client)["executors"]

        def own() -> int:
            info = psutil.Process(executor["pid"]).memory_info()
            return int(info.rss - info.shared)

        def agrees() -> bool:
            (said,) = client.memory().workers
            return (
                said.use == client.memory().total == client.memory().hosts[said.host]
                and about(said.use.managed, sum(in_memory(client).values()))
                and about(said.use.spilled, sum(spilled(client).values()))
                and said.use.unmanaged == sum(said.executors.values())
                and about(said.use.unmanaged, own_pages(executor["pid"]))
                and said.use.limit == 128 * MB
            )

        wait_until(agrees, what="the heartbeat says what is there")
        before, unmanaged = own(), client.memory().total.unmanaged
        client.submit(keep, 30 * MB).result()
        grown = own() - before
        assert grown > 29 * MB
        # within a second, though heartbeats are 2 s apart
        wait_until(lambda: about(client.memory().total.unmanaged - unmanaged, grown), 1.5)
        assert examine(client.cluster.endpoint).healthy  # the doctor finds what is on disk
        held = futures[29].result()
        del futures
        wait_until(lambda: metrics(client)["lingering"] >= SIZE, 5, what="the mapped one lingers")
        wait_until(lambda: metrics(client)["spilled"] == 0)
        del held
        wait_until(lambda: metrics(client)["lingering"] == 0)


def test_what_workers_and_hosts_say_sums_up_to_what_there_is(tmp_path: Path) -> None:
    """Of large payloads and small ones, on disk, pooled and mapped, and of all executors."""
    with small(tmp_path, limit="300MB", n_workers=2, executors_per_worker=2) as client:
        futures = client.map(make, range(50), pure=False)
        little = client.scatter([make(i, 8_000) for i in range(2_000)], hash=False)
        wait(futures)
        client.run(keep, 10 * MB)
        held = client.gather(futures[-2:])
        del futures[-4:]
        # in memory for sure: those before may be on disk, where what is dropped and mapped takes none
        newest = client.scatter(make(50), hash=False)
        held.append(newest.result())
        del newest
        workers = {w["name"]: w for w in client.scheduler_info()["workers"].values()}

        def there(name: str) -> tuple[int, int, int]:
            path = workers[name]["local_directory"]
            executors = workers[name]["metrics"]["executors"]
            return (
                files_in(path),
                files_in(f"{path}/spill")
                if os.path.exists(f"{path}/spill")
                else 0,  # it has spilled nothing yet
                sum(own_pages(each["pid"]) for each in executors),
            )

        def agree() -> bool:
            said = client.memory()
            found = {each.name: there(each.name) for each in said.workers}
            return (
                all(
                    about(each.use.memory - each.use.unmanaged, found[each.name][0])
                    and about(each.use.spilled, found[each.name][1])
                    and about(each.use.unmanaged, found[each.name][2])
                    for each in said.workers
                )
                and said.hosts == {said.workers[0].host: said.total}
                and about(said.total.memory, sum(files + own for files, _, own in found.values()))
                and about(said.total.spilled, sum(spilled for _, spilled, _ in found.values()))
            )

        wait_until(lambda: client.memory().total.spilled > 0 and agree(), 60, what="all agree")
        wait_until(lambda: client.memory().total.lingering >= SIZE, what="what is mapped lingers")
        assert [check(each) for each in held] == [48, 49, 50]
        assert len(little) == 2_000


def test_what_is_mapped_on_disk_counts_until_it_is_let_go(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        futures = client.map(make, range(20))
        wait(futures)
        wait_until(lambda: len(spilled(client)) >= 8)
        on_disk = {name.partition(".")[0] for name in spilled(client)}
        held = next(f for f in futures if file_name(f.key, 0).partition(".")[0] in on_disk).result()
        del futures
        wait_until(lambda: SIZE <= client.memory().total.spilled < SIZE + 4096 * 2)
        wait_until(lambda: client.memory().total.managed == 0, what="a heartbeat later")
        assert SIZE <= client.memory().total.spilled < SIZE + 4096 * 2
        assert not spilled(client)
        assert check(held) >= 0
        del held
        wait_until(lambda: client.memory().total.spilled == 0, 5)


def test_hot_values_come_back(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        futures = client.map(make, range(20))
        wait(futures)
        wait_until(lambda: len(spilled(client)) >= 8)
        first = futures[0]
        kept = futures[:6]
        del futures
        wait_until(lambda: len(in_memory(client)) + len(spilled(client)) == 6)

        def read() -> bool:
            assert check(first.result()) == 0
            return metrics(client)["unspilled_in_all"] > 0

        wait_until(read, 20, what="what is read again and again is in memory")
        assert check(first.result()) == 0
        assert len(kept) == 6


def test_read_from_another_host(tmp_path: Path) -> None:
    with small(tmp_path, n_workers=2) as client:
        cluster = client.cluster
        set_apart(cluster)
        client._peers.forget()
        first, second = cluster.workers
        futures = [client.submit(make, i, workers=first) for i in range(20)]
        wait(futures)
        info = {w["name"]: w for w in client.scheduler_info()["workers"].values()}
        wait_until(lambda: len(os.listdir(f"{info[first]['local_directory']}/spill")) > 8)
        assert [check(future.result(30)) for future in futures] == list(range(20))
        checks = [client.submit(check, future, workers=second) for future in futures]
        assert client.gather(checks) == list(range(20))  # fetched, and spilled there too


def test_a_remote_client_scatters_more_than_fits(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        cluster = client.cluster
        wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
        for ordinal in map(bytes.decode, wire.call("HKEYS", f"{prefix}workers")):
            wire.call("HSET", f"{prefix}caller:{ordinal}", "hostid", "another")
        wire.close()
        client._peers.forget()
        futures = [client.scatter(make(i), hash=False) for i in range(25)]
        assert [check(future.result(30)) for future in futures] == list(range(25))


def test_values_that_fit_one_by_one_fit_together(tmp_path: Path) -> None:
    """Those of one call were asked for in one piece, which was larger than the limit."""
    with small(tmp_path) as client:
        futures = client.scatter([make(i, 40 * MB) for i in range(8)], hash=False)
        assert [check(future.result(30)) for future in futures] == list(range(8))


def test_too_large_is_refused_at_once(tmp_path: Path) -> None:
    with small(tmp_path, settings={"wait": "60 s", "terminate": False}) as client:
        began = time.monotonic()
        with pytest.raises(
            SegmentsFull, match=r"^worker 'local-0': 190.7\d MiB can never fit into .* 122.07 MiB"
        ):
            client.scatter(make(0, 200 * MB))
        assert time.monotonic() - began < 30
        with pytest.raises(SegmentsFull, match=r"can never fit .* it is for the value of the key 'big'$"):
            client.scatter({"small": make(1), "big": make(0, 200 * MB)})
        with pytest.raises(SegmentsFull, match=r"can never fit .* it is for the result of the task 'made'"):
            client.submit(make, 0, 200 * MB, key="made").result(60)
        assert check(client.scatter(make(1)).result()) == 1
        set_apart(client.cluster)
        with Client(client.cluster, set_as_default=False) as remote:
            with pytest.raises(SegmentsFull, match=r"can never fit .* it is for the value of the key 'big'$"):
                remote.scatter({"small": make(1), "big": make(0, 200 * MB)})


@pytest.mark.parametrize("executors", [1, 2])
def test_a_full_disk(tmp_path: Path, executors: int) -> None:
    settings = {"wait": "0.2 s", "longest-pause": "0.2 s", "terminate": False}
    with small(tmp_path, settings=settings, max_spill="50MB", executors_per_worker=executors) as client:
        futures = client.map(make, range(25))
        wait(futures, 100)
        errors = [future.exception() for future in futures]
        refused = [error for error in errors if error is not None]
        assert refused
        assert all(isinstance(error, SegmentsFull) for error in refused)
        assert str(refused[0]).startswith("worker 'local-0' is full: ")
        assert "limit of 122.07 MiB; " in str(refused[0])
        assert "; largest: 'make-" in str(refused[0])
        done = [i for i, error in enumerate(errors) if error is None]
        assert len(done) >= 10
        assert sum(spilled(client).values()) <= 50 * MB
        assert [check(futures[i].result()) for i in done] == done
        del futures
        wait_until(lambda: not spilled(client) and not in_memory(client))
        assert check(client.submit(make, 7).result(30)) == 7


def test_a_task_that_maps_everything_gets_the_error(tmp_path: Path) -> None:
    def hold(n: int) -> tuple[int, str]:
        client = redist.get_client()
        held, futures = [], []
        try:
            for i in range(n):
                futures.append(client.scatter(make(i), hash=False))
                held.append(futures[-1].result())
        except SegmentsFull as error:
            return len(held), str(error)
        return len(held), ""

    with small(tmp_path, settings={"wait": "1 s", "terminate": False}) as client:
        count, text = client.submit(hold, 40).result(60)
        assert 5 < count < 16
        assert "is full" in text
        assert check(client.submit(make, 7).result(30)) == 7


def test_pause_and_go_on(tmp_path: Path) -> None:
    def grow(path: str) -> int:
        block = np.ones(100 * MB // 8)
        Path(path).touch()
        while os.path.exists(path):
            time.sleep(0.01)
        return block.size

    path = tmp_path / "grown"
    settings = {"terminate": False, "longest-pause": "100 s"}
    with small(tmp_path, settings=settings, executors_per_worker=2) as client:
        growing = client.submit(grow, str(path))
        wait_until(lambda: worker(client)["status"] == "paused", what="the worker pauses")
        waiting = client.submit(abs, -1)
        since = worker(client)["last_seen"]
        wait_until(lambda: path.exists() and worker(client)["last_seen"] > since + 1.5)
        assert waiting.status == "pending"
        assert worker(client)["status"] == "paused"
        path.unlink()
        assert growing.result(30) == 100 * MB // 8  # what runs goes on
        assert waiting.result(30) == 1
        wait_until(lambda: worker(client)["status"] == "running")


def test_a_long_pause_lets_a_task_through(tmp_path: Path) -> None:
    def leak() -> None:
        redist.leaked = np.ones(100 * MB // 8)  # type: ignore[attr-defined]

    def mend() -> None:
        del redist.leaked  # type: ignore[attr-defined]

    with small(tmp_path, settings={"terminate": False, "longest-pause": "0.5 s"}) as client:
        client.submit(leak).result(30)
        wait_until(lambda: "paused" in (worker(client)["status"],) or metrics(client)["unmanaged"] > 100 * MB)
        client.submit(mend).result(30)
        wait_until(lambda: worker(client)["status"] == "running" and metrics(client)["unmanaged"] < 90 * MB)


def test_terminate(tmp_path: Path) -> None:
    def eat() -> None:
        blocks = []
        while True:
            blocks.append(np.ones(5 * MB // 8))
            time.sleep(0.02)

    with small(tmp_path) as client:
        pid = client.submit(os.getpid).result(30)
        bad = client.submit(eat)
        with pytest.raises(KilledWorker) as caught:
            bad.result(90)
        for part in ("eat", "terminate=0.95", "122.07 MiB", "its last memory sample", "at most it had"):
            assert part in str(caught.value), part
        assert client.submit(os.getpid, pure=False).result(30) != pid  # by a successor


def test_a_worker_killed_while_it_spills(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        futures = client.map(make, range(12), pure=False)
        wait(futures)
        more = client.map(make, range(100, 130), pure=False)
        wait_until(lambda: len(spilled(client)) > 8)
        before = worker(client)
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: worker(client)["pid"] != before["pid"], 30)
        assert [check(future.result(60)) for future in futures] == list(range(12))
        assert [check(future.result(60)) for future in more] == list(range(100, 130))
        assert worker(client)["local_directory"] == before["local_directory"]


def test_nothing_is_spilled_without_a_limit(tmp_path: Path) -> None:
    with small(tmp_path, limit="0") as client:
        futures = client.map(make, range(20))
        wait(futures)
        assert worker(client)["memory_limit"] == 0
        assert len(in_memory(client)) == 20
        assert not spilled(client)


_ON_SMALL_FILE_SYSTEMS = """
import os, sys
import numpy as np
from redist import Client, LocalCluster, config, wait
from redist.errors import SegmentsFull

def make(i):
    return np.full(1_000_000, i)

def check(array):
    assert (array == array[0]).all()
    return int(array[0])

if __name__ == "__main__":
    spill, filled = sys.argv[1:]
    config.set({"worker.memory.wait": "0.2 s", "worker.memory.longest-pause": "0.2 s"})
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="1GB", spill_dir=spill) as cluster:
        with Client(cluster) as client:
            futures = client.map(make, range(20), pure=False)
            wait(futures)
            errors = [future.exception() for future in futures]
            done = [i for i, error in enumerate(errors) if error is None]
            assert all(error is None or isinstance(error, SegmentsFull) for error in errors), errors
            assert [check(futures[i].result()) for i in done] == done
            assert client.gather(client.map(check, [futures[i] for i in done])) == done
            print(len(done))
            del futures
            while client.usage().keys:
                pass
            if int(filled):  # by somebody else
                with open("/dev/shm/other", "wb") as file:
                    try:
                        while True:
                            file.write(bytes(1 << 20))
                            file.flush()
                    except OSError:
                        pass
                error = client.submit(np.ones, 6_500_000).exception()  # more than the pool has
                assert isinstance(error, SegmentsFull), error
                os.unlink("/dev/shm/other")
            assert check(client.submit(make, 7, pure=False).result()) == 7
"""


@pytest.mark.parametrize("disk", ["40m", "1g"])
def test_small_shared_memory_and_a_small_disk(tmp_path: Path, disk: str) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    program, spill = tmp_path / "program.py", tmp_path / "spill"
    program.write_text(_ON_SMALL_FILE_SYSTEMS)
    spill.mkdir()
    commands = (
        f"mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size={disk} tmpfs {spill} &&"
        f" exec {sys.executable} {program} {spill} {int(disk == '1g')}"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", commands],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count == 20 if disk == "1g" else 8 <= count < 20
    assert "--shm-size" in done.stderr
    assert "has room for 64.00 MiB, the memory limit is 953.67 MiB" in done.stderr


def test_unused_files_go_without_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE", 0.0)
    directory = SegmentDirectory.create(str(tmp_path), limit=64 * MB)
    header = Header("x", 1, MB, "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size])
    with SegmentWriter(grant, header) as writer:
        writer.write([bytes(MB)])
        writer.publish(directory.path_of("x", 1))
    directory.add("x", 1, reserved)
    directory.drop("x", 1)
    assert directory.pool.total

    async def look() -> None:
        pressure = Pressure(directory, 64 * MB, MemoryLimits())
        pressure.look()
        assert directory.pool.total == MB + 4096 - MB % 4096  # not in the event loop
        async with asyncio.timeout(10):
            while directory.space.used:
                await asyncio.sleep(0.01)
        await pressure.close()

    asyncio.run(look())
    assert directory.pool.total == 0
    directory.close()


class Executors(list[Any]):
    """Executors of which a test says what memory they have."""

    def sample(self, *, roughly: bool = False) -> None:
        pass


@pytest.mark.parametrize("limit", [0, 400 * MB])
def test_it_is_looked_seldom_where_nothing_changes(tmp_path: Path, limit: int) -> None:
    """An idle worker does not wake up five times a second; one whose executors take memory, or have much, does."""
    directory = SegmentDirectory.create(str(tmp_path))
    executor = SimpleNamespace(private=0, base=0, killed=False, marks=SimpleNamespace(running=list))
    pressure = Pressure(directory, limit, MemoryLimits())
    pressure.executors = Executors([executor])  # type: ignore[assignment]

    def period(private: int) -> float:
        executor.private = private
        pressure.look()
        return pressure.period

    calm = [period(50 * MB) for _ in range(10)]
    assert calm[0] < calm[-1] == max(calm)
    assert period(51 * MB) == calm[0]
    if limit:
        assert max(period(150 * MB) for _ in range(10)) == calm[0]
        assert max(period(250 * MB) for _ in range(10)) < calm[0]
    directory.close()
