"""The runner's threads against a server in Python that hands out as the scripts do."""

import collections
import threading
import time

import pytest

from redist.store import calls
from redist.store.calls import Result
from redist.store.replies import HandOut
from redist_worker import runner as runners
from redist_worker.marks import Marks
from redist_worker.runner import Runner
from redist_worker.threads import TaskThread
from redist_worker.turns import Turns


class Server:
    """Queue, batches and idle count of one executor, and the lane to it; replies to posts come by another thread."""

    def __init__(self):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.queue = collections.deque()
        self.attempt = 0
        self.state = {}  # name -> attempt
        self.batches = {}
        self.idle = 0
        self.done = {}  # name -> status
        self.given_back = 0
        self.turns = 0
        self.discarded = 0
        self.replies = collections.deque()
        self.runner = None
        self.stopped = False
        self.thread = threading.Thread(target=self._reader, daemon=True)
        self.thread.start()

    # what a client does
    def submit(self, names, fn="f"):
        with self.changed:
            for name in names:
                self._ready(name, fn)
            self.changed.notify_all()

    def _ready(self, name, fn, front=False):
        if self.idle > 0 or fn == "call":  # calls of actors go there however busy it is
            self.idle = max(0, self.idle - 1)
            self.attempt += 1
            self.batches[self.attempt] = [name]
            self.state[name] = self.attempt
            self.replies.append(
                (self.runner.on_tasks, [self._hand_out(self.attempt, self.attempt, name, fn)])
            )
        elif front:
            self.queue.appendleft((name, fn))
        else:
            self.queue.append((name, fn))

    def _hand_out(self, batch, attempt, name, fn):
        return HandOut(batch, attempt, name, fn, b"", [], 0)

    def wait_for(self, condition, timeout=10):
        deadline = time.monotonic() + timeout
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline
                self.changed.wait(0.01)  # the runner tells of some changes only

    # the lane
    def call(self, call):
        return self._turn(call)

    def post(self, call, on_reply):
        with self.changed:
            self.replies.append((on_reply, self._turn(call)))
            self.changed.notify_all()

    enqueue = post
    failed = False

    def wait(self, ready, timeout):
        with self.changed:
            return self.changed.wait_for(ready, timeout)

    def wake(self):
        with self.changed:
            self.changed.notify_all()

    def _reader(self):
        while not self.stopped:
            with self.changed:
                self.changed.wait_for(lambda: self.replies or self.stopped)
                items = list(self.replies)
                self.replies.clear()
            for function, argument in items:
                function(argument)
            self.wake()

    def _turn(self, call):
        with self.changed:
            self.turns += 1
            body = list(call.body)
            capacity, want, nquick = body[:3]
            quick = set(body[3 : 3 + nquick])
            at = 3 + nquick
            finished = body[at + 1 : at + 1 + body[at]]
            at += 1 + body[at]
            count = body[at]
            at += 1
            for batch in finished:
                del self.batches[int(batch)]
            again = []
            for _ in range(count):
                name, attempt, status, _, _, _, contains = body[at : at + 7]
                at += 7 + contains
                if self.state.get(name) != int(attempt):
                    self.discarded += 1
                    continue
                del self.state[name]
                if status == "back":
                    self.given_back += 1
                    again.append(name)
                else:
                    assert name not in self.done
                    self.done[name] = status
            for name in reversed(again):
                self.queue.appendleft((name, "f"))
            reply = [b"OK", 0]
            if want == calls.RESYNC:
                for batch, names in self.batches.items():
                    for i, name in enumerate(names):
                        if self.state.get(name) == batch + i:
                            reply += [batch, batch + i, name.encode(), b"f", b"", 0]
            if want and want != calls.OWN and self.queue and len(reply) == 2:
                chosen = [self.queue.popleft()]
                while chosen[0][1] in quick and self.queue and len(chosen) < want:
                    chosen.append(self.queue.popleft())
                batch = self.attempt + 1
                self.attempt += len(chosen)
                self.batches[batch] = [name for name, _ in chosen]
                for i, (name, fn) in enumerate(chosen):
                    self.state[name] = batch + i
                    reply += [batch, batch + i, name.encode(), fn.encode(), b"", 0]
            self.idle = max(0, (0 if want == 0 else capacity) - len(self.batches))
            self.changed.notify_all()
            return reply


