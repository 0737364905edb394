from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from redist.memory.directory import SegmentDirectory
from redist.memory.task_files import make_task_directory
from redist.store.connect import endpoint
from redist_worker import segments
from redist_worker.marks import Marks
from redist_worker.segments import Home, Sweeper, find_home, sweep_last

SERVER = endpoint("redis://127.0.0.1:1", namespace="mine")


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(segments, "time", made)
    return made


@pytest.fixture
def parent(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def sweeper(clock: Clock, parent: str) -> Iterator[Sweeper]:
    home = find_home(SERVER, "living", 1 << 20, parent)
    yield Sweeper(SERVER, home.directory.path, 10.0)
    home.directory.close()


def dead(parent: str, *, name: str = "dead", namespace: str = "mine", lease: float = 10.0) -> str:
    """A directory as a worker that was killed leaves it."""
    where = endpoint("redis://127.0.0.1:1", namespace=namespace)
    directory = SegmentDirectory.create(parent, limit=1 << 20, owner=f"{where.url} {namespace}\t{name}")
    Home(directory).remember(name, 7, lease)
    Path(directory.path, "x").write_bytes(b"x" * 10_000)
    os.utime(directory.path, (1, 1))  # long without a payload, which says nothing of its worker
    directory.close(remove=False)
    return directory.path


def looks(sweeper: Sweeper, clock: Clock, seconds: float) -> list[str]:
    removed = []
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 10.0
        assert sweeper.due
        removed += sweeper.look()
        assert not sweeper.due
    return removed


def test_a_dead_one_goes_after_its_lease(sweeper: Sweeper, clock: Clock, parent: str) -> None:
    path = dead(parent)
    assert looks(sweeper, clock, 30) == []
    assert looks(sweeper, clock, 20) == [path]
    assert not os.path.exists(path)


def test_files_of_tasks_go_with_it(
    sweeper: Sweeper, clock: Clock, parent: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = dead(parent)
    left = Path(make_task_directory(path, "redist-dead-0-123-"))
    (left / "module.py").touch()
    precious = tmp_path_factory.mktemp("precious")
    for name in ("files-redist-dead-0-123-other", f"files-{precious.name}-link"):
        os.symlink(precious, os.path.join(path, name))
    os.symlink("/nowhere", os.path.join(path, "files-nowhere"))
    assert looks(sweeper, clock, 50) == [path]
    assert not left.exists()
    assert precious.exists()


def test_who_adopts_removes_the_files_of_dead_executors(parent: str) -> None:
    path = dead(parent)
    left = Path(make_task_directory(path, "redist-dead-0-123-"))
    assert left.is_dir()
    home = find_home(SERVER, "dead", 1 << 20, parent)
    assert home.directory.path == path
    assert not left.exists()
    assert not [name for name in os.listdir(path) if name.startswith("files-")]
    home.directory.close()


def test_others_stay_longer(sweeper: Sweeper, clock: Clock, parent: str) -> None:
    patient, foreign = dead(parent, lease=100.0), dead(parent, namespace="other")
    assert looks(sweeper, clock, 100) == []
    assert looks(sweeper, clock, 40) == [patient]
    assert looks(sweeper, clock, 140) == []
    assert looks(sweeper, clock, 40) == [foreign]


def test_an_adopted_one_stays(sweeper: Sweeper, clock: Clock, parent: str) -> None:
    path = dead(parent)
    looks(sweeper, clock, 20)
    home = find_home(SERVER, "dead", 1 << 20, parent)
    assert home.directory.path == path
    assert looks(sweeper, clock, 100) == []
    home.directory.close()


def test_a_living_executor_keeps_it(sweeper: Sweeper, clock: Clock, parent: str) -> None:
    path = dead(parent)
    marks = Marks(os.path.join(path, "marks-1-1"))
    assert looks(sweeper, clock, 100) == []
    marks.close()
    assert looks(sweeper, clock, 20) == [path]


@pytest.mark.parametrize("dies", [True, False])
def test_who_adopts_waits_for_dying_executors(
    clock: Clock, parent: str, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    path = dead(parent)
    marks = Marks(os.path.join(path, "marks-1-1"))
    marks.ordinal = 9
    slot = marks.take_slot()
    marks.set(slot, 44)
    ends = clock.now + 0.5

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if dies and clock.now >= ends and marks.ordinal:
            marks.set(slot, 45)  # what it began at the last moment
            marks.close()

    monkeypatch.setattr(clock, "sleep", sleep, raising=False)
    home = find_home(SERVER, "dead", 1 << 20, parent)
    assert (home.ordinal, home.blamed) == (7, {9: [45 if dies else 44]})
    assert not dies or clock.now < ends + 0.1
    home.directory.close()


def test_the_clock_begins_anew_after_the_server_was_away(sweeper: Sweeper, clock: Clock, parent: str) -> None:
    path = dead(parent)
    looks(sweeper, clock, 20)
    clock.now += 1000.0
    assert sweeper.look() == []
    assert looks(sweeper, clock, 20) == []
    assert looks(sweeper, clock, 20) == [path]


def test_the_last_one_leaves_what_is_needed(parent: str) -> None:
    home = find_home(SERVER, "living", 1 << 20, parent)
    path = home.directory.path
    theirs, foreign = dead(parent), dead(parent, namespace="other")
    young = dead(parent, namespace="other")
    os.utime(young)
    assert sweep_last(SERVER, path, "", lambda ordinal: False) == []  # somebody lives
    home.directory.close()
    assert sweep_last(SERVER, path, "", lambda ordinal: ordinal == 7) == [foreign]
    assert sweep_last(SERVER, path, "", lambda ordinal: False) == [theirs]
    assert os.listdir(parent) == [os.path.basename(young)]
