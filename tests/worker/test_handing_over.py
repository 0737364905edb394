"""What a worker that is stopped says of payloads of which it has the only copy."""

import os
import subprocess
import sys

import numpy as np

from redist import Client, LocalCluster
from servers import alive, wait_until
from worker.harness import Key


def test_others_take_it_over(start, client):
    first = start(name="first")
    key = client.submit(lambda: b"z" * 50_000)
    client.wait(key)
    start(name="second")
    assert first.stop() == 0
    said = first.text()
    assert "of what is still needed only this worker has 1 value (49." in said
    assert "another worker is asked to take it over" in said
    assert "handed over 1 value (49." in said
    assert "gone with" not in said
    assert client.result(key) == b"z" * 50_000


def test_where_nobody_is_it_goes(start, client):
    worker = start()
    client.wait(client.submit(lambda: b"z" * 50_000))
    assert worker.stop() == 0
    said = worker.text()
    assert "gone with this worker, since no other worker is there: 1 value (49." in said
    assert "of which nobody else has a copy; what is needed of it is computed again" in said


def test_nothing_is_said_of_what_nobody_needs(start, client):
    worker = start()
    key = client.submit(lambda: b"z" * 50_000)
    client.wait(key)
    client.release(Key(key.name))
    client.wait(key)  # forgotten
    assert worker.stop() == 0
    assert "gone with" not in worker.text()


def test_a_cluster_scaled_to_nothing_says_what_is_lost(capfd):
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.scatter(np.zeros(50_000), hash=False)
        cluster.scale(0)
        said = capfd.readouterr().err
        assert "1 value (391." in said
        assert f"1 cannot be computed again ({future.key!r})" in said
        del future


def test_a_cluster_that_is_closed_says_nothing(capfd):
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        client = Client(cluster)
        futures = client.scatter([np.zeros(50_000) for _ in range(4)], hash=False)
        cluster.close()
        assert "gone with" not in capfd.readouterr().err
        del futures
        client.close()


SLOW_TO_REMOVE = """
import os, sys, time
from redist.memory import directory
from redist_worker.ending import run_and_exit
from redist_worker.main import main

remove, gate = directory.remove_tree, sys.argv.pop()

def slow(path):
    while not os.path.exists(gate):
        time.sleep(0.01)
    remove(path)

directory.remove_tree = slow
run_and_exit(main)
"""


def test_its_files_go_when_everybody_knows_that_it_ends(valkey, namespace, tmp_path):
    """Many GiB take seconds, in the worker's event loop: nothing else may have to be done by then."""
    gate, prefix = tmp_path / "gate", f"redist:{{{namespace}}}:"
    command = [
        sys.executable,
        "-c",
        SLOW_TO_REMOVE,
        valkey.url,
        "--namespace",
        namespace,
        "--grace=0",
        str(gate),
    ]
    process = subprocess.Popen(command)
    wire = valkey.endpoint(namespace).open()
    try:
        wait_until(lambda: wire.call("HLEN", f"{prefix}executors") == 1)
        (ordinal,) = wire.call("HKEYS", f"{prefix}workers")
        segments = wire.call("HGET", f"{prefix}caller:{ordinal.decode()}", "segments")
        (executor,) = wire.call("HKEYS", f"{prefix}executors")
        executor = int(wire.call("HGET", f"{prefix}caller:{executor.decode()}", "pid"))
        process.terminate()
        wait_until(lambda: wire.call("EXISTS", f"{prefix}workers", f"{prefix}executors") == 0)
        assert not alive(executor)
        assert process.poll() is None
        assert os.path.exists(segments)
        gate.touch()
        assert process.wait(20) == 0
        assert not os.path.exists(segments)
    finally:
        process.kill()
        process.wait()
        wire.close()