@pytest.fixture
def make(tmp_path):
    made = []

    def make(body, threads=1, before_hand_in=lambda: None):
        server = Server()

        def execute(task):
            value = body(task.name, server)
            return Result(task.name, task.attempt, "memory", 1, "int", b"v"), value

        marks = Marks(str(tmp_path / f"marks{len(made)}"))
        runner = Runner(server, execute, marks, threads, before_hand_in, is_call=lambda fn: fn == "call")
        server.runner = runner
        made.append((server, runner))
        runner.start()
        server.wait_for(lambda: server.idle == threads)
        return server, runner

    yield make
    for server, runner in made:
        runner.stop(5)
        server.wait_for(lambda runner=runner: not runner._all)
        server.stopped = True
        server.wake()


def settled(server, runner, names):
    server.wait_for(lambda: len(server.done) == len(names), 20)
    assert set(server.done) == set(names)
    server.wait_for(lambda: not server.batches and server.idle == runner.threads)
    assert server.discarded == 0
    assert runner.busy == 0
    assert runner._marks.running() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_many_quick_tasks_travel_in_batches(make, threads):
    server, runner = make(lambda name, server: None, threads)
    names = [f"x{i}" for i in range(5000)]
    server.submit(names)
    settled(server, runner, names)
    assert server.turns < 1500


def test_slow_tasks_travel_one_at_a_time_and_threads_share_them(make):
    running, most = set(), []

    def body(name, server):
        running.add(name)
        most.append(len(running))
        time.sleep(0.01)
        running.discard(name)

    server, runner = make(body, 3)
    names = [f"x{i}" for i in range(60)]
    server.submit(names)
    settled(server, runner, names)
    assert max(most) == 3


def test_a_task_that_drags_on_gives_back_the_rest_of_its_batch(make):
    go = threading.Event()

    def body(name, server):
        if name == "slow":
            assert go.wait(10)

    server, runner = make(body)
    server.submit([f"x{i}" for i in range(200)])
    server.wait_for(lambda: len(server.done) == 200)
    with server.lock:
        server.idle = 0
        server.submit(["slow", *(f"y{i}" for i in range(40))])
    runner.on_tasks([])
    server.wake()
    server.wait_for(lambda: server.given_back > 0)
    assert "y0" not in server.done
    go.set()
    settled(server, runner, [*(f"x{i}" for i in range(200)), "slow", *(f"y{i}" for i in range(40))])


def test_finished_tasks_do_not_wait_for_a_slow_one_of_their_batch(make):
    go = threading.Event()

    def body(name, server):
        if name == "slow":
            assert go.wait(10)

    server, runner = make(body)
    first = [f"x{i}" for i in range(200)]
    server.submit(first)
    server.wait_for(lambda: len(server.done) == 200)
    second = [*(f"y{i}" for i in range(10)), "slow"]
    with server.lock:
        server.idle = 0
        server.submit(second)
    runner.on_tasks([])
    server.wake()
    server.wait_for(lambda: len(server.done) == 210, 5)
    assert "slow" not in server.done
    go.set()
    settled(server, runner, first + second)


def test_what_is_finished_is_handed_in_before_a_task_that_may_hold_the_gil(make):
    seen = []

    def body(name, server):
        if name == "heavy":
            time.sleep(0.001)  # others get the GIL for a moment only
            seen.extend(server.done)

    server, runner = make(body)
    first = [f"x{i}" for i in range(200)]
    server.submit(first)
    server.wait_for(lambda: len(server.done) == 200)
    with server.lock:
        server.idle = 0
        server.submit(["y0", "y1"])
        server.submit(["heavy"], fn="g")
    runner.on_tasks([])
    server.wake()
    settled(server, runner, [*first, "y0", "y1", "heavy"])
    assert {"y0", "y1"} <= set(seen)


