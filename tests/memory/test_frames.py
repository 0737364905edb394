from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redist.errors import RedistError, SegmentCorrupt, SegmentGone, SegmentsFull, TransferError
from redist.memory.adopting import AdoptingReceiver
from redist.memory.frames import FrameParser, error_fields, error_of, pack_frame, pack_padded
from redist.memory.headers import Header
from redist.memory.receive import BLOCK, MOST_SHARED, FrameReceiver, PayloadReceiver, PrivateSink, Received

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)
frames = st.lists(st.lists(plain, min_size=1, max_size=4), max_size=5)


def test_simple() -> None:
    parser = FrameParser()
    parser.feed(pack_frame([1, "a", b"b", None]))
    assert parser.next() == [1, "a", b"b", None]
    assert parser.next() is None
    parser.close()


@given(frames, st.integers(1, 50))
def test_any_cut(items: list[list[object]], step: int) -> None:
    stream = b"".join(map(pack_frame, items))
    parser = FrameParser()
    got = []
    for start in range(0, len(stream), step):
        parser.feed(stream[start : start + step])
        while (frame := parser.next()) is not None:
            got.append(frame)
    parser.close()
    assert got == items


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_garbage_is_a_typed_error(garbage: bytes, more: bytes) -> None:
    parser = FrameParser(limit=1000)
    try:
        for data in (garbage, more):
            parser.feed(data)
            while (items := parser.next()) is not None:
                assert isinstance(items, list)
        parser.close()
    except (TransferError, SegmentCorrupt):
        pass


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x01\xc0",
        b"\0\0\0\x01\x90",
        b"\0\0\0\x02\x91\xc1",
        b"\0\0\0\x05\x91\xd6\x01ab",
        b"\0\0\0\x03\x91\x01\x02",
        b"\0\0\0\x08" + b"\x91" * 8,
        b"\0\0\x20\0" + b"\x91" * 8192,
        b"\0\0\0\x05\x91" + b"\xdd\xff\xff\xff",
        b"\0\0\0\x03\x91\xa1\xff",
        pack_frame([1])[:-1] + msgpack.packb(msgpack.ExtType(5, b"x")),
    ],
)
def test_foreign_streams(stream: bytes) -> None:
    parser = FrameParser()
    with pytest.raises((TransferError, SegmentCorrupt)):
        parser.feed(stream)
        while parser.next() is not None:
            pass
        parser.close()
        raise AssertionError("accepted")


def test_too_large_and_cut_off() -> None:
    with pytest.raises(TransferError, match="announces 1001 bytes"):
        FrameParser(limit=1000).feed(b"") or _feed(FrameParser(limit=1000), b"\0\0\x03\xe9")
    parser = FrameParser()
    parser.feed(pack_frame(["x" * 100])[:50])
    assert parser.next() is None
    with pytest.raises(TransferError, match="inside a frame"):
        parser.close()


def _feed(parser: FrameParser, data: bytes) -> None:
    parser.feed(data)
    parser.next()


@pytest.mark.parametrize("error", [SegmentsFull("full"), SegmentGone("gone"), TransferError("lost")])
def test_errors_travel(error: RedistError) -> None:
    back = error_of(error_fields(error))
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_unknown_errors_become_typed_ones() -> None:
    assert type(error_of(["SystemExit", "bye"])) is TransferError
    assert type(error_of("no list")) is SegmentCorrupt
    assert type(error_of([1, 2])) is SegmentCorrupt
    assert error_of(None) is None


# --- the receiver of payloads -----------------------------------------------------------------------------------------


def _feed_receiver(receiver: FrameReceiver, stream: bytes, step: int) -> None:
    while stream:
        assert not receiver.done
        buffer = receiver.get_buffer()
        count = min(len(buffer), len(stream), step)
        assert count
        buffer[:count] = stream[:count]
        del buffer
        receiver.buffer_updated(count)
        stream = stream[count:]


