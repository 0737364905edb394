"""What the tests of the protocol share: a round trip that checks everything a payload promises, and a class of Futures."""

import io
import mmap
import os
import struct

import pyarrow as pa

from redist.protocol import Payload, collect, dumps, loads, loads_inline, register_future_type


class FakeFuture:
    """As much of a Future as the protocol needs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self):
        bare = collect(self)
        return bare if bare is not None else (FakeFuture, (self.name + "/handed-off",))

    def __eq__(self, other):
        return type(other) is FakeFuture and other.name == self.name

    def __hash__(self):
        return hash(self.name)

    def __repr__(self):
        return f"FakeFuture({self.name!r})"


register_future_type(FakeFuture, lambda future: (FakeFuture, (future.name,)))


def written(payload: Payload) -> bytes:
    """Return a payload's bytes, after checking that both ways to write it agree and that its size was known."""
    target = bytearray(b"\xa5" * (payload.nbytes + 8))
    payload.write_into(memoryview(target))
    data = b"".join(payload.chunks())
    assert len(data) == payload.nbytes
    assert bytes(target) == data + b"\xa5" * 8
    return data


def mapped(data: bytes, tail: bytes = b"garbage after the end") -> memoryview:
    """Return `data` as a reader has it: in a read-only mapping of a file, with garbage after its end."""
    fd = os.memfd_create("payload")
    try:
        os.write(fd, data + tail)
        return memoryview(mmap.mmap(fd, len(data) + len(tail), access=mmap.ACCESS_READ))
    finally:
        os.close(fd)


def messages(data: bytes):
    """Yield (position of the body, metadata, body length) of a stream's messages, by pyarrow's own reader."""
    source = pa.BufferReader(data)
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return
        length = 0 if message.body is None else len(message.body)
        yield source.tell() - length, message.metadata, length


def check_stream(data: bytes) -> pa.Table:
    """Check that plain pyarrow reads a payload, and that its buffers begin at multiples of 64."""
    for position, _, length in messages(data):
        assert position % 64 == 0
        assert length % 64 == 0
    buffer = pa.py_buffer(data)
    with pa.ipc.open_stream(buffer) as reader:
        table = reader.read_all()
    table.validate(full=True)
    for column in table.columns:
        for chunk in column.chunks:
            for part in chunk.buffers():
                if (
                    part is not None
                    and part.size
                    and buffer.address <= part.address < buffer.address + buffer.size
                ):
                    assert (part.address - buffer.address) % 64 == 0
    assert data.endswith(struct.pack("<Ii", 0xFFFFFFFF, 0))
    return table


def round_trip(obj, *, inline_limit=4096, **options):
    """Return `obj` after a round trip."""
    payload = dumps(obj, inline_limit=inline_limit)
    data = written(payload)
    if payload.inline is not None:
        assert payload.inline == data
        assert len(data) <= inline_limit
        return loads_inline(data)
    check_stream(data)
    return loads(mapped(data), **options)


def address_range(view: memoryview) -> range:
    """Return the addresses that a memoryview covers."""
    buffer = pa.py_buffer(view)
    return range(buffer.address, buffer.address + buffer.size)


def plain_pickle(obj) -> bytes:
    """Pickle as users do."""
    import pickle

    file = io.BytesIO()
    pickle.Pickler(file, 5).dump(obj)
    return file.getvalue()
