"""What users call and extend: registered classes, serialize and deserialize, pickles, and Futures in nested data."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from distributed import utils_comm as theirs

from redist.protocol import (
    Serialize,
    dask_deserialize,
    dask_serialize,
    deserialize,
    dumps,
    loads,
    register_serialization,
    serialize,
    to_serialize,
)
from redist.protocol import pickle as redist_pickle
from redist.utils_comm import pack_data, unpack_remotedata


class Signal:
    """A class of a user that pickle could not take: it holds a lock of its own making."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples = samples
        self.rate = rate
        self.unpicklable = (item for item in ())


def signal_to_frames(signal: Signal) -> tuple[dict[str, Any], list[memoryview]]:
    return {"rate": signal.rate, "dtype": signal.samples.dtype.str}, [signal.samples.data]


def signal_of_frames(header: dict[str, Any], frames: list[Any]) -> Signal:
    return Signal(np.frombuffer(frames[0], header["dtype"]), header["rate"])


register_serialization(Signal, signal_to_frames, signal_of_frames)


def whole(value: object) -> memoryview:
    payload = dumps(value, inline_limit=0)
    data = bytearray(payload.nbytes)
    payload.write_into(memoryview(data))
    return memoryview(data)


@pytest.mark.parametrize("count", [3, 1_000_000])
def test_a_registered_class(count: int) -> None:
    signal = Signal(np.arange(count), 44_100)
    back = loads(whole(signal))
    assert type(back) is Signal
    assert back.rate == 44_100
    assert (back.samples == signal.samples).all()
    inside = loads(whole({"signals": [signal]}))["signals"][0]
    assert (inside.samples == signal.samples).all()


def test_large_frames_are_not_copied() -> None:
    signal = Signal(np.arange(1_000_000), 1)
    begin = signal.samples.__array_interface__["data"][0]
    pieces = [np.frombuffer(piece, "u1").__array_interface__["data"][0] for piece in dumps(signal).chunks()]
    assert begin in pieces
    data = whole(signal)
    samples = loads(data).samples
    assert np.shares_memory(samples, np.frombuffer(data, "u1"))
    assert not samples.flags.writeable


class Human:
    def __init__(self, name: str) -> None:
        self.name = name
        self.unpicklable = (item for item in ())


@dask_serialize.register(Human)
def human_to_frames(human: Human) -> tuple[dict[str, Any], list[bytes]]:
    return {}, [human.name.encode()]


@dask_deserialize.register(Human)
def human_of_frames(header: dict[str, Any], frames: list[Any]) -> Human:
    return Human(bytes(frames[0]).decode())


@pytest.mark.parametrize("name", ["Alice", "Alice" * 100_000])
def test_a_class_that_is_registered_as_for_dask(name: str) -> None:
    assert loads(whole([Human(name)]))[0].name == name
    header, frames = serialize(Human(name))
    assert deserialize(header, frames).name == name


def test_wrong_registrations() -> None:
    with pytest.raises(TypeError, match="is a class"):
        register_serialization("Signal", signal_to_frames, signal_of_frames)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot be called"):
        register_serialization(Signal, signal_to_frames, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [7, "word" * 5_000, {"a": np.arange(100_000)}, pa.table({"a": range(9_000)})]
)
@pytest.mark.parametrize("join", [True, False])
def test_serialize_and_back(value: Any, join: bool) -> None:
    header, frames = serialize(value)
    assert pickle.loads(pickle.dumps(header)) == header
    assert header["contains"] == []
    back = deserialize(header, [b"".join(frames)] if join else frames)
    if isinstance(value, dict):
        assert (back["a"] == value["a"]).all()
    else:
        assert back == value
    marked, _ = serialize(to_serialize(value))
    assert marked["type"] == header["type"]


def test_serialize_marks() -> None:
    assert to_serialize is Serialize
    assert to_serialize(1) == Serialize(1) != Serialize(2)
    assert len({Serialize(1), Serialize(1)}) == 1
    assert "Serialize: 1" in repr(Serialize(1))


def test_pickle_of_main_goes_along(tmp_path) -> None:
    program = (
        "import sys; from redist.protocol import pickle\n"
        "def triple(x): return 3 * x\n"
        "class Holder: pass\n"
        "open(sys.argv[1], 'wb').write(pickle.dumps([triple, Holder(), lambda x: x + 1, b'x' * 300_000]))\n"
    )
    file = tmp_path / "pickle"
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
    triple, holder, plus, _ = redist_pickle.loads(file.read_bytes())
    assert triple(2) == 6
    assert plus(1) == 2
    assert type(holder).__name__ == "Holder"


def test_pickle_with_buffers() -> None:
    value = {"a": np.arange(100_000), "b": bytearray(100_000)}
    buffers: list[pickle.PickleBuffer] = []
    data = redist_pickle.dumps(value, buffer_callback=buffers.append)
    assert len(data) < 110_000
    assert buffers
    back = redist_pickle.loads(data, buffers=buffers)
    assert (back["a"] == value["a"]).all()
    assert np.shares_memory(back["a"], value["a"])
    assert redist_pickle.loads(redist_pickle.dumps(value, protocol=4))["b"] == value["b"]


@pytest.mark.parametrize(
    ("nested", "known"),
    [
        (("x", "y"), {"x": 1}),
        ({"a": "x", "b": "y"}, {"x": 1}),
        ({"a": ["x", {"b": ("x",)}], "b": "y"}, {"x": 1}),
        ([{"x"}, frozenset({"y"}), None, 3], {"x": 1, 3: "three"}),
        (("x", 1), {("x", 1): "tuple"}),
    ],
)
def test_pack_data_as_dask_does(nested: Any, known: dict[Any, Any]) -> None:
    assert pack_data(nested, known) == theirs.pack_data(nested, known)


def test_pack_data_of_some_kinds_of_keys() -> None:
    assert pack_data([1, "x"], {1: "one", "x": 2}, key_types=str) == [1, 2]


def test_unpack_remotedata_as_dask_does() -> None:
    from dask._task_spec import TaskRef

    for nested in (1, (), TaskRef("k"), [1, TaskRef("k")], {1: [TaskRef("k")]}, {2: (TaskRef(("x", 1)),)}):
        assert unpack_remotedata(nested) == theirs.unpack_remotedata(nested)
    assert unpack_remotedata(TaskRef(("x", 1)), byte_keys=True)[0] == "('x', 1)"
