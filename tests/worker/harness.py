"""Worker processes of tests, and a client with just what they need."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from redist.protocol.arguments import pack_arguments
from redist.protocol.functions import function_of
from redist.protocol.futures import register_future_type
from redist.protocol.payload import loads, loads_inline
from redist.protocol.specs import pack_spec
from redist.protocol.task_errors import unpack_error
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.calls import EligibilityClass, Task
from redist.store.replies import parse_states
from redist_worker.lane import DriverLane

ROOT = Path(__file__).parents[2]


class Key:
    """What `Client.submit` returns; usable as an argument."""

    def __init__(self, name):
        self.name = name


register_future_type(Key, lambda key: (str, (key.name,)))


class Client:
    """Submits and waits, over a real session."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.session = Session(endpoint, "client", "test-client", lease=1000.0)
        self.session.heart.compare = False  # its counts are not in the session's ledger
        self.driver = ThreadDriver(self.session, endpoint)
        self.output = []
        self.session.on_output = lambda stream, worker, data: self.output.append(
            (stream, worker, data.decode())
        )
        self.driver.start()
        self.numbers = iter(range(10**9))

    def call(self, call):
        return DriverLane(self.driver).call(call)

    def submit(self, function, *args, key=None, retries=0, workers="", resources="", deps=()):
        name = key or f"{getattr(function, '__name__', 'f')}-{next(self.numbers)}"
        packed = function_of(function)
        # the executor gives values in the order of the names
        arguments = pack_arguments(args, {}, dependency_of=lambda k: k.name)
        assert list(arguments.dependencies) == sorted(arguments.dependencies)
        classes, cls = [], ""
        if workers or resources:
            cls = f"c{abs(hash((workers, resources)))}"
            classes = [EligibilityClass(cls, workers, resources)]
        task = Task(
            name,
            packed.hash,
            pack_spec(packed.hash, arguments.data),
            arguments.dependencies,
            1,
            retries,
            0,
            cls,
        )
        self.call(calls.submit([task], [(packed.hash, packed.data)], classes))
        return Key(name)

    def state(self, key):
        return parse_states(self.call(calls.states([key.name], full=True)))[0]

    def wait(self, *keys, timeout=20):
        deadline = time.monotonic() + timeout
        while True:
            states = [self.state(key) for key in keys]
            if all(s.state.split(" ")[0] in ("memory", "erred", "forgotten") for s in states):
                return states
            assert time.monotonic() < deadline, states
            time.sleep(0.005)

    def result(self, key, timeout=20):
        (state,) = self.wait(key, timeout=timeout)
        if state.state == "erred":
            raise unpack_error(state.value)[0]
        assert state.state == "memory", state
        if state.where:
            from redist.memory.payloads import open_payload

            worker, _, attempt = state.where.split()[0].partition(".")
            segments = self.field(f"caller:{worker}", "segments")
            mapping = open_payload(segments, key.name, int(attempt))
            return loads(mapping.view, owner=mapping)
        return loads_inline(state.value)

    def release(self, *keys):
        self.call(calls.ledger([(key.name, 0) for key in keys]))

    def command(self, *args):
        wire = self.endpoint.open(5)
        try:
            return wire.call(*args)
        finally:
            wire.close()

    def field(self, key, field):
        value = self.command("HGET", self.endpoint.prefix + key, field)
        return None if value is None else value.decode()

    def fields(self, key):
        flat = self.command("HGETALL", self.endpoint.prefix + key)
        return {field.decode(): value for field, value in zip(flat[::2], flat[1::2])}

    def ordinals(self, kind):
        flat = self.command("HGETALL", f"{self.endpoint.prefix}{kind}")
        return {name.decode(): int(ordinal) for ordinal, name in zip(flat[::2], flat[1::2])}

    def pid(self, ordinal):
        return int(self.field(f"caller:{ordinal}", "pid") or 0)

    def state_of(self, name, *wanted):
        """Return the state of a key if it is one of the wanted ones."""
        state = self.state(Key(name))
        return state if state.state.split(" ")[0] in wanted else None

    def sampled(self, pid):
        """Tell whether a worker has measured the memory of a process."""
        for ordinal in self.ordinals("workers").values():
            metrics = json.loads(self.field(f"caller:{ordinal}", "metrics") or "{}")
            if any(e["pid"] == pid and e["rss"] and e["running"] for e in metrics.get("executors", ())):
                return True
        return False

    def close(self):
        self.driver.close()


@cache
def _parent():
    """Return the end of a pipe on which workers see that the run of the tests was killed."""
    return os.pipe()[0]


class WorkerProcess:
    """A worker started as users start one."""

    def __init__(self, endpoint, segments, *args, name="w"):
        self.endpoint = endpoint
        self.name = name
        url = endpoint.url
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}", **endpoint.secrets()}
        self.log = open(os.path.join(segments, f"log-{name}-{time.monotonic_ns()}"), "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "redist_worker", url, "--namespace", endpoint.namespace, "--name", name,
             "--segments", os.path.join(segments, "segments"), "--log-level", "INFO",
             "--die-with-parent", str(_parent()), *args],
            env=env, start_new_session=True, stdout=self.log, stderr=self.log, pass_fds=(_parent(),),
        )  # fmt: skip
        self.pid = self.process.pid

    def text(self):
        self.log.flush()
        with open(self.log.name) as file:
            return file.read()

    def descendants(self):
        import psutil

        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []

    def stop(self, timeout=20):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self):
        self.process.kill()
        self.process.wait()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, timeout=20.0, message=""):
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, message or "timed out"
        threading.Event().wait(0.01)
