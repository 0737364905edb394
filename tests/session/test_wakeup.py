"""Looking at the frames of threads, at any moment."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

from redist.session.wakeup import runs

GARBAGE = """
import threading
from redist.session.wakeup import runs

class Cycle:
    def __init__(self):
        self.me = self
        self.local = threading.local()

for _ in range(5000):
    Cycle()
    runs(threading.get_ident(), runs.__code__, None)
print("done")
"""


class Waiting:
    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.entered.set()
        self.go.wait()


def test_simple() -> None:
    waiting, other = Waiting(), Waiting()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    assert thread.ident is not None
    waiting.entered.wait()
    assert runs(thread.ident, Waiting.wait.__code__, waiting)
    assert not runs(thread.ident, Waiting.wait.__code__, other)
    assert not runs(threading.get_ident(), Waiting.wait.__code__, waiting)
    waiting.go.set()
    thread.join()
    assert not runs(thread.ident, Waiting.wait.__code__, waiting)


def test_a_garbage_collection_at_that_moment() -> None:
    """It would lock up the whole interpreter, so that another one has to try."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_garbage_collection_goes_on_as_before() -> None:
    assert gc.isenabled()
    runs(threading.get_ident(), runs.__code__, None)
    assert gc.isenabled()
    gc.disable()
    try:
        runs(threading.get_ident(), runs.__code__, None)
        assert not gc.isenabled()
    finally:
        gc.enable()
