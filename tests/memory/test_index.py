"""The table that says where small payloads lie."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_helpers import forked

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull
from redist.memory import index as module
from redist.memory.index import INDEX_FILE, Entry, Index, digest_of, hash_of, make_index, retire_index


@pytest.fixture
def segments(parent: str) -> str:
    path = os.path.join(parent, "segments")
    os.mkdir(path)
    make_index(path)
    return path


def entry(number: int) -> Entry:
    return Entry(*hash_of(digest_of(f"key-{number}"), number), number // 100 + 1, number)


def add(index: Index, *entries: Entry) -> None:
    assert index.lock()
    try:
        index.insert(entries)
    finally:
        index.unlock()


def take_out(index: Index, *entries: Entry) -> None:
    assert index.lock()
    try:
        for each in entries:
            assert index.remove(each.name, each.key)
        index.shrink()
    finally:
        index.unlock()


def says(index: Index, wanted: Entry) -> bool:
    found = index.find(wanted.name, wanted.key)
    return found is not None and (found.arena, found.place) == wanted[2:] and index.stands(found)


def test_simple(segments: str) -> None:
    index = Index(segments, writable=True)
    reader = Index(segments)
    assert reader.find(*entry(1)[:2]) is None
    add(index, entry(1), entry(2))
    assert says(reader, entry(1))
    found = reader.find(*entry(1)[:2])
    take_out(index, entry(1))
    assert not reader.stands(found)
    assert reader.find(*entry(1)[:2]) is None
    assert reader.entries() == [entry(2)]
    assert os.listdir(segments) == [INDEX_FILE]


def test_a_second_entry_of_a_key_takes_the_place_of_the_first(segments: str) -> None:
    index = Index(segments, writable=True)
    add(index, entry(1))
    moved = entry(1)._replace(arena=7, place=70)
    found = index.find(*entry(1)[:2])
    add(index, moved)
    assert not index.stands(found)
    assert index.entries() == [moved]
    index.lock()
    assert not index.remove(*entry(1))
    assert index.remove(*moved)
    index.unlock()
    assert index.entries() == []


def test_readers_follow_a_table_that_grows_and_shrinks(segments: str) -> None:
    index, reader = Index(segments, writable=True), Index(segments)
    add(index, entry(0))
    found = reader.find(*entry(0)[:2])
    entries = [entry(number) for number in range(1, 2000)]
    add(index, *entries)
    assert index.slots >= 4096
    assert not reader.stands(found)
    assert says(reader, entry(0))
    assert all(says(reader, each) for each in entries)
    take_out(index, entry(0), *entries[10:])
    assert index.slots == 512
    assert [says(reader, each) for each in entries] == [True] * 10 + [False] * 1989
    assert sorted(reader.entries()) == sorted(index.entries())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=300))
def test_it_is_a_dict(steps: list[tuple[bool, int]]) -> None:
    smallest, module._SMALLEST = module._SMALLEST, 8
    segments = tempfile.mkdtemp()
    try:
        make_index(segments)
        index, reader = Index(segments, writable=True), Index(segments)
        there: dict[int, Entry] = {}
        for add_it, number in steps:
            index.lock()
            if add_it:
                there[number] = entry(number)._replace(place=len(there) + 1)
                index.insert([there[number]])
            else:
                assert index.remove(*entry(number)[:2]) == (there.pop(number, None) is not None)
                index.shrink()
            index.unlock()
            assert 5 * len(there) <= 3 * index.slots + 5
        assert sorted(index.entries()) == sorted(there.values())
        for number in range(61):
            found = reader.find(*entry(number)[:2])
            assert (found is not None) == (number in there)
    finally:
        module._SMALLEST = smallest
        shutil.rmtree(segments)


def test_many_processes(segments: str) -> None:
    def work(seed: int) -> None:
        index = Index(segments, writable=True)
        chance = random.Random(seed)
        mine = [entry(number) for number in range(seed * 1000, seed * 1000 + 700)]
        for at in range(0, 700, 7):
            add(index, *mine[at : at + 7])
            gone = chance.choice(mine[at : at + 7])
            take_out(index, gone)
            assert not index.says(*gone)
            assert all(index.says(*each) for each in mine[at : at + 7] if each != gone)

    children = [forked(lambda seed=seed: work(seed)) for seed in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    entries = Index(segments).entries()
    assert len(entries) == len(set(entries)) == 4 * 600


def test_killed_at_every_step(segments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a process was about to do, the table is as before, or as it was to be."""
    monkeypatch.setattr(module, "_SMALLEST", 8)
    make_index(segments)
    index = Index(segments, writable=True)
    before = [entry(number) for number in range(4)]
    add(index, *before)

    def work() -> None:
        mine = Index(segments, writable=True)
        add(mine, entry(4), entry(5))  # the second needs a larger table
        take_out(mine, *before[:2])

    allowed = [
        before,
        [*before, entry(4)],
        [*before, entry(4), entry(5)],
        [before[0], *before[2:], entry(4), entry(5)],
    ]
    allowed += [[*before[1:], entry(4), entry(5)], [*before[2:], entry(4), entry(5)]]
    step = died = 0
    while died == step:
        step += 1
        child = forked(work, kill_at=step, files={module.__file__})
        died += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert index.lock(5)
        index.unlock()
        now = sorted(index.entries())
        assert now in [sorted(each) for each in allowed], step
        reader = Index(segments)
        assert all(says(reader, each) for each in now)
        take_out(index, *(each for each in now if each not in before))
        add(index, *before)
        assert sorted(index.entries()) == sorted(before)
    assert step > 100
    assert now == sorted([*before[2:], entry(4), entry(5)])


