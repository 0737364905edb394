"""A worker that is killed and started again under its name: it takes its predecessor's place and payloads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from faults import programs
from faults.rig import PATIENCE, Rig, crash
from redist import Client, wait
from redist.errors import DataLost
from redist.memory.headers import path_of
from servers import alive, wait_until

pytestmark = pytest.mark.timeout(120)

cloudpickle.register_pickle_by_value(programs)


def restart(rig: Rig, name: str) -> None:
    """Kill a worker, see its executors die with it, and start it again."""
    (victim,) = [worker for worker in rig.workers if worker.name == name and worker.process.poll() is None]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)), PATIENCE, "its executors died with it")
    before = set(rig.hash("executors"))
    rig.worker(name, lease=30.0)
    wait_until(lambda: rig.hash("executors") and not before & rig.hash("executors").keys(), PATIENCE)


def path_of_payload(rig: Rig, key: Any) -> str:
    (field, attempt), *_ = [pair for pair in rig.hash(f"key:{key}").items() if pair[0].startswith("w:")]
    return path_of(rig.hash(f"caller:{field[2:]}")["segments"], key, int(attempt))


@pytest.fixture
def client(rig: Rig) -> Client:
    rig.worker("w", lease=30.0)
    rig.ready(1)
    return rig.client()


def test_it_keeps_ordinal_and_payloads(rig: Rig, client: Client) -> None:
    data = client.scatter(np.arange(100_000.0), hash=False)
    result = client.submit(programs.large, 3, pure=False)
    wait(result)
    before = rig.hash("workers"), rig.hash(f"key:{data.key}"), rig.hash(f"key:{result.key}")
    restart(rig, "w")
    assert (rig.hash("workers"), rig.hash(f"key:{data.key}"), rig.hash(f"key:{result.key}")) == before
    other = rig.client()
    other.submit(len, data, key="length")
    assert client.submit(len, data, key="length").result(PATIENCE) == 100_000
    assert data.result(PATIENCE).sum() == np.arange(100_000.0).sum()
    assert result.result(PATIENCE) == programs.large(3)
    assert "deaths" not in rig.hash(f"key:{result.key}")
    del data, result
    rig.finish()


def test_it_keeps_small_payloads(rig: Rig, client: Client) -> None:
    data = client.scatter([np.full(1000, number, "f8") for number in range(300)], hash=False)
    results = client.map(np.full, [1000] * 30, range(30), pure=False)
    wait(results)
    gone = data[100:]
    del data[100:]
    gone.clear()
    wait_until(lambda: len(rig.names()) == 130, PATIENCE)
    (ordinal,) = rig.hash("workers")
    believed = rig.hash(f"has:{ordinal}")
    restart(rig, "w")
    assert len(believed) == 130
    assert rig.hash(f"has:{ordinal}") == believed
    assert [int(array[0]) for array in client.gather(data)] == list(range(100))
    assert [int(array[0]) for array in client.gather(results)] == list(range(30))
    assert client.submit(sum, data[:3], pure=False).result(PATIENCE).sum() == 3000
    assert not any("deaths" in rig.hash(f"key:{result.key}") for result in results)
    del data, results
    rig.finish()


def test_what_ran_runs_again_and_is_blamed(rig: Rig, client: Client, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    tasks = client.map(programs.gated, [gate] * 3, range(3), pure=False)
    wait_until(
        lambda: os.path.exists(gate + "-ran") and Path(gate + "-ran").read_text().endswith("\n"), PATIENCE
    )
    ran = int(Path(gate + "-ran").read_text().split()[0])
    restart(rig, "w")
    wait_until(lambda: len(Path(gate + "-ran").read_text().split()) > 1, PATIENCE)
    assert [rig.hash(f"key:{task.key}").get("deaths") for task in tasks] == [
        "1" if i == ran else None for i in range(3)
    ]
    Path(gate).touch()
    assert client.gather(tasks) == [0, 1, 2]
    del tasks
    rig.finish()


def test_its_record_is_corrected_to_the_files_found(rig: Rig, client: Client) -> None:
    data = client.scatter(np.arange(10_000.0), hash=False)
    kept = client.scatter(np.arange(20_000.0), hash=False)
    result = client.submit(programs.large, 3, pure=False)
    wait(result)
    paths = [path_of_payload(rig, key) for key in (data.key, result.key)]
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)), PATIENCE)
    for path in paths:
        os.unlink(path)
    rig.worker("w", lease=30.0)
    with pytest.raises(DataLost, match="its file on worker w"):
        client.submit(len, data, pure=False).result(PATIENCE)
    assert result.result(PATIENCE) == programs.large(3)
    assert len(kept.result(PATIENCE)) == 20_000
    del data, kept, result
    rig.finish()


def test_what_was_released_meanwhile_goes(rig: Rig, client: Client) -> None:
    data = client.scatter(np.arange(10_000.0), hash=False)
    path = path_of_payload(rig, data.key)
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)), PATIENCE)
    del data
    wait_until(lambda: not rig.names(), PATIENCE)
    assert os.path.exists(path)
    rig.worker("w", lease=30.0)
    wait_until(lambda: not os.path.exists(path), PATIENCE)
    rig.finish()


def test_it_says_how_many_payloads_are_still_wanted(rig: Rig, client: Client) -> None:
    kept, dropped = client.scatter([np.arange(10_000.0), np.arange(20_000.0)], hash=False)
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)), PATIENCE)
    del dropped
    wait_until(lambda: len(rig.names()) == 1, PATIENCE)
    heir = rig.worker("w", lease=30.0)
    wait_until(lambda: "of its 2 payloads 1 are still wanted\n" in heir.text(), PATIENCE)
    assert len(kept.result(PATIENCE)) == 10_000
    del kept
    rig.finish()


def test_a_worker_that_comes_back_after_its_lease_says_that_nothing_is_wanted(rig: Rig) -> None:
    rig.worker("w")
    rig.ready(1)
    client = rig.client()
    data = client.scatter(np.arange(10_000.0), hash=False)
    path = path_of_payload(rig, data.key)
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)) and not rig.hash("workers"), PATIENCE)
    heir = rig.worker("w")
    wait_until(lambda: "of its 1 payloads 0 are still wanted: its lease had ended" in heir.text(), PATIENCE)
    wait_until(lambda: not os.path.exists(path), PATIENCE)
    with pytest.raises(DataLost, match="publish it again"):
        data.result(PATIENCE)
    del data
    rig.finish()


def test_a_worker_whose_lease_ended_while_nobody_was_there_takes_over(rig: Rig) -> None:
    rig.worker("w")
    rig.ready(1)
    with Client(rig.endpoint, timeout=PATIENCE) as first:
        first.publish_dataset(first.scatter(np.arange(10_000.0), hash=False), name="numbers")
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    (ordinal,) = rig.hash("workers")
    ends = float(rig.command("ZSCORE", rig.endpoint.prefix + "leases", ordinal)) / 1000
    wait_until(lambda: not any(map(alive, pids)) and int(rig.command("TIME")[0]) > ends + 1, PATIENCE)
    heir = rig.worker("w")
    wait_until(lambda: "of its 1 payloads 1 are still wanted\n" in heir.text(), PATIENCE)
    client = rig.client()
    assert len(client.get_dataset("numbers").result(PATIENCE)) == 10_000
    client.unpublish_dataset("numbers")
    rig.finish()


@pytest.mark.parametrize("newcomers", [0, 3])
def test_server_and_worker_die_together(own_server: Any, newcomers: int) -> None:
    """The files are all that is left of the data, and the client's Future of it; newcomers do not get in between."""
    rig, server = own_server(False)
    rig.worker("w", lease=30.0)
    rig.ready(1)
    client = rig.client(heartbeat_interval=2.0)  # a lease that the worker's start fits into
    data = client.scatter(np.arange(100_000.0), hash=False)
    inner = client.scatter(np.arange(10_000.0), hash=False)
    box = client.scatter({"box": [inner, bytes(50_000)]})["box"]
    del inner
    victim = rig.workers[0]
    pids = victim.descendants()
    victim.kill()
    wait_until(lambda: not any(map(alive, pids)), PATIENCE)
    crash(server)
    others = [rig.client() for _ in range(newcomers)]
    rig.worker("w", lease=30.0)
    rig.ready(1)
    wait_until(lambda: "recovering" not in rig.hash("meta"), PATIENCE)
    assert client.submit(len, data, pure=False).result(PATIENCE) == 100_000
    assert len(box.result(PATIENCE)[0].result(PATIENCE)) == 10_000
    del data, box
    wait_until(lambda: not rig.names(), PATIENCE)
    for other in others:
        other.close()
        rig.clients.remove(other)
    rig.finish()
