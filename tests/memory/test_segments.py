from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_helpers import store

from redist.errors import DeserializationError, SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull
from redist.loading import load_payload
from redist.memory import reader
from redist.memory.descriptors import Descriptor, open_owned
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header, file_name, path_of, read_header
from redist.memory.mappings import mappings
from redist.memory.reader import open_segment, raise_file_limit
from redist.memory.writer import SegmentWriter


def test_simple(directory: SegmentDirectory) -> None:
    path = store(directory, "x", 7, b"hello", contains=("y", "z"))
    assert path == path_of(directory.path, "x", 7)
    mapping = open_segment(path)
    assert bytes(mapping.view) == b"hello"
    assert mapping.nbytes == 5
    assert mapping.header() == read_header(path) == Header("x", 7, 5, "bytes", ("y", "z"))
    assert mapping.view.readonly
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(directory.path).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3_000_000])
@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_sizes(directory: SegmentDirectory, size: int, pieces: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    header = Header("k", 1, size)
    step = max(1, size // pieces)
    with SegmentWriter(directory.grants.new_path(), header) as writer:
        writer.write(data[start : start + step] for start in range(0, size, step))
        writer.publish(directory.path_of("k", 1))
    assert bytes(open_segment(directory.path_of("k", 1)).view) == data


def test_chunks_of_any_type(directory: SegmentDirectory) -> None:
    array = np.arange(12, dtype="f8").reshape(3, 4)
    with SegmentWriter(directory.grants.new_path(), Header("k", 1, 98)) as writer:
        writer.write([b"", memoryview(array), bytearray(b"ab")])
        writer.publish(directory.path_of("k", 1))
    assert bytes(open_segment(directory.path_of("k", 1)).view) == array.tobytes() + b"ab"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "\x00", "ключ", " " * 300, "x" * 3000, "."])
def test_names_never_become_paths(directory: SegmentDirectory, name: str) -> None:
    path = store(directory, name, 3, b"data")
    assert os.path.dirname(path) == directory.path
    assert os.path.basename(path) == file_name(name, 3)
    assert read_header(path).name == name


def test_half_written_is_invisible(directory: SegmentDirectory) -> None:
    path = directory.path_of("k", 1)
    grant = directory.grants.new_path()
    with SegmentWriter(grant, Header("k", 1, 10)) as writer:
        writer.write([b"12345"])
        with pytest.raises(SegmentGone):
            open_segment(path)
        with pytest.raises(SegmentError, match="announced 10 bytes"):
            writer.publish(path)
    assert not os.path.exists(grant)
    assert not os.path.exists(path)
    with SegmentWriter(grant, Header("k", 1, 3)) as writer, pytest.raises(SegmentError, match="larger"):
        writer.write([b"12345" * 100])
    assert not os.path.exists(grant)


def test_recycled_file(directory: SegmentDirectory) -> None:
    grant = directory.grants.new_path()
    with open(grant, "wb") as file:
        file.write(b"old" * 5000)
    with SegmentWriter(grant, Header("k", 2, 4)) as writer:
        writer.write([b"new!"])
        writer.publish(directory.path_of("k", 2))
    assert bytes(open_segment(directory.path_of("k", 2)).view) == b"new!"


def test_writable_is_private(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 2000)
    private = open_segment(path, writable=True)
    np.frombuffer(private.view, "u1")[:3] = 0
    assert bytes(private.view[:4]) == b"\0\0\0a"
    assert bytes(open_segment(path).view[:4]) == b"abca"


def test_mapping_outlives_the_file_and_is_counted(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 2000)
    array = np.frombuffer(open_segment(path).view, "u1")[3:]
    assert directory.drop("k", 1)
    assert not os.path.exists(path)
    assert not directory.has("k", 1)
    assert array[:3].tobytes() == b"abc"
    assert directory.total == 0
    assert directory.lingering == directory.space.used == 8192
    assert directory.reap() == 0
    del array
    assert directory.reap() == 8192
    assert directory.space.used == 0
    with pytest.raises(SegmentGone):
        open_segment(path)
    assert not directory.drop("k", 1)


def _locked(path: str) -> bool:
    """Whether some process reads the file at `path`, seen from another process."""
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, path], stderr=subprocess.DEVNULL).returncode != 0


def test_lock_lives_as_long_as_the_last_array(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 2000)
    assert not _locked(path)
    array = np.frombuffer(open_segment(path).view, "u1")
    part = array[100:200]
    del array
    assert _locked(path)
    del part
    assert not _locked(path)


def test_lock_lives_in_a_forked_child(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 2000)
    array = np.frombuffer(open_segment(path).view, "u1")
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(send)
        os.read(receive, 1)
        os._exit(0 if array[0] == ord("a") else 1)
    os.close(receive)
    del array
    assert _locked(path)
    os.close(send)
    assert os.waitpid(child, 0)[1] == 0
    assert not _locked(path)