class SmallSink(PrivateSink):
    """Refuses payloads of more than 5,000 bytes."""

    def start(self, header: Header):
        if header.nbytes > 5000:
            raise SegmentsFull("too large")
        return super().start(header)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 100, 5000, 6000, 70_000, -1]), max_size=6),
    st.sampled_from([1, 7, 1000, 1 << 20]),
    st.sampled_from([8, 64, 4096, 1 << 18]),
)
def test_answers_in_any_pieces(sizes: list[int], step: int, scratch: int) -> None:
    stream = b""
    for index, size in enumerate(sizes):
        if size < 0:
            stream += pack_frame([error_fields(SegmentGone("gone"))])
        else:
            stream += (
                pack_frame([None, *Header(f"k{index}", index, size, "t", ("c",)).fields])
                + bytes([index]) * size
            )
    wanted = [(f"k{index}", index) for index in range(len(sizes))]
    receiver = PayloadReceiver(wanted, SmallSink(), bytearray(scratch))
    _feed_receiver(receiver, stream, step if len(stream) < 100_000 else max(step, 1000))
    assert receiver.done
    for index, (size, outcome) in enumerate(zip(sizes, receiver.outcomes, strict=True)):
        if size < 0:
            assert isinstance(outcome, SegmentGone)
        elif size > 5000:
            assert isinstance(outcome, SegmentsFull)
        else:
            assert isinstance(outcome, Received)
            assert outcome.view == bytes([index]) * size
            assert outcome.view.readonly


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 100, 5000, 70_000, 200_000, 300_000, -1]), max_size=24),
    st.sampled_from([7, 1000, 1 << 18, 1 << 22]),
    st.sampled_from([1, 5000, 100_000]),
    st.booleans(),
    st.booleans(),
)
def test_payloads_that_stay_where_they_come(
    sizes: list[int], step: int, contained: int, padded: bool, at_once: bool
) -> None:
    stream = b""
    inside = tuple(f"c{number}" for number in range(contained))
    for index, size in enumerate(sizes):
        if size < 0:
            stream += pack_frame([error_fields(SegmentGone("gone"))])
            continue
        items = [None, *Header(f"k{index}", index, size, "t", inside if index == 3 else ("c",)).fields]
        stream += pack_padded(items, len(stream), 64) if padded else pack_frame(items)
        assert not padded or len(stream) % 64 == 0
        stream += bytes([index]) * size
    arrived: list[str] = []
    sink = PrivateSink(lambda received: arrived.append(received.header.name))
    sink.shared = BLOCK if at_once else 0
    wanted = [(f"k{index}", index) for index in range(len(sizes))]
    receiver = AdoptingReceiver(wanted, sink, bytearray(4096))
    _feed_receiver(receiver, stream, step if len(stream) < 100_000 else max(step, 10_000))
    assert receiver.done
    assert arrived == [f"k{index}" for index, size in enumerate(sizes) if size >= 0]
    for index, (size, outcome) in enumerate(zip(sizes, receiver.outcomes, strict=True)):
        if size < 0:
            assert isinstance(outcome, SegmentGone)
            continue
        assert isinstance(outcome, Received)
        assert outcome.view is not None
        assert outcome.view == bytes([index]) * size
        assert outcome.view.readonly == (size <= MOST_SHARED)
        if at_once and 0 < size < 300_000:
            assert np.frombuffer(outcome.view, np.uint8).ctypes.data % 64 == 0


@given(st.binary(max_size=400), st.integers(1, 100), st.booleans())
def test_garbage_for_the_receiver(garbage: bytes, step: int, adopting: bool) -> None:
    receiver = PayloadReceiver([("k", 1), ("l", 2)], PrivateSink(), bytearray(64))
    if adopting:
        sink = PrivateSink()
        sink.shared = BLOCK
        receiver = AdoptingReceiver([("k", 1), ("l", 2)], sink, bytearray(64))
    try:
        while garbage and not receiver.done:
            buffer = receiver.get_buffer()
            count = min(len(buffer), len(garbage), step)
            buffer[:count] = garbage[:count]
            del buffer
            receiver.buffer_updated(count)
            garbage = garbage[count:]
    except (TransferError, SegmentCorrupt):
        pass
    receiver.abort()


def test_lying_answers() -> None:
    for fields in (
        ["other", 1, 3, "t", []],
        ["k", 2, 3, "t", []],
        ["k", 1, -3, "t", []],
        ["k", 1, 3, "t"],
        ["k", 1, "3", "t", []],
        ["k", True, 3, "t", []],
        ["k", 1, 3, "t", [1]],
    ):
        receiver = PayloadReceiver([("k", 1)], PrivateSink(), bytearray(256))
        with pytest.raises(SegmentCorrupt):
            _feed_receiver(receiver, pack_frame([None, *fields]), 1000)
    receiver = PayloadReceiver([("k", 1)], PrivateSink(), bytearray(256))
    _feed_receiver(receiver, pack_frame([None, "k", 1, 1 << 52, "t", []]), 1000)
    assert receiver.get_buffer()
    receiver = PayloadReceiver([("k", 1)], PrivateSink(), bytearray(256))
    with pytest.raises(TransferError, match="follow an answer"):
        _feed_receiver(receiver, pack_frame([None, "k", 1, 1, "t", []]) + b"xy", 1000)
