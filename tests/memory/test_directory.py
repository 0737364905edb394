from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from memory_helpers import store

from redist.errors import SegmentError, SegmentGone, SegmentsFull
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header
from redist.memory.host import read_host_id, same_host
from redist.memory.locks import dead_directories, default_parent, small_shm_warning, sweep_dead
from redist.memory.reader import open_segment
from redist.memory.space import Space


def test_simple(directory: SegmentDirectory) -> None:
    store(directory, "x", 1, b"a" * 5000)
    store(directory, "y", 2, b"b" * 10)
    assert directory.files == {("x", 1): 8192, ("y", 2): 4096}
    assert directory.total == directory.space.used == 12288
    assert directory.largest(1) == [("x", 8192)]
    assert directory.drop("x", 1)
    assert directory.total == directory.space.used == 4096
    assert directory.headers() == [Header("y", 2, 10, "bytes")]
    assert directory.sweep(keep=[("x", 1)]) == [("y", 2)]
    assert directory.space.used == 0


def test_limit_names_path_need_limit_and_holders(directory: SegmentDirectory) -> None:
    store(directory, "large", 1, bytes(40 << 20))
    with pytest.raises(SegmentsFull) as caught:
        directory.grants.reserve(30 << 20)
    for part in (directory.path, "30.00 MiB needed", "24.00 MiB free", "64.00 MiB", "'large' 40."):
        assert part in str(caught.value)
    assert directory.space.free() == (64 - 40) * (1 << 20) - 4096
    assert directory.drop("large", 1)
    directory.space.release(directory.grants.reserve(30 << 20))
    with pytest.raises(
        SegmentsFull,
        match=r"70\.00 MiB can never fit into the memory limit of 64\.00 MiB; raise --memory-limit",
    ):
        directory.grants.reserve(70 << 20)


def test_a_full_worker_says_who_it_is_and_what_only_lingers(directory: SegmentDirectory) -> None:
    directory.worker = "alice"
    path = store(directory, "kept", 1, bytes(10 << 20))
    store(directory, "mapped", 2, bytes(30 << 20))
    viewed = open_segment(directory.path_of("mapped", 2))
    directory.drop("mapped", 2)
    with pytest.raises(SegmentsFull) as caught:
        directory.grants.reserve(30 << 20)
    for part in (
        "worker 'alice' is full: 30.00 MiB needed, 23.99 MiB free of a limit of 64.00 MiB; 40.01 MiB used, of which",
        "30.00 MiB lingering (dropped, and free once the arrays that view it are gone); largest: 'kept' 10.",
    ):
        assert part in str(caught.value)
    with pytest.raises(
        SegmentsFull, match=r"^worker 'alice': 65\.00 MiB can never fit into the memory limit"
    ):
        directory.grants.reserve(65 << 20)
    del viewed
    directory.space.release(directory.grants.reserve(30 << 20))
    assert os.path.exists(path)


def test_what_is_on_the_way_to_disk_is_told(directory: SegmentDirectory) -> None:
    directory.spill.leaving = 5 << 20  # as while a thread writes
    store(directory, "x", 1, bytes(10 << 20))
    with pytest.raises(SegmentsFull, match=r"of which 5\.00 MiB on the way to disk; largest"):
        directory.grants.reserve(60 << 20)


def test_published_again_is_counted_once(directory: SegmentDirectory) -> None:
    store(directory, "x", 1, b"a" * 5000)
    store(directory, "x", 1, b"a" * 9000)
    assert directory.total == directory.space.used == 12288


def test_recorded_after_it_was_dropped(directory: SegmentDirectory) -> None:
    reserved = directory.grants.reserve(100)
    assert not directory.add("x", 1, reserved)
    assert directory.space.used == 0


def test_host_id(directory: SegmentDirectory) -> None:
    assert len(directory.hostid) == 32
    assert read_host_id(directory.path) == directory.hostid
    assert same_host(directory.path, directory.hostid)
    assert not same_host(directory.path, "0" * 32)
    assert not same_host(directory.path + "x", directory.hostid)
    assert not same_host("\0", "")


def test_unfit_parents(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SegmentError, match="file"):
        SegmentDirectory.create(str(tmp_path / "file"))
    with pytest.raises(SegmentError):
        SegmentDirectory.create("/proc/nothing")
    link = tmp_path / f"redist-{os.getuid()}"
    link.symlink_to(tmp_path)
    with pytest.raises(SegmentError, match="not a directory"):
        SegmentDirectory.create(str(link))


def test_default_parent_is_private() -> None:
    path = default_parent()
    assert path.endswith(f"/redist-{os.getuid()}")
    directory = SegmentDirectory.create()
    assert os.path.dirname(directory.path) == path
    assert os.stat(path).st_mode & 0o777 == 0o700
    directory.close()
    assert not os.path.exists(directory.path)


