"""A payload file that is damaged, cut off, foreign or forged: an error that names key and file, for clients and tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np
import pytest

from redist import Client, Future, config, wait
from redist.diagnostics.doctor import examine
from redist.errors import DataLost, DeserializationError, SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.headers import TRAILER_BYTES
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
        (lying_trailer, SegmentCorrupt),
        (no_trailer, SegmentCorrupt),
        (truncated, SegmentCorrupt),
        (a_directory, SegmentError),
        (a_link, SegmentError),
        (a_pipe, SegmentCorrupt),
    ],
)
def test_simple(client: Client, damage: Callable[[str], None], error: type[Exception]) -> None:
    future = client.scatter({"the key": np.arange(100_000)})["the key"]
    path = file_of(client, "the key")
    damage(path)
    assert raised(client, future, error) == 3 * [f"key 'the key' ... {path}"]
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
            found = re.search("(key '[^']*').*?(/[^ :)]*)", str(error))
            said.append(f"{found[1]} ... {found[2]}" if found else str(error))
    return said


def test_a_vanished_file(client: Client) -> None:
    scattered = client.scatter({"x-7": np.arange(100_000)})["x-7"]
    path = file_of(client, "x-7")
    os.unlink(path)
    with config.set({"client.copies-timeout": "0.2 s"}):
        with pytest.raises(SegmentGone, match=f"key 'x-7': {path}"):
            scattered.result()
    client.submit(len, scattered, pure=False).exception(20)  # an executor that misses one tells of it
    for text in raised(client, scattered, DataLost):
        assert re.search(r"the data of x-7 .*the copy could not be read", text)
    made = client.submit(np.arange, 100_000, key="made")
    wait(made)
    os.unlink(file_of(client, "made"))
    assert client.submit(len, made, pure=False).result(20) == 100_000  # it is made again
    assert made.result()[-1] == 99_999
    del scattered, made
    wait_until(lambda: not client.usage().keys, what="the keys are gone")
    assert examine(client.cluster.endpoint).healthy


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