@pytest.mark.parametrize("after", [0.0, 10.0])
def test_a_result_waits_for_its_batch_only_so_long(make, monkeypatch, after):
    monkeypatch.setattr("redist_worker.runner._HAND_IN_AFTER", after)
    finished = []
    server, runner = make(lambda name, server: finished.append(len(server.done)))
    first = [f"x{i}" for i in range(200)]
    server.submit(first)
    server.wait_for(lambda: len(server.done) == 200)
    finished.clear()
    with server.lock:
        server.idle = 0
        server.submit([f"y{i}" for i in range(10)])
    runner.on_tasks([])
    server.wake()
    settled(server, runner, [*first, *(f"y{i}" for i in range(10))])
    assert finished == ([200 + i for i in range(10)] if after == 0 else [200] * 10)


def test_what_nobody_wants_any_more_is_not_started(make, monkeypatch):
    monkeypatch.setattr("redist_worker.runner._DRAGS", 10.0)
    started, go, ran = threading.Event(), threading.Event(), []

    def body(name, server):
        if name == "stuck":
            started.set()
            assert go.wait(10)
        ran.append(name)

    server, runner = make(body)
    server.submit([f"x{i}" for i in range(200)])
    server.wait_for(lambda: len(server.done) == 200)
    names = ["stuck", *(f"y{i}" for i in range(20))]
    with server.lock:
        server.idle = 0
        server.submit(names)
    runner.on_tasks([])
    server.wake()
    assert started.wait(10)
    void = [name for name in names if name in server.state and name != "stuck" and int(name[1:]) % 2]
    with server.lock:
        runner.on_void([server.state.pop(name) for name in void])
    go.set()
    server.wait_for(lambda: len(server.done) == 200 + len(names) - len(void))
    server.wait_for(lambda: not server.batches and server.idle == 1)
    assert not set(ran) & set(void)
    assert set(names) == set(ran[200:]) | set(void)


def test_tasks_that_wait_for_tasks_never_starve(make):
    def body(name, server):
        depth = int(name)
        if depth:
            server.submit([str(depth - 1)])
            server.runner.places.block()
            server.wait_for(lambda: str(depth - 1) in server.done)
            server.runner.places.unblock()

    server, runner = make(body)
    server.submit(["30"])
    settled(server, runner, [str(i) for i in range(31)])
    assert runner._alive <= 2 + runner.threads or runner._lane.wait(lambda: runner._alive <= 3, 5)


def test_seceded_tasks_leave_their_slot_until_they_rejoin(make):
    go = threading.Event()
    order = []

    def body(name, server):
        if name == "long":
            server.runner.places.secede()
            server.runner.places.secede()
            assert go.wait(10)
            server.runner.places.rejoin()
        order.append(name)

    server, runner = make(body)
    server.submit(["long", "a", "b"])
    server.wait_for(lambda: len(server.done) == 2)
    assert order == ["a", "b"]
    go.set()
    settled(server, runner, ["long", "a", "b"])
    with pytest.raises(ValueError, match="inside a task"):
        runner.places.secede()


def test_a_task_may_end_while_it_is_seceded(make):
    server, runner = make(
        lambda name, server: server.runner.places.secede() if name.startswith("s") else None
    )
    names = [*(f"s{i}" for i in range(20)), *(f"x{i}" for i in range(20))]
    server.submit(names)
    settled(server, runner, names)


def test_a_lost_hand_out_is_found_by_asking(make):
    server, runner = make(lambda name, server: None)
    with server.changed:
        server.idle -= 1
        server.attempt += 1
        server.batches[server.attempt] = ["lost"]
        server.state["lost"] = server.attempt  # and nothing is pushed
    settled(server, runner, ["lost"])


def test_a_push_that_comes_after_its_listing_is_not_run_twice(make):
    ran = []
    server, runner = make(lambda name, server: ran.append(name))
    with server.changed:
        server.idle -= 1
        server.attempt += 1
        late = [server._hand_out(server.attempt, server.attempt, "lost", "f")]
        server.batches[server.attempt] = ["lost"]
        server.state["lost"] = server.attempt
    settled(server, runner, ["lost"])
    runner.on_tasks(late)
    server.submit(["next"])
    settled(server, runner, ["lost", "next"])
    assert ran == ["lost", "next"]


