"""A payload file that is damaged, cut off, foreign or forged: an error that names key and file, for clients and tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client, Future, LocalCluster, wait
from redist.diagnostics.doctor import examine
from redist.errors import DataLost, DeserializationError
from redist.memory.headers import TRAILER_BYTES, is_file_name
from redist.protocol.header import batch_message
from redist.protocol.numpy_format import _column, _dtype, _templates
from servers import wait_until


def file_of(client: Client, key: str) -> str:
    """Return the path of the only payload file of the cluster."""
    (worker,) = client.who_has()[key]
    folder = client.scheduler_info()["workers"][worker]["local_directory"]
    (path,) = [os.path.join(folder, name) for name in os.listdir(folder) if name.rpartition(".")[2].isdigit()]
    return path


def no_stream(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"something else entirely")


def lying_trailer(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-TRAILER_BYTES, os.SEEK_END)
        file.write((1 << 50).to_bytes(8, "little"))


def no_trailer(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"foreign!")


def objects(path: str) -> None:
    """The bytes of the array are said to be addresses of objects."""
    schema = _templates(_column(_dtype("O")))[0].message([b"O", b"[100000]", b""])
    with open(path, "r+b") as file:
        file.write(schema + batch_message(100_000, 800_000))


def truncated(path: str) -> None:
    os.truncate(path, 4096)


def a_directory(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def a_link(path: str) -> None:
    os.unlink(path)
    os.symlink("/etc/passwd", path)


def a_pipe(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (no_stream, DeserializationError),
        (objects, DeserializationError),
        (lying_trailer, DataLost),
        (no_trailer, DataLost),
        (truncated, DataLost),
        (a_directory, DataLost),
        (a_link, DataLost),
        (a_pipe, DataLost),
        (os.unlink, DataLost),
    ],
)
def test_simple(client: Client, damage: Callable[[str], None], error: type[Exception]) -> None:
    future = client.scatter({"the key": np.arange(100_000)})["the key"]
    path = file_of(client, "the key")
    damage(path)
    assert raised(client, future, error) == 3 * [f"the key ... {path}"]
    del future
    wait_until(lambda: not client.usage().keys, what="the key is gone")
    if damage is a_directory:  # which nobody but who made it removes
        (violation,) = examine(client.cluster.endpoint, patience=0).violations
        assert violation.subject == path
        os.rmdir(path)
    assert examine(client.cluster.endpoint).healthy


def raised(client: Client, future: Future, kind: type[Exception]) -> list[str]:
    """Return what is raised by each way to a value that cannot be had: its key and its file."""
    said = []
    for ask in (
        future.result,
        lambda: client.gather([future]),
        lambda: client.submit(len, future, pure=False).result(20),
    ):
        try:
            ask()
        except kind as error:
            found = re.search("(the key).*?(/[^ :)]*)", str(error))
            said.append(f"{found[1]} ... {found[2]}" if found else str(error))
    return said


@pytest.mark.parametrize("damage", [os.unlink, truncated, no_trailer, a_link])
def test_a_computed_value(
    client: Client, new_client: Callable[..., Client], damage: Callable[[str], None]
) -> None:
    """It is computed again for whoever reads it, and for all others; nobody waits for a copy that does not come."""
    made = client.submit(np.arange, 100_000, key="made")
    wait(made)
    first = file_of(client, "made")
    damage(first)
    assert made.result()[-1] == 99_999
    second = file_of(client, "made")
    assert not os.path.lexists(first)
    damage(second)
    assert client.submit(len, made, pure=False).result(20) == 100_000
    assert not os.path.lexists(second)
    other = new_client().submit(np.arange, 100_000, key="made")
    damage(file_of(client, "made"))
    assert client.gather([made, other])[0][-1] == 99_999
    assert made.result()[-1] == other.result()[-1] == 99_999
    del made, other
    wait_until(lambda: not client.usage().keys, what="the keys are gone")
    assert examine(client.cluster.endpoint).healthy


def test_a_value_that_is_damaged_again_and_again(client: Client) -> None:
    made = client.submit(np.arange, 100_000, key="made")
    wait(made)
    for _ in range(3):
        truncated(file_of(client, "made"))
        assert made.result()[-1] == 99_999
    path = file_of(client, "made")
    truncated(path)
    with pytest.raises(DataLost, match=f"made is lost.*{path}.*4th time"):
        made.result()
    made.retry()
    assert made.result()[-1] == 99_999


def small_one(number: int) -> Any:
    return np.full(1024, number, "f8")


def emptied(path: str) -> None:
    os.truncate(path, 0)


def overwritten(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"?" * os.path.getsize(path))


@pytest.mark.parametrize("damage", [os.unlink, emptied, overwritten])
@pytest.mark.parametrize("by_task", [False, True])
def test_small_values(client: Client, damage: Callable[[str], None], by_task: bool) -> None:
    """They share files; all that are read are made again."""
    futures = client.map(small_one, range(60))
    scattered = client.scatter({"s": small_one(7)})["s"]
    wait(futures)
    for worker in client.scheduler_info()["workers"].values():
        folder = worker["local_directory"]
        for name in os.listdir(folder):
            if name.startswith("arena-"):
                damage(os.path.join(folder, name))
    if by_task:
        sums = client.map(np.sum, futures, pure=False)
        assert client.gather(sums) == [1024 * number for number in range(60)]
    assert [array[0] for array in client.gather(futures)] == list(range(60))
    with pytest.raises(DataLost, match=r"the data of s is lost.*/arena-"):
        scattered.result()
    assert examine(client.cluster.endpoint).healthy


def test_values_on_disk(tmp_path: Path) -> None:
    limited = LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="128 MB", spill_dir=tmp_path)
    with limited as cluster, Client(cluster, set_as_default=False) as client:
        parts = client.map(np.full, [1_000_000] * 16, range(16))
        wait(parts)
        (worker,) = client.scheduler_info()["workers"].values()
        folder = os.path.join(worker["local_directory"], "spill")
        wait_until(lambda: sum(map(is_file_name, os.listdir(folder))) > 3, what="some are on disk")
        for name, damage in zip(filter(is_file_name, os.listdir(folder)), [os.unlink, truncated, a_link]):
            damage(os.path.join(folder, name))
        for number, part in enumerate(parts):
            assert part.result()[-1] == number
        assert examine(cluster.endpoint).healthy


def fails(name: str) -> None:
    raise ZeroDivisionError(name)


class FailsToLoad:
    def __reduce__(self) -> tuple[object, ...]:
        return fails, ("on the way back",)


def test_a_small_value_that_cannot_be_loaded(client: Client) -> None:
    future = client.scatter({"small": FailsToLoad()})["small"]
    with pytest.raises(
        DeserializationError, match=r"key 'small'.*ZeroDivisionError: on the way back"
    ) as caught:
        future.result()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