def test_reader_of_a_file_that_is_being_dropped(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc")
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SegmentGone, match="being evicted"):
            open_segment(path)
    assert bytes(open_segment(path).view) == b"abc"


@pytest.mark.parametrize(("size", "where"), [(100, "reader"), (3_000_000, "reader"), (3_000_000, "mappings")])
def test_a_file_that_another_takes_the_place_of_while_it_is_opened(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch, size: int, where: str
) -> None:
    """As where a payload goes to disk and comes back, and its first file is written anew for another key meanwhile."""
    path = store(directory, "x", 7, b"x" * size)
    again, other = Path(path).read_bytes(), Path(store(directory, "y", 8, b"y" * size)).read_bytes()

    def replace() -> None:
        monkeypatch.undo()
        os.rename(path, f"{path}-pooled")
        Path(f"{path}-pooled").write_bytes(other)
        Path(path).write_bytes(again)

    def before_it_is_locked(name: str, flags: int) -> Descriptor:
        found = open_owned(name, flags)
        replace()
        return found

    def before_it_is_mapped(name: str, flags: int) -> Descriptor:
        replace()
        return open_owned(name, flags)

    opening = before_it_is_locked if where == "reader" else before_it_is_mapped
    monkeypatch.setattr(f"redist.memory.{where}.open_owned", opening)
    mapping = open_segment(path)
    assert bytes(mapping.view) == b"x" * size
    lock = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):  # the file that is there is the locked one
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_damaged_files(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 100)
    whole = Path(path).read_bytes()
    for damaged in (b"", b"x", whole[:-1], whole[1:], whole[:200], b"\0" * 5000, whole[:-24] + b"\xff" * 24):
        Path(path).write_bytes(damaged)
        for read in (read_header, open_segment):
            with pytest.raises(SegmentCorrupt, match=os.path.basename(path)):
                read(path)
    flipped = bytearray(whole)
    flipped[303] ^= 0xFF
    Path(path).write_bytes(flipped)
    with pytest.raises(SegmentCorrupt, match="checksum"):
        read_header(path)
    other = directory.path_of("other", 1)
    Path(other).write_bytes(whole)
    with pytest.raises(SegmentCorrupt, match="another key"):
        read_header(other)
    Path(path).write_bytes(whole)
    os.unlink(other)
    os.symlink(path, other)
    with pytest.raises(SegmentError):
        open_segment(other)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file(parent: str, caplog: pytest.LogCaptureFixture, make: Callable[[str], None]) -> None:
    """Nobody waits for a pipe, and who takes over the directory leaves it out."""
    directory = SegmentDirectory.create(parent)
    path = store(directory, "k", 1, b"abc" * 100)
    os.unlink(path)
    make(path)
    for read in (read_header, open_segment):
        with pytest.raises(SegmentError, match=path):
            read(path)
    directory.close(remove=False)
    adopted = SegmentDirectory.adopt(directory.path)
    assert adopted.files == {}
    assert adopted.space.used == 0
    assert f"removing a damaged segment: {path}" in caplog.text
    adopted.close()
    assert os.listdir(parent) == []


@given(st.binary(max_size=300))
def test_any_trailer_is_refused_or_right(tail: bytes) -> None:
    from redist.memory.headers import header_in, payload_bytes

    for call in (lambda: payload_bytes(tail[-24:], len(tail), "p"), lambda: header_in(tail, len(tail), "p")):
        with pytest.raises(SegmentCorrupt):
            call()