def test_an_empty_push_says_that_there_is_something(make):
    server, runner = make(lambda name, server: None)
    with server.changed:
        server.idle = 0
        server.submit(["x"])
    begun = time.monotonic()
    runner.on_tasks([])
    server.wake()
    settled(server, runner, ["x"])
    assert time.monotonic() - begun < 0.8


def test_stop_finishes_what_runs_and_gives_back_the_rest(make):
    started, go = threading.Event(), threading.Event()

    def body(name, server):
        started.set()
        assert go.wait(10)

    server, runner = make(body)
    server.submit(["a", "b"])
    assert started.wait(5)
    stopper = threading.Thread(target=runner.stop, args=(10,))
    stopper.start()
    server.wait_for(lambda: runner._turns.stopping)
    go.set()
    stopper.join(10)
    server.wait_for(lambda: not server.batches)
    assert server.done == {"a": "memory"}
    assert [name for name, _ in server.queue] == ["b"]


def test_stop_gives_back_what_does_not_end_in_time(make):
    started, go = threading.Event(), threading.Event()

    def body(name, server):
        started.set()
        assert go.wait(10)

    server, runner = make(body)
    server.submit(["a"])
    assert started.wait(5)
    runner.stop(0.05)
    server.wait_for(lambda: not server.batches)
    assert server.given_back == 1
    go.set()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mixture_ends_well(make, threads):
    def body(name, server):
        i = int(name[1:])
        if name[0] == "p":
            server.submit([f"c{i}"])
            server.runner.places.block()
            server.wait_for(lambda: f"c{i}" in server.done)
            server.runner.places.unblock()
        elif i % 50 == 0:
            time.sleep(0.01)

    server, runner = make(body, threads)
    names = [f"{'p' if i % 10 == 3 else 'x'}{i}" for i in range(300)]
    children = [f"c{i}" for i in range(300) if i % 10 == 3]
    server.submit(names)
    settled(server, runner, names + children)


@pytest.mark.parametrize("threads", [1, 3])
def test_calls_run_beside_tasks_that_have_all_slots(make, threads):
    gate, door = threading.Event(), threading.Event()
    running, most = set(), []

    def body(name, server):
        if name.startswith("slow"):
            gate.wait(20)
        elif name.startswith("long"):
            server.runner.places.secede()  # as a call does that takes long
            door.wait(20)
        elif name.startswith("call"):
            running.add(name)
            most.append(len(running))
            time.sleep(0.001)
            running.discard(name)

    server, runner = make(body, threads)
    slow = [f"slow{i}" for i in range(threads)]
    server.submit(slow)
    server.wait_for(lambda: runner.busy == threads)
    server.submit(["queued"])
    quick = [f"call{i}" for i in range(40)]
    server.submit(quick[:20], fn="call")
    server.wait_for(lambda: set(quick[:20]) <= set(server.done))
    server.submit(["long1", "long2", "long3"], fn="call")
    server.submit(quick[20:], fn="call")
    server.wait_for(lambda: set(quick) <= set(server.done))
    assert max(most) == 1
    assert not {"queued", "long1", *slow} & set(server.done)
    door.set()
    server.wait_for(lambda: {"long1", "long2", "long3"} <= set(server.done))
    assert runner.busy == threads
    gate.set()
    settled(server, runner, [*slow, *quick, "queued", "long1", "long2", "long3"])
    assert server.given_back == 0
    server.wait_for(lambda: len(runner._all) <= threads + 1)


def test_a_call_that_waited_takes_no_slot_again(make):
    gate, door = threading.Event(), threading.Event()

    def body(name, server):
        if name == "call":
            server.runner.places.block()
            door.wait(20)
            server.runner.places.unblock()  # at once, though the only slot is taken
        elif name == "slow":
            gate.wait(20)

    server, runner = make(body)
    server.submit(["call"], fn="call")
    server.wait_for(lambda: runner._turns.blocked == 1)
    server.submit(["slow"])
    server.wait_for(lambda: runner._turns.running == 1)
    door.set()
    server.wait_for(lambda: "call" in server.done)
    assert "slow" not in server.done
    gate.set()
    settled(server, runner, ["call", "slow"])


