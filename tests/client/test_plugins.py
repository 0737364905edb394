"""Plugins, uploaded files and forwarded log records."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redist import Client, LocalCluster, UploadDirectory, UploadFile, WorkerPlugin, get_worker, plugins
from redist.errors import NoScheduler
from servers import wait_until


@pytest.fixture(autouse=True)
def no_plugin_stays(cluster: LocalCluster) -> Iterator[None]:
    yield
    with Client(cluster, set_as_default=False) as client:
        names = {
            name
            for found in client.run(lambda dask_worker: list(dask_worker.plugins)).values()
            for name in found
        }
        for name in names:
            client.unregister_worker_plugin(name)


class Noting(WorkerPlugin):
    """Notes what is called, in a file a process."""

    def __init__(self, directory: Path, word: str = "") -> None:
        self.directory = str(directory)
        self.word = word

    def note(self, text: str) -> None:
        with open(f"{self.directory}/{os.getpid()}", "a") as file:
            file.write(f"{text}\n")

    def setup(self, worker: Any) -> None:
        assert worker is get_worker()
        self.note(f"setup {self.word}")

    def teardown(self, worker: Any) -> None:
        assert worker is get_worker()
        self.note(f"teardown {self.word}")


class Watching(Noting):
    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        self.note(f"{key!r} {start} {finish}")


def notes(directory: Path) -> list[list[str]]:
    return sorted(path.read_text().splitlines() for path in directory.iterdir())


def test_setup_and_teardown(client: Client, new_client: Callable[..., Client], tmp_path: Path) -> None:
    done = client.register_plugin(Noting(tmp_path, "a"), name="noting")
    assert done == {key: {"status": "OK"} for key in client.scheduler_info()["workers"]}
    assert notes(tmp_path) == [["setup a"]] * 2
    other = new_client(set_as_default=False)
    other.register_plugin(Noting(tmp_path, "b"), name="noting")  # replaces it
    assert notes(tmp_path) == [["setup a", "teardown a", "setup b"]] * 2
    assert set(client.run(lambda dask_worker: dask_worker.plugins["noting"].word).values()) == {"b"}
    assert client.unregister_worker_plugin("noting") == done
    assert notes(tmp_path) == [["setup a", "teardown a", "setup b", "teardown b"]] * 2
    with pytest.raises(ValueError, match="no worker plugin 'noting'"):
        other.unregister_worker_plugin("noting")


def test_an_idempotent_one_stays(client: Client, tmp_path: Path) -> None:
    first, second = Noting(tmp_path, "a"), Noting(tmp_path, "b")
    first.idempotent = second.idempotent = True
    first.name = second.name = "once"  # type: ignore[attr-defined]
    assert len(client.register_plugin(first)) == 2
    assert client.register_plugin(second) == {}
    assert notes(tmp_path) == [["setup a"]] * 2
    client.unregister_worker_plugin("once")


def test_transitions(client: Client, tmp_path: Path) -> None:
    client.register_plugin(Watching(tmp_path), name="watching")
    client.submit(abs, -1, key=("fine", 1)).result()
    client.submit(divmod, 1, 0, key="fails").exception()
    client.unregister_worker_plugin("watching")
    client.submit(abs, -1, pure=False).result()
    lines = [
        line
        for process in notes(tmp_path)
        for line in process
        if "setup" not in line and "teardown" not in line
    ]
    assert sorted(lines) == [
        "'fails' executing error", "'fails' ready executing", "('fine', 1) executing memory", "('fine', 1) ready executing",
    ]  # fmt: skip


def test_a_plugin_that_fails(client: Client) -> None:
    class Failing(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            raise ZeroDivisionError("setup")

        def teardown(self, worker: Any) -> None:
            raise ArithmeticError("teardown")

        def transition(self, *args: Any, **kwargs: Any) -> None:
            raise LookupError("transition")

    with pytest.raises(ZeroDivisionError, match="setup"):
        client.register_plugin(Failing(), name="failing")
    assert client.submit(abs, -3, pure=False).result() == 3
    with pytest.raises(ArithmeticError, match="teardown"):
        client.unregister_worker_plugin("failing")


def test_a_failure_at_the_start_of_a_process_is_told_to_who_registers() -> None:
    class Failing(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            raise ZeroDivisionError("at the start")

    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        assert client.register_plugin(Failing(), name="failing") == {}
        cluster.scale(1)
        client.wait_for_workers(1, timeout=20)
        assert client.submit(abs, -3).result(timeout=20) == 3
        with pytest.raises(ZeroDivisionError, match="at the start"):
            client.run(lambda dask_worker: dask_worker.plugin_room.add("failing"))


def test_coroutines_and_callbacks(client: Client, tmp_path: Path) -> None:
    class Slow(WorkerPlugin):
        name = "slow"

        async def setup(self, worker: Any) -> None:
            await asyncio.sleep(0.01)
            worker.was_set_up = True

    client.register_plugin(Slow())
    assert set(client.run(lambda dask_worker: dask_worker.was_set_up).values()) == {True}

    def prepare(dask_worker: Any) -> None:
        dask_worker.was_called = True

    client.register_worker_callbacks(prepare)
    assert set(client.run(lambda dask_worker: dask_worker.was_called).values()) == {True}
    assert set(client.register_worker_callbacks()) == set(client.nthreads())  # nothing to call
    with pytest.raises(TypeError, match="setup is a function, not int: 5"):
        client.register_worker_callbacks(5)  # type: ignore[arg-type]


def test_what_is_no_plugin(client: Client) -> None:
    class SchedulerPlugin:
        pass

    class NannyPlugin:
        pass

    class Mine(SchedulerPlugin):
        pass

    with pytest.raises(TypeError, match="instance"):
        client.register_plugin(WorkerPlugin)
    with pytest.raises(TypeError, match="inherits"):
        client.register_plugin(object())
    with pytest.raises(NoScheduler, match="SchedulerPlugin"):
        client.register_plugin(Mine())
    with pytest.raises(NoScheduler, match="NannyPlugin"):
        client.register_plugin(NannyPlugin())
    with pytest.raises(NotImplementedError, match="scheduler"):
        client.unregister_scheduler_plugin("x")
    with pytest.raises(NoScheduler, match="nanny"):
        client.unregister_worker_plugin("x", nanny=True)


def test_later_executors_and_workers_are_set_up(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        module = tmp_path / "module_for_later.py"
        module.write_text("def answer(): return 42\n")
        notes_in = tmp_path / "notes"
        notes_in.mkdir()
        client.register_plugin(Noting(notes_in, "first"), name="z")
        client.register_plugin(Noting(notes_in, "second"), name="a")
        client.upload_file(str(module))

        def later() -> int:
            import module_for_later  # type: ignore[import-not-found]

            return module_for_later.answer()  # type: ignore[no-any-return]

        (pid,) = client.run(os.getpid).values()
        where = client.submit(lambda: get_worker().local_directory).result()
        os.kill(pid, signal.SIGKILL)
        assert client.submit(later, pure=False).result(timeout=20) == 42
        wait_until(lambda: not os.path.exists(where), what="the directory of the killed process is gone")
        client.restart()
        assert client.submit(later, pure=False).result(timeout=20) == 42
        cluster.scale(2)
        client.wait_for_workers(2, timeout=20)
        assert set(client.run(later).values()) == {42}
        assert notes(notes_in) == [["setup first", "setup second"]] * 4
        client.unregister_worker_plugin("a")
    assert sum(lines[-1] == "teardown first" for lines in notes(notes_in)) == 2


def test_a_plugin_of_a_later_executor_may_run_functions_everywhere(tmp_path: Path) -> None:
    class Running(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            from redist import get_client

            worker.seen = len(get_client().run(os.getpid, on_error="ignore"))

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.register_plugin(Running())
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        assert client.submit(lambda: get_worker().seen, pure=False).result(timeout=20) == 1


def test_an_uploaded_module(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "uploaded_module.py"
    module.write_text("def answer(): return 1\n")
    assert client.upload_file(str(module)) == {
        key: {"status": "OK"} for key in client.scheduler_info()["workers"]
    }
    import uploaded_module  # type: ignore[import-not-found]

    assert client.submit(uploaded_module.answer, pure=False).result() == 1
    module.write_text("def answer(): return 2\n")  # as long, and as old to the second
    client.upload_file(str(module))
    importlib.reload(uploaded_module)
    assert [f.result() for f in client.map(lambda _: uploaded_module.answer(), range(4), pure=False)] == [
        2
    ] * 4
    assert client.submit(uploaded_module.answer, pure=False).result() == 2

    def there(dask_worker: Any) -> bool:
        return os.path.exists(os.path.join(dask_worker.local_directory, "uploaded_module.py"))

    assert set(client.run(there).values()) == {True}
    with pytest.raises(FileNotFoundError):
        client.upload_file(str(tmp_path / "nothing.py"))
    broken = tmp_path / "broken_module.py"
    broken.write_text("1/0\n")
    with pytest.raises(ZeroDivisionError):
        client.upload_file(str(broken))
    client.upload_file(str(broken), load=False)


@pytest.mark.parametrize("extension", ["zip", "egg"])
def test_an_uploaded_package(client: Client, tmp_path: Path, extension: str) -> None:
    def pack(number: int) -> str:
        path = tmp_path / f"some_packages.{extension}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"packed_{extension}/__init__.py", f"answer = {number}\n")
            archive.writestr(f"packed_{extension}/inner.py", f"answer = {number}\n")
        return str(path)

    def look(extension: str) -> object:
        module = importlib.import_module(f"packed_{extension}")
        return module.answer, importlib.import_module(f"packed_{extension}.inner").answer

    client.upload_file(pack(1))
    assert set(client.run(look, extension).values()) == {(1, 1)}
    client.upload_file(pack(2))
    assert {answer for answer, _ in client.run(look, extension).values()} == {2}


def test_a_file_as_a_plugin(client: Client, tmp_path: Path) -> None:
    module = tmp_path / "as_a_plugin.py"
    module.write_text("answer = 5\n")
    client.register_plugin(UploadFile(str(module)))
    assert set(client.run(lambda: importlib.import_module("as_a_plugin").answer).values()) == {5}


def test_logs_are_forwarded(
    client: Client, new_client: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    name = "somebody.in.tests"
    logging.getLogger("somebody").setLevel("INFO")

    def log(level: int, message: str, *args: object) -> None:
        import threading

        logger = logging.getLogger(name)
        logger.setLevel(level)
        try:
            raise ValueError("its cause")
        except ValueError:
            logger.log(level, message, *args, exc_info=True, extra={"thing": threading.Lock()})

    client.forward_logging("somebody", level=logging.WARNING)
    client.forward_logging("somebody", level=logging.WARNING)  # no second copy
    client.submit(log, logging.INFO, "not this").result()
    client.submit(log, logging.ERROR, "number %d of %s", 5, {"a"}).result()
    wait_until(lambda: caplog.records)
    (record,) = [record for record in caplog.records if record.name == name]
    assert record.getMessage() == "number 5 of {'a'}"
    assert record.levelno == logging.ERROR
    assert "its cause" in (record.exc_text or "")
    assert record.worker in client.scheduler_info()["workers"]  # type: ignore[attr-defined]

    client.unforward_logging("somebody")
    with pytest.raises(ValueError, match="somebody"):
        client.unforward_logging("somebody")
    with pytest.raises(ValueError, match="handler"):
        client.unforward_logging("nobody")


def test_all_logs_are_forwarded(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.forward_logging()
    logging.getLogger("redist.something").warning("here")
    client.run(lambda: logging.getLogger("redist.something").warning("ours stays there"))
    client.run(lambda: logging.getLogger().warning("from %s", "everywhere"))
    wait_until(lambda: [r for r in caplog.records if r.getMessage() == "from everywhere"])
    assert not [r for r in caplog.records if r.getMessage() == "ours stays there"]
    client.unforward_logging()


def test_asynchronous(cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            assert len(await client.register_plugin(Noting(tmp_path, "a"), name="noting")) == 2
            await client.unregister_worker_plugin("noting")
            assert notes(tmp_path) == [["setup a", "teardown a"]] * 2
            module = tmp_path / "for_a_loop.py"
            module.write_text("answer = 6\n")
            await client.upload_file(str(module))
            assert set((await client.run(lambda: importlib.import_module("for_a_loop").answer)).values()) == {
                6
            }
            await client.forward_logging("somebody.async")
            await client.submit(lambda: logging.getLogger("somebody.async").warning("in a loop"), pure=False)
            until = time.monotonic() + 10
            while not caplog.records and time.monotonic() < until:
                await asyncio.sleep(0.005)
            assert caplog.records[0].getMessage() == "in a loop"
            await client.unforward_logging("somebody.async")

    asyncio.run(main())


def test_inside_a_task(client: Client, tmp_path: Path) -> None:
    def register(directory: Path) -> int:
        from redist import get_client

        count = len(get_client().register_plugin(Noting(directory, "a"), name="of a task"))
        get_client().unregister_worker_plugin("of a task")
        return count

    assert client.submit(register, tmp_path).result() == 2
    assert notes(tmp_path) == [["setup a", "teardown a"]] * 2


class Leaving(WorkerPlugin):
    """Raises what would end a thread, or the process."""

    def setup(self, worker: Any) -> None:
        raise SystemExit(1)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        raise SystemExit(2)


def test_a_plugin_that_would_end_the_process() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as own, Client(own) as client:
        with pytest.raises(SystemExit):
            client.register_plugin(Leaving(), name="leaving")
        assert client.submit(abs, -1, pure=False).result(timeout=10) == 1
        client.submit(os._exit, 1).exception(timeout=20)  # in others it is set up as they start
        assert client.submit(abs, -2).result(timeout=20) == 2


def test_one_registered_while_the_other_of_its_name_is_torn_down(
    client: Client, new_client: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_client(set_as_default=False)
    client.register_plugin(Noting(tmp_path, "a"), name="noting")
    tell = plugins._tell

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        other.register_plugin(Noting(tmp_path, "b"), name="noting")
        return tell(*args)

    monkeypatch.setattr(plugins, "_tell", late)
    client.unregister_worker_plugin("noting")
    assert notes(tmp_path) == [["setup a", "teardown a", "setup b"]] * 2
    other.unregister_worker_plugin("noting")
    assert notes(tmp_path) == [["setup a", "teardown a", "setup b", "teardown b"]] * 2


# --- directories ----------------------------------------------------------------------------------------------------


def package(path: Path, number: int) -> Path:
    """Make a package in a directory, with what is left out beside it."""
    for name, text in {
        "__init__.py": f"answer = {number}\n",
        "inner/__init__.py": f"answer = {10 * number}\n",
        "top_module.py": f"answer = {100 * number}\n",
        "data.txt": "text",
        "docs/page.md": "text",
        ".git/config": "x",
        "old.pyc": "x",
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def answers(name: str) -> list[int]:
    inner = importlib.import_module(f"{name}.inner")
    return [importlib.import_module(name).answer, inner.answer]


def uploaded(dask_worker: Any) -> list[str]:
    base = Path(dask_worker.local_directory)
    found = [str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()]
    return sorted(name for name in found if "__pycache__" not in name)


def test_a_directory(client: Client, new_client: Callable[..., Client], tmp_path: Path) -> None:
    path = package(tmp_path / "tests" / "a_directory", 1)
    done = client.register_plugin(UploadDirectory(f"{path}/"))
    assert done == {key: {"status": "OK"} for key in client.scheduler_info()["workers"]}
    mine = [
        f"a_directory/{name}" for name in ("__init__.py", "data.txt", "inner/__init__.py", "top_module.py")
    ]
    assert [[n for n in names if n.startswith("a_dir")] for names in client.run(uploaded).values()] == [
        mine
    ] * 2
    assert client.gather(client.map(answers, ["a_directory"] * 4, pure=False)) == [[1, 10]] * 4
    with pytest.raises(ModuleNotFoundError):
        client.submit(importlib.import_module, "top_module").result(10)
    package(path, 2)
    (path / "data.txt").unlink()
    other = new_client(set_as_default=False)
    other.register_plugin(UploadDirectory(path, update_path=True, restart_workers=True, skip_words=()))
    assert client.gather(client.map(answers, ["a_directory"] * 4, pure=False)) == [[2, 20]] * 4
    assert set(client.run(lambda: importlib.import_module("top_module").answer).values()) == {200}
    for names in other.run(uploaded).values():
        assert "a_directory/data.txt" not in names
        assert {"a_directory/docs/page.md", "a_directory/.git/config"} <= set(names)
    client.unregister_worker_plugin("upload-directory-a_directory")


def test_a_directory_asynchronously_and_for_later_processes(tmp_path: Path) -> None:
    path = package(tmp_path / "later_directory", 3)

    async def main(cluster: LocalCluster) -> None:
        async with Client(cluster, asynchronous=True) as client, Client(cluster, asynchronous=True) as other:
            pids = await other.run(os.getpid)
            done = await client.register_plugin(UploadDirectory(path, restart_workers=True, skip=()))
            assert set(done) == set(pids)
            assert set((await other.run(os.getpid)).values()).isdisjoint(pids.values())
            (names,) = (await other.run(uploaded)).values()
            assert "later_directory/old.pyc" in names
            assert await other.submit(answers, "later_directory") == [3, 30]
            cluster.scale(2)
            await other.wait_for_workers(2, timeout=20)
            assert list((await client.run(answers, "later_directory")).values()) == [[3, 30]] * 2

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        asyncio.run(main(cluster))


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        UploadDirectory(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="file"):
        UploadDirectory(tmp_path / "file")
    with pytest.raises(ValueError, match="mode is 'workers' or 'all'"):
        UploadDirectory(tmp_path, mode="nanny")
    with pytest.raises(NoScheduler, match="no scheduler process"):
        UploadDirectory(tmp_path, mode="scheduler")
