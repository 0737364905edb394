"""A payload file that is damaged, cut off, foreign or forged: an error that names key and file, for clients and tasks."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from redist import Client
from redist.errors import DeserializationError, SegmentCorrupt
from redist.memory.headers import TRAILER_BYTES
from redist.protocol.header import batch_message
from redist.protocol.numpy_format import _column, _dtype, _templates


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


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (no_stream, DeserializationError),
        (objects, DeserializationError),
        (lying_trailer, SegmentCorrupt),
        (no_trailer, SegmentCorrupt),
    ],
)
def test_simple(client: Client, damage: Callable[[str], None], error: type[Exception]) -> None:
    future = client.scatter({"the key": np.arange(100_000)})["the key"]
    path = file_of(client, "the key")
    damage(path)
    for ask in (
        future.result,
        lambda: client.gather([future]),
        lambda: client.submit(len, future, pure=False).result(20),
    ):
        with pytest.raises(error, match="key 'the key'") as caught:
            ask()
        assert path in str(caught.value)


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