def test_living_directories_are_left_alone(directory: SegmentDirectory, parent: str) -> None:
    with pytest.raises(SegmentError, match="its worker lives"):
        SegmentDirectory.adopt(directory.path)
    assert dead_directories(parent) == []
    assert sweep_dead(parent, older_than=0) == []
    assert os.path.exists(directory.path)


_WORKER = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[2])
    from memory_helpers import store
    from redist.memory.directory import SegmentDirectory
    directory = SegmentDirectory.create(sys.argv[1], limit=1 << 20, owner="namespace alice")
    store(directory, "kept", 4, b"kept" * 2000, contains=("inner",))
    store(directory, "damaged", 5, b"data")
    open(directory.path_of("damaged", 5), "r+b").truncate(10)
    open(directory.grants.new_path(), "w").write("half")
    directory.grants.reserve(1 << 19)
    print(directory.path, flush=True)
    time.sleep(60)
""")


def _dead_worker(parent: str) -> str:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WORKER, parent, os.path.dirname(__file__)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    path = child.stdout.readline().decode().strip()
    assert dead_directories(parent) == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return path


def test_adopts_the_directory_of_a_dead_worker(parent: str, caplog) -> None:
    path = _dead_worker(parent)
    (dead,) = dead_directories(parent)
    assert (dead.path, dead.owner) == (path, "namespace alice")
    assert sweep_dead(parent) == []
    hostid = read_host_id(path)
    directory = SegmentDirectory.adopt(path, limit=1 << 20, owner="namespace alice")
    assert directory.hostid == hostid
    assert directory.headers() == [Header("kept", 4, 8000, "bytes", ("inner",))]
    assert bytes(open_segment(directory.path_of("kept", 4)).view) == b"kept" * 2000
    assert directory.space.used == directory.total == 8192
    assert "damaged" in caplog.text
    assert len(os.listdir(path)) == 6
    assert dead_directories(parent) == []
    directory.close(remove=False)
    assert [dead.path for dead in dead_directories(parent)] == [path]
    assert sweep_dead(parent, older_than=0) == [path]
    assert os.listdir(parent) == []


def test_damage_while_alive(directory: SegmentDirectory, caplog) -> None:
    path = store(directory, "x", 1, b"data")
    os.truncate(path, 10)
    assert directory.headers() == []
    assert directory.files == {}
    assert directory.space.used == 0
    store(directory, "y", 1, b"data")
    os.unlink(directory.path_of("y", 1))
    assert directory.headers() == []
    with pytest.raises(SegmentGone):
        open_segment(directory.path_of("y", 1))


def test_forked_child_does_not_keep_the_lock(parent: str) -> None:
    directory = SegmentDirectory.create(parent)
    receive, send = os.pipe()
    started, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(send)
        os.write(start, b"x")
        os.read(receive, 1)
        os._exit(0)
    os.close(receive)
    os.read(started, 1)
    os.close(started)
    os.close(start)
    directory.close(remove=False)
    assert len(dead_directories(parent)) == 1
    os.close(send)
    os.waitpid(child, 0)
    sweep_dead(parent, older_than=0)


_RESERVER = textwrap.dedent("""
    import sys
    from redist.errors import SegmentsFull
    from redist.memory.space import Space
    space = Space(sys.argv[1])
    got = 0
    for _ in range(300):
        try:
            space.reserve(1000)
            got += 1
        except SegmentsFull:
            pass
        if got and got % 3 == 0:
            space.release(1000)
            got -= 1
    print(got)
""")


def test_many_processes_reserve(tmp_path) -> None:
    path = str(tmp_path / "space")
    space = Space(path)
    space.reset(0, 200_000)
    children = [
        subprocess.Popen([sys.executable, "-c", _RESERVER, path], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert sum(int(child.communicate()[0]) for child in children) * 1000 == space.used <= 200_000
    space.reset(0, 100_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: (space.reserve(500), space.release(500)), range(500)))
    assert space.used == 0
    space.close()


def test_reserving_in_a_forked_child(tmp_path) -> None:
    space = Space(str(tmp_path / "space"))
    space.reset(0, 1 << 30)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            for _ in range(500):
                space.reserve(3)
            os._exit(0)
        children.append(child)
    for _ in range(500):
        space.reserve(3)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert space.used == 4 * 500 * 3
    space.close()


def test_small_shm_warning(directory: SegmentDirectory, tmp_path) -> None:
    assert small_shm_warning(directory.path, 1) is None
    text = small_shm_warning(directory.path, 1 << 60)
    assert text is not None
    assert "larger file system" in (small_shm_warning(str(tmp_path), 1 << 60) or "")
    if directory.path.startswith("/dev/shm"):
        assert "--shm-size" in text