def test_without_rights(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc")

    def read() -> str:
        try:
            load_payload(directory.path, "k", 1)
        except (SegmentError, DeserializationError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    assert "key 'k'" in read()  # the payload is none that `loads` takes
    os.chmod(directory.path, 0)
    try:
        text = as_nobody(read) if os.getuid() == 0 else read()
    finally:
        os.chmod(directory.path, 0o700)
    assert text == f"SegmentError: key 'k': {path}: cannot be read: Permission denied"


def as_nobody(function: Callable[[], str]) -> str:
    """Call a function in a forked child that has no rights of root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            os.write(writer, function().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text


def test_where_nothing_is(directory: SegmentDirectory) -> None:
    missing = os.path.join(directory.path, "sub", "file")
    with pytest.raises(SegmentError, match="cannot be written"):
        SegmentWriter(missing, Header("k", 1, 3))
    with pytest.raises(SegmentGone):
        open_segment(missing)


def test_near_the_limit_of_open_files(directory: SegmentDirectory) -> None:
    code = textwrap.dedent("""
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 400))
        from redist.errors import SegmentError
        from redist.memory.reader import open_segment, raise_file_limit
        kept = []
        try:
            while True:
                kept.append(open_segment(sys.argv[1]))
        except SegmentError as error:
            assert "ulimit -n" in str(error), error
        open(sys.argv[1]).close()
        assert len(kept) < 60
        assert raise_file_limit() == 400
        kept += [open_segment(sys.argv[1]) for _ in range(200)]
    """)
    path = store(directory, "k", 1, b"abc")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], check=True)
    assert raise_file_limit() == reader.resource.getrlimit(reader.resource.RLIMIT_NOFILE)[1]


def test_killed_writer_leaves_nothing_visible(directory: SegmentDirectory) -> None:
    code = textwrap.dedent("""
        import sys, time
        from redist.memory.headers import Header
        from redist.memory.writer import SegmentWriter
        writer = SegmentWriter(sys.argv[1], Header("k", 1, 1 << 20))
        writer.write([b"x" * 5000])
        print("written", flush=True)
        time.sleep(60)
    """)
    grant = directory.grants.new_path()
    child = subprocess.Popen([sys.executable, "-c", code, grant], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert os.listdir(directory.path).count(os.path.basename(grant)) == 1
    assert not os.path.exists(directory.path_of("k", 1))
    directory.grants.cancel(grant, 0)
    assert not os.path.exists(grant)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a tmpfs needs root")
def test_full_tmpfs_is_an_error_and_no_signal(tmp_path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "redist-test", str(tmp_path)], check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        directory = SegmentDirectory.create(str(tmp_path / "segments"))
        with pytest.raises(SegmentsFull, match=r"2\.00 MiB can never fit into the file system .* 1\.00 MiB"):
            directory.grants.reserve(2 << 20)
        assert directory.space.used == 0
        with SegmentWriter(directory.grants.new_path(), Header("k", 1, 2 << 20)) as writer:
            with pytest.raises(SegmentsFull, match=str(tmp_path)):
                writer.write([b"x" * (2 << 20)])
        path = store(directory, "k", 2, b"x" * 700_000)
        with pytest.raises(SegmentsFull):
            store(directory, "k", 3, b"x" * 700_000)
        assert len(open_segment(path).view) == 700_000
        directory.close()
        mappings.look()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_descriptor_is_closed_once_though_a_file_that_is_read_cannot_be_replaced(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed once more, its number may be another file's by then."""
    grant = os.path.join(directory.path, "grant-1")
    Path(grant).write_bytes(bytes(100_000))
    others: list[int] = []

    def fails(path: str) -> None:
        others.append(os.open(os.devnull, os.O_RDONLY))
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with open(grant, "rb") as reader, monkeypatch.context() as patch:
        fcntl.flock(reader, fcntl.LOCK_SH)
        patch.setattr("os.unlink", fails)
        with pytest.raises(SegmentError, match="cannot be written"):
            SegmentWriter(grant, Header("k", 1, 90_000))
    for fd in others:
        os.close(fd)
    os.unlink(grant)


def test_an_interrupt_while_a_recycled_file_is_opened(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck(*_: object) -> bool:
        raise KeyboardInterrupt

    grant = os.path.join(directory.path, "grant-1")
    Path(grant).write_bytes(bytes(100_000))
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("redist.memory.writer.try_lock", struck)
        SegmentWriter(grant, Header("k", 1, 90_000))
    assert not os.path.exists(grant)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_speed(directory: SegmentDirectory) -> None:
    path = store(directory, "k", 1, b"abc" * 20_000)
    start = time.perf_counter()
    kept = [open_segment(path) for _ in range(200)]
    assert (time.perf_counter() - start) / len(kept) < 0.002


def test_plain_arrow_reads_the_file(directory: SegmentDirectory) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": list(range(1000)), "b": ["x"] * 1000})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    path = store(directory, "table", 1, sink.getvalue().to_pybytes())
    with pa.memory_map(path) as source:
        assert pa.ipc.open_stream(source).read_all().equals(table)


def test_readers_and_droppers_race(directory: SegmentDirectory) -> None:
    code = textwrap.dedent("""
        import sys, time
        from redist.errors import SegmentGone
        from redist.memory.headers import path_of
        from redist.memory.reader import open_segment
        whole = gone = 0
        end = time.monotonic() + 1.0
        attempt = 0
        while time.monotonic() < end:
            try:
                mapping = open_segment(path_of(sys.argv[1], "k", attempt % 4))
                view = bytes(mapping.view)
                assert len(set(view)) == 1 and len(view) == 9000, (len(view), set(view))
                assert mapping.header().attempt == attempt % 4
                whole += 1
            except SegmentGone:
                gone += 1
            attempt += 1
        print(whole, gone)
    """)
    readers = [
        subprocess.Popen([sys.executable, "-c", code, directory.path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    count = 0
    while any(child.poll() is None for child in readers):
        store(directory, "k", count % 4, bytes([count % 256]) * 9000)
        directory.drop("k", (count + 2) % 4)
        directory.reap()
        count += 1
    for child in readers:
        whole, gone = map(int, child.communicate()[0].split())
        assert whole
        assert gone