def test_a_call_comes_while_a_thread_ends(make, monkeypatch):
    """The thread that ends still hands in what it has finished, and runs nothing more."""
    monkeypatch.setattr(runners, "_SPARE_THREADS", 0)
    door, gate, ends, ended = (threading.Event() for _ in range(4))

    def body(name, server):
        if name == "long":
            server.runner.places.secede()
            door.wait(20)
        elif name == "slow":
            gate.wait(20)

    def before_hand_in():
        if door.is_set() and not ends.is_set():
            ends.set()
            ended.wait(20)

    server, runner = make(body, before_hand_in=before_hand_in)
    server.submit(["long"])
    server.wait_for(lambda: runner._turns.blocked == 1)
    server.submit(["slow"])
    server.wait_for(lambda: runner._turns.running == 1)
    door.set()
    assert ends.wait(10)
    server.submit(["call"], fn="call")
    server.wait_for(lambda: "call" in server.done)
    ended.set()
    gate.set()
    settled(server, runner, ["long", "slow", "call"])


def test_the_only_idle_thread_stays_for_a_call(make, monkeypatch):
    """Threads are too many when a task comes back that waited: but none of the others could run the call."""
    door, gate, held, look, looks = (threading.Event() for _ in range(5))

    def body(name, server):
        if name == "waits":
            server.runner.places.block()
            door.wait(20)
            server.runner.places.unblock()
        elif name == "slow":
            gate.wait(20)

    server, runner = make(body)
    wait = server.wait

    def wait_and_hold(ready, timeout):
        woken = wait(ready, timeout)
        if woken and held.is_set() and not looks.is_set():
            looks.set()
            look.wait(20)
        return woken

    monkeypatch.setattr(server, "wait", wait_and_hold)
    server.submit(["waits"])
    server.wait_for(lambda: runner._turns.blocked == 1)
    server.submit(["slow"])
    server.wait_for(lambda: runner._turns.running == 1)
    server.submit(["call0"], fn="call")
    server.wait_for(lambda: "call0" in server.done and not runner._turns.calling)
    held.set()
    server.submit(["call1"], fn="call")
    assert looks.wait(10)
    door.set()
    server.wait_for(lambda: runner._turns._returning == 1)
    look.set()
    server.wait_for(lambda: "call1" in server.done)
    assert "waits" not in server.done
    gate.set()
    settled(server, runner, ["waits", "slow", "call0", "call1"])


def test_calls_go_back_when_it_stops(make):
    gate = threading.Event()
    server, runner = make(lambda name, server: gate.wait(20))
    server.submit(["slow"])
    server.wait_for(lambda: runner.busy == 1)
    server.submit(["call0", "call1", "call2"], fn="call")
    server.wait_for(lambda: runner.busy == 2)
    runner.stop(0.05)
    server.wait_for(lambda: server.given_back == 4)
    gate.set()


def test_a_list_that_is_taken_in_late_starts_nothing_again():
    """What it names was running when the server made it, and is done when the thread that asked for it wakes."""
    task = HandOut(7, 7, "x", "f", b"", [], 0)
    running, asking = TaskThread(), TaskThread()

    class Lane:
        failed = False

        def post(self, call, on_reply):
            on_reply([b"OK", 0])

        def call(self, call):
            running.results.append((Result("x", 7, "memory"), 7, None))
            turns.hand_in(running)
            return [b"OK", 0, 7, 7, b"x", b"f", b"", 0]

    turns = Turns(Lane(), 2, lambda: None)
    turns.pushed([task])
    with turns.lock:
        assert turns.claim(running, resync=False) == ([task], False)
    assert turns.take(asking, resync=True) is None
    assert not turns._batches._late
    assert not turns._batches._turns
