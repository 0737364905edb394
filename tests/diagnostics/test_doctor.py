"""The doctor, on namespaces that are well, broken, busy, forbidden or left."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memory.memory_helpers import store as write_payload
from redist.diagnostics.doctor import Report, examine
from redist.errors import ServerRefused
from redist.memory.arena import arena_path, number_in
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header, spilled_path
from redist.memory.moving import Mover
from redist.session.ledger import checksum
from redist.session.operations import Run
from redist.store import calls as C
from redist.store import replies as R
from redist.store.acl import acl_line
from redist.store.connect import Endpoint, endpoint
from redist.usage import Usage, usage
from servers import Server, WireStore
from store.kit import Caller, World

PATIENCE = 0.2


@pytest.fixture
def point(valkey: Server, namespace: str) -> Endpoint:
    return valkey.endpoint(namespace)


@pytest.fixture
def world(valkey: Server, point: Endpoint) -> Iterator[World]:
    """A namespace that the tests may leave broken."""
    store = WireStore(point, "valkey")
    yield World(store, checking=False, repeating=False)
    store.close()
    valkey.forget(point.namespace)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[SegmentDirectory]:
    found = SegmentDirectory.create(str(tmp_path / "segments"))
    yield found
    found.close()


def worker_of(world: World, directory: SegmentDirectory) -> Caller:
    return world.worker("w", segments=directory.path, hostid=directory.hostid)


def rules(report: Report) -> list[str]:
    return sorted({violation.rule for violation in report.violations})


def test_nobody_was_ever_there(point: Endpoint) -> None:
    report = examine(point)
    assert report.healthy
    assert report.looks == 1
    assert (report.keys, report.nbytes, report.clients) == (0, 0, 0)


def test_a_namespace_at_work_is_healthy(world: World, point: Endpoint) -> None:
    c, w = world.client("ada"), world.worker()
    x = world.executor(w)
    c.ok(C.submit([C.Task("a", "f", b"s"), C.Task("b", "f", b"s", ("a",))], [("f", b"F")]))
    x.listen_up()
    x.turn([C.Result("a", x.tasks[0].attempt, "memory", 5, "int", b"value")])
    report = examine(point, patience=PATIENCE)
    assert report.healthy
    assert report
    assert (report.keys, report.nbytes) == (2, 5)
    text = str(report)
    assert "2 keys, 5 bytes; 1 client, 1 worker, 1 executor" in text
    assert "healthy" in text
    assert point.namespace in text


def test_what_is_broken_is_named(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 1, 0, 0, 3, "int", b"abc")]))
    world.command("HSET", "key:a", "refs:77", "1")
    report = examine(point, patience=PATIENCE)
    assert not report.healthy
    assert rules(report) == ["references"]
    assert "'a' refs:77=1" in str(report)
    assert report.looks > 1


def test_what_mends_itself_is_not_reported(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 1, 0, 0, 3, "int", b"abc")]))
    world.command("SADD", "holds:77", "a")
    other = point.open()

    def mend() -> None:
        time.sleep(0.1)
        other.call("SREM", f"{point.prefix}holds:77", "a")
        other.close()

    thread = threading.Thread(target=mend)
    thread.start()
    report = examine(point, patience=1.0)
    thread.join()
    assert report.healthy
    assert report.looks > 1


def test_what_never_stands_still_is_only_noted(world: World, point: Endpoint) -> None:
    """Somebody writes all the time: each look sees another half-done thing."""
    world.client("ada")
    stop = threading.Event()
    other = point.open()

    def write() -> None:
        i = 0
        while not stop.is_set():
            other.call("SADD", f"{point.prefix}holds:77", f"key-{i}")
            other.call("SREM", f"{point.prefix}holds:77", f"key-{i - 1}")
            i += 1
            time.sleep(0.002)
        other.close()

    thread = threading.Thread(target=write)
    thread.start()
    report = examine(point, patience=0.3)
    stop.set()
    thread.join()
    assert all(v.rule == "orphan" for v in report.violations)  # `holds:77` without a caller is certain
    assert any("others write" in note for note in report.notes)


def test_counts_are_compared_with_what_the_client_said(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 2, 0, 0, 3, "int", b"abc"), C.Value("b", 1, 0, 0, 3, "int", b"abc")]))
    c.do(C.client_heartbeat(2, 3, checksum([("a", 2), ("b", 1)]), c.n))
    assert examine(point, patience=PATIENCE).healthy
    c.do(C.client_heartbeat(2, 3, checksum([("a", 1), ("b", 2)]), c.n))
    assert rules(examine(point, patience=PATIENCE)) == ["checksum"]
    c.ok(C.ledger([("a", 3)]))  # the lane has gone on: nothing can be said
    assert examine(point, patience=PATIENCE).healthy


def test_files_and_keys_belong_together(world: World, point: Endpoint, directory: SegmentDirectory) -> None:
    c, w = world.client("ada"), worker_of(world, directory)
    write_payload(directory, "a", 1, b"x" * 100)
    c.ok(C.commit([C.Value("a", 1, 1, w.ordinal, 100, "bytes")]))
    assert examine(point, patience=PATIENCE).healthy

    path = write_payload(directory, "stray", 9, b"y" * 50)
    report = examine(point, patience=PATIENCE)
    assert rules(report) == ["files"]
    assert report.violations[0].subject == "stray"
    assert path in str(report)
    os.unlink(path)
    assert examine(point, patience=PATIENCE).healthy

    os.unlink(directory.path_of("a", 1))
    report = examine(point, patience=PATIENCE)
    assert [v.subject for v in report.violations] == ["a"]
    assert "there is no file" in str(report)


def test_small_payloads_and_keys_belong_together(
    world: World, point: Endpoint, directory: SegmentDirectory
) -> None:
    """They have no file of their own, but places in one that they share."""
    c, w = world.client("ada"), worker_of(world, directory)
    for name, attempt in (("a", 1), ("stray", 9)):
        assert directory.put_small(Header(name, attempt, 100, "bytes", ()), memoryview(b"x" * 100))
    c.ok(C.commit([C.Value("a", 1, 1, w.ordinal, 100, "bytes")]))
    report = examine(point, patience=PATIENCE)
    assert [(v.rule, v.subject) for v in report.violations] == [("files", "stray")]
    assert f"has a place in an arena of {directory.path}" in str(report)
    assert directory.drop("stray", 9)
    assert examine(point, patience=PATIENCE).healthy

    assert directory.drop("a", 1)
    report = examine(point, patience=PATIENCE)
    assert [(v.rule, v.subject) for v in report.violations] == [("files", "a")]
    assert "there is no file" in str(report)


@pytest.mark.parametrize("small", [False, True])
def test_a_dead_worker_cannot_drop_what_nobody_needs(
    world: World, point: Endpoint, tmp_path: Path, small: bool
) -> None:
    """It is broken only where the worker lives, which drops what it is told to."""
    directory = SegmentDirectory.create(str(tmp_path / "segments"))
    world.client("ada")
    worker_of(world, directory)
    for name in ("lone", "other"):
        if small:
            assert directory.put_small(Header(name, 9, 100, "bytes", ()), memoryview(b"x" * 100))
        else:
            write_payload(directory, name, 9, b"y" * 50)
    assert rules(examine(point, patience=PATIENCE)) == ["files"]

    directory.close(remove=False)
    report = examine(point, patience=PATIENCE)
    assert report.healthy, str(report)
    (note,) = (note for note in report.notes if "and 1 more" in note)
    assert "worker w (caller:2) is dead" in note
    assert directory.path in note


def test_a_worker_that_does_not_answer_cannot_drop_what_nobody_needs(
    world: World, point: Endpoint, directory: SegmentDirectory
) -> None:
    w = worker_of(world, directory)
    write_payload(directory, "lone", 9, b"y" * 50)
    world.command("ZADD", "leases", 1000, str(w.ordinal))
    report = examine(point, patience=PATIENCE)
    assert report.healthy, str(report)
    assert any("w (caller:1) is past its lease" in note and "'lone'" in note for note in report.notes)
    world.command("ZADD", "leases", int(time.time() * 1000) + 60_000, str(w.ordinal))
    assert rules(examine(point, patience=PATIENCE)) == ["files"]


def test_a_damaged_arena(world: World, point: Endpoint, directory: SegmentDirectory) -> None:
    worker_of(world, directory)
    assert directory.put_small(Header("a", 1, 100, "bytes", ()), memoryview(b"x" * 100))
    (number,) = (number for entry in os.listdir(directory.path) if (number := number_in(entry)) is not None)
    os.truncate(arena_path(directory.path, number), 0)
    assert "has a damaged arena" in str(examine(point, patience=PATIENCE))


@pytest.mark.parametrize("spilled", [False, True])
def test_a_file_that_was_cut_off(
    world: World, point: Endpoint, directory: SegmentDirectory, tmp_path: Path, spilled: bool
) -> None:
    c, w = world.client("ada"), worker_of(world, directory)
    path = write_payload(directory, "a", 1, b"x" * 100_000)
    c.ok(C.commit([C.Value("a", 1, 1, w.ordinal, 100_000, "bytes")]))
    if spilled:
        directory.spill.configure(str(tmp_path), 0)
        assert Mover(directory).move_out("a", 1)
        path = spilled_path(path)
    assert examine(point, patience=PATIENCE).healthy
    os.truncate(path, 4096)
    (violation,) = examine(point, patience=PATIENCE).violations
    assert (violation.rule, violation.subject) == ("files", "a")
    assert (
        f"has the file {path}, which is damaged: 4,096 bytes on disk for a payload of 100,000"
        in violation.message
    )


def test_a_payload_of_another_size(world: World, point: Endpoint, directory: SegmentDirectory) -> None:
    c, w = world.client("ada"), worker_of(world, directory)
    path = write_payload(directory, "large", 1, b"x" * 100_000)
    assert directory.put_small(Header("small", 2, 100, "bytes", ()), memoryview(b"x" * 100))
    c.ok(C.commit([C.Value("large", 1, 1, w.ordinal, 100_001, "bytes")]))
    c.ok(C.commit([C.Value("small", 1, 2, w.ordinal, 101, "bytes")]))
    one, two = examine(point, patience=PATIENCE).violations
    assert {one.subject, two.subject} == {"large", "small"}
    assert f"has a payload of 100,000 bytes in {path}, and 100,001 are recorded" in f"{one} {two}"


def test_a_file_that_is_no_payload(world: World, point: Endpoint, directory: SegmentDirectory) -> None:
    worker_of(world, directory)
    Path(directory.path, "0" * 32 + ".1").write_bytes(b"rubbish")
    assert "is no payload" in str(examine(point, patience=PATIENCE))


def test_workers_of_other_hosts_are_left_alone(
    world: World, point: Endpoint, directory: SegmentDirectory
) -> None:
    world.worker("far", segments=directory.path, hostid="0" * 32)
    write_payload(directory, "stray", 9, b"y")
    assert examine(point, patience=PATIENCE).healthy


def test_directories_that_dead_workers_left(
    world: World, point: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redist.memory.locks.default_parent", lambda: str(tmp_path))
    world.client("ada")
    for owner in (f"{point.url} {point.namespace}\tw", "redis://elsewhere default\tw"):
        directory = SegmentDirectory.create(str(tmp_path), owner=owner)
        (Path(directory.path) / "some").write_bytes(bytes(3 << 20))
        directory.close(remove=False)
    report = examine(point, patience=PATIENCE)
    assert report.healthy
    assert len(report.notes) == 1
    assert re.search(r" \(3\.\d\d MiB\) belonged to a worker that is gone", report.notes[0])


def test_keys_of_another_schema_and_type(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    world.command("RPUSH", "toys", "a")
    world.command("SET", f"inbox:{c.ordinal}", "no list")
    report = examine(point, patience=PATIENCE)
    assert rules(report) == ["schema"]
    assert {v.subject for v in report.violations} == {"toys", f"inbox:{c.ordinal}"}


def test_all_have_left(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 1, 0, 0, 3, "int", b"abc")]))
    c.do(C.close())
    world.drain()
    assert examine(point, patience=PATIENCE).healthy
    world.command("SET", "data:a", "left")
    assert not examine(point, patience=PATIENCE).healthy


def test_a_fired_task_outlives_its_client(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.submit([C.Task("a", "f", b"s", flags=1)], [("f", b"F")]))
    c.do(C.close())
    world.drain()
    report = examine(point, patience=PATIENCE)
    assert report.healthy
    assert any("1 task in queues, and no executor" in note for note in report.notes)


def test_a_lease_that_is_over_is_noted(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    world.command("ZADD", "leases", 1000, str(c.ordinal))
    report = examine(point, patience=PATIENCE)
    assert report.healthy
    assert any("client ada" in note and "past its lease" in note for note in report.notes)


@pytest.mark.parametrize("bundled", [False, True])
def test_a_dataset_whose_data_is_lost_is_noted(world: World, point: Endpoint, bundled: bool) -> None:
    c, w = world.client("ada"), world.worker("w1")
    placed = R.parse_place(c.ok(C.place(3, 1000)))
    lost, nested, kept = placed
    c.ok(C.commit([C.Value("lost", 1, *lost, 1000, "array"), C.Value("kept", 1, *kept, 500, "array")]))
    c.ok(C.commit([C.Value("nested", 1, *nested, 70, "list", contains=["lost"])]))
    inside = ["nested", "kept"]
    if bundled:
        c.ok(C.commit([C.Value("@@bundle@1", 1, 0, 0, 0, "bundle", b"v", contains=inside)]))
        inside = ["@@bundle@1"]
    c.ok(C.publish("market", b"x" * 30, inside))
    c.ok(C.publish("well", b"y" * 4, ["kept"]))
    report = examine(point, patience=PATIENCE)
    assert (report.notes, report.nbytes) == ((), 1604)
    w.ok(C.remove_replicas([("lost", lost[0])]))
    world.drain()
    report = examine(point, patience=PATIENCE)
    assert report.healthy
    assert report.nbytes == 604
    (note,) = report.notes
    assert "dataset 'market' has lost 1 of its 3 values, 'lost'" in note
    assert "worker w1" in note


def test_usage_counts_no_bytes_that_are_lost() -> None:
    peer = SimpleNamespace(ordinal=3, name="w1")
    client: Any = SimpleNamespace(_peers=SimpleNamespace(fields=None, workers=None))
    operation = usage(client)
    assert isinstance(next(operation), Run)
    operation.send({"keys": "2"})
    operation.send([peer])
    there = [b"there", b"memory", b"1", b"500", b"array", b"3.1", b""]
    small = [b"small", b"memory", b"1", b"30", b"int", b"", b"30 bytes"]
    lost = [b"lost", b"erred", b"0", b"1000", b"DataLost", b"", b""]
    operation.send(["there", "small"])
    operation.send([[b"OK", 0, *there, *small]])
    operation.send({"there": "1", "lost": "2"})
    # Between the two reads the worker went, and what it alone had is lost.
    with pytest.raises(StopIteration) as stop:
        operation.send([[b"OK", 0, *there, *lost]])
    assert stop.value.value == Usage(2, 500, 30, {"w1": 500})


def test_a_user_without_scan(valkey: Server, world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 1, 0, 0, 3, "int", b"abc")]))
    user = f"doctor-{point.namespace}"
    line = acl_line(user, point.namespace, password="secret")
    line = " ".join(word for word in line.split(" ") if word not in ("+lrange", "+zscan"))
    valkey.admin(*line.split(" "))
    fenced = endpoint(valkey.url.replace("unix://", f"unix://{user}:secret@"), point.namespace)
    try:
        with pytest.raises(ServerRefused, match=r"\+lrange"):
            examine(fenced)
        valkey.admin("ACL", "SETUSER", user, "+lrange", "+zscan")
        report = examine(fenced, patience=PATIENCE)
        assert report.healthy
        assert report.keys == 1
        assert any("may not SCAN" in note for note in report.notes)
        world.command("HSET", "key:a", "refs:77", "1")
        assert rules(examine(fenced, patience=PATIENCE)) == ["references"]
    finally:
        valkey.admin("ACL", "DELUSER", user)


def test_nothing_is_written(world: World, point: Endpoint) -> None:
    c = world.client("ada")
    c.ok(C.commit([C.Value("a", 1, 0, 0, 3, "int", b"abc")]))
    before = json.dumps(world.dump(), default=sorted, sort_keys=True)
    examine(point, patience=PATIENCE)
    assert json.dumps(world.dump(), default=sorted, sort_keys=True) == before
