"""Fuzzes what reads foreign bytes, with atheris, by hand::

    pip install atheris
    PYTHONPATH=.:tests python tests/fuzz/fuzz.py payload -max_total_time=120 -rss_limit_mb=4096

Targets are ``payload`` (`redist.protocol.loads`), ``frames`` (one parser fed in pieces), ``answer`` (what a data server
answers), ``adopted`` (the same, of many payloads), ``footer`` (of a payload file) and ``record`` (of an arena). What follows
goes to libFuzzer. A target fails when anything but an error of redist's own is raised, or by a crash. A secret is in force,
so that no pickle is ever loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["redist"]):
    import numpy as np
    import pyarrow as pa

    from redist.errors import RedistError, SegmentsFull
    from redist.memory.adopting import AdoptingReceiver
    from redist.memory.arena import check_record, header_at, record_head, scan
    from redist.memory.frames import FrameParser, pack_frame, pack_padded
    from redist.memory.headers import TRAILER_BYTES, Header, file_name, header_in, parse_fields
    from redist.memory.index import digest_of
    from redist.memory.receive import BLOCK, PayloadReceiver, PrivateSink
    from redist.protocol import dumps, loads, use_secret

LARGEST = 1 << 16
DIGEST = digest_of("a")


def payload(data: bytes) -> None:
    value = loads(memoryview(data))
    if isinstance(value, pa.Table):
        value.to_pylist()  # checked in full, as a secret is in force
    elif isinstance(value, np.ndarray) and value.size < LARGEST:
        value.tobytes()


def frames(data: bytes) -> None:
    parser = FrameParser(LARGEST)
    step = 1 + data[0] if data else 1
    for at in range(1, len(data), step):
        parser.feed(data[at : at + step])
        while parser.next() is not None:
            pass
    parser.close()


class Sink(PrivateSink):
    """Refuses what would need much memory, as a full worker does."""

    def start(self, header: Header):
        if header.nbytes > 1 << 24:
            raise SegmentsFull("too much")
        return super().start(header)


def answer(data: bytes) -> None:
    receive(PayloadReceiver([("a", 1), ("b", 2)], Sink(), bytearray(64)), data)


def adopted(data: bytes) -> None:
    sink = Sink()
    sink.shared = BLOCK
    receive(AdoptingReceiver([("a", 1), ("b", 2)], sink, bytearray(64)), data)


def receive(receiver: PayloadReceiver, data: bytes) -> None:
    at = 0
    try:
        while at < len(data) and not receiver.done:
            buffer = receiver.get_buffer()
            assert len(buffer)
            count = min(len(buffer), len(data) - at)
            buffer[:count] = data[at : at + count]
            at += count
            receiver.buffer_updated(count)
    finally:
        receiver.abort()
    assert len(receiver.outcomes) <= 2


def footer(data: bytes) -> None:
    try:
        header_in(data, len(data), "/segments/" + file_name("a", 1))
    except RedistError:  # as nearly always: a checksum is wrong
        parse_fields(data, "here")


def record(data: bytes) -> None:
    for offset, length in scan(data, 7):
        found = data[offset : offset + length]
        header_at(data, offset, length, 7, "/segments/arena")
        nbytes = check_record(found, 7, DIGEST, 1)
        assert 0 <= nbytes <= len(found)
    if len(data) > 64:
        check_record(data[64:], 7, DIGEST, 1)


def seeds() -> dict[str, list[bytes]]:
    """Return valid inputs of each target."""
    values = [
        np.arange(20.0).reshape(4, 5),
        np.zeros(3, "i4,f8"),
        np.broadcast_to(np.arange(3), (4, 3)),
        {"a": np.arange(10_000)},
        pa.table({"a": [1, None, 3], "s": ["x", "yy", None], "l": [[1], [], None]}),
        pa.table({"d": pa.array(["u", "v"]).dictionary_encode(), "b": [True, None]}),
        pa.table({"v": pa.array(["short", "long enough to be out of line"], pa.string_view())}),
        pa.array([{"x": 1}, None]),
    ]
    header = Header("a", 1, 5, "bytes", ("c",))
    whole = pack_frame([None, *header.fields]) + b"12345"
    return {
        "payload": [b"".join(dumps(value, inline_limit=0).chunks()) for value in values],
        "frames": [b"\3" + pack_frame([1, "x", b"y", [None, {"a": 2.5}]]) * 2],
        "answer": [whole + pack_frame([["SegmentGone", "b"]])],
        "adopted": [
            pack_padded([None, *header.fields], 0, 64) + b"12345" + pack_frame([["SegmentGone", "b"]])
        ],
        "footer": [b"12345" + header.footer(), header.footer()[:-TRAILER_BYTES]],
        "record": [
            bytes(64)
            + record_head(7, DIGEST, 1, header.nbytes, header.file_size - header.nbytes)
            + b"12345"
            + header.footer()
        ],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (payload, frames, answer, adopted, footer, record)
}


def main() -> None:
    """Run the target that the command line names."""
    import tempfile
    from pathlib import Path

    name, *options = sys.argv[1:]
    target = TARGETS[name]
    use_secret("sesame")

    def one(data: bytes) -> None:
        try:
            target(data)
        except RedistError:
            pass

    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, seed in enumerate(seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