def test_a_stopped_process_is_not_waited_for(segments: str) -> None:
    index = Index(segments, writable=True)
    receive, send = os.pipe()

    def work() -> None:
        mine = Index(segments, writable=True)
        mine.lock()
        os.write(send, b"x")
        os.kill(os.getpid(), signal.SIGSTOP)

    child = forked(work)
    os.read(receive, 1)
    assert not index.lock(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert index.lock()
    index.unlock()
    os.close(receive)
    os.close(send)


def test_a_forked_child_has_a_lock_of_its_own(segments: str) -> None:
    index = Index(segments, writable=True)
    index.lock()
    child = forked(lambda: sys.exit(0 if index.lock(0.05) else 3))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    index.unlock()
    child = forked(lambda: add(index, entry(1)))
    assert os.waitpid(child, 0)[1] == 0
    assert says(index, entry(1))


def test_a_directory_that_is_gone(segments: str) -> None:
    index, reader = Index(segments, writable=True), Index(segments)
    add(index, entry(1))
    retire_index(segments)
    assert says(reader, entry(1))  # until it is gone
    retire_index(segments)
    shutil.rmtree(segments)
    for call in (lambda: reader.find(*entry(1)[:2]), lambda: Index(segments), index.lock):
        with pytest.raises(SegmentGone, match=segments):
            call()
    retire_index(segments)


def test_damage(segments: str) -> None:
    path = os.path.join(segments, INDEX_FILE)
    whole = Path(path).read_bytes()
    for damaged in (
        b"",
        whole[:100],
        whole[:-8],
        b"x" * len(whole),
        whole[:16] + b"\7" + whole[17:],
        whole + bytes(32),
    ):
        os.unlink(path)
        Path(path).write_bytes(damaged)
        with pytest.raises(SegmentCorrupt, match=path):
            Index(segments)
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    with pytest.raises(SegmentError, match=path):
        Index(segments)


def test_no_memory_for_a_larger_one(segments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(segments, writable=True)
    entries = [entry(number) for number in range(400)]

    def full(path: str, slots: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_allocate", full)
    with pytest.raises(SegmentsFull, match="full"):
        add(index, *entries)
    monkeypatch.undo()
    assert os.listdir(segments) == [INDEX_FILE]
    add(index, *entries)
    assert sorted(index.entries()) == sorted(entries)


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A lock that is never let go is an error, and no hanging test."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
