import functools
import gc
import operator
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import types
import weakref

import cloudpickle
import pytest

from protocol.helpers import FakeFuture
from redist.errors import DeserializationError, SerializationError
from redist.protocol import function_label, function_of, load_function


def double(x):
    return 2 * x


class Callable:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x + self.n

    def method(self, x):
        return x * self.n


@pytest.mark.parametrize(
    ("function", "argument", "result", "label"),
    [
        (double, 3, 6, "double"),
        (lambda x: x + 1, 3, 4, "lambda"),
        (operator.neg, 3, -3, "neg"),
        (functools.partial(functools.partial(operator.add, 1)), 3, 4, "add"),
        (Callable(5), 3, 8, "Callable"),
        (Callable(5).method, 3, 15, "Callable.method"),
        (int, "3", 3, "int"),
        ("{:>3}".format, 3, "  3", "format"),
    ],
)
def test_round_trip(function, argument, result, label):
    serialized = function_of(function)
    assert serialized.label == label
    assert len(serialized.hash) == 24
    assert load_function(serialized.data, serialized.hash)(argument) == result
    assert function_of(function).hash == serialized.hash


def test_serialized_once():
    assert function_of(double) is function_of(double)
    assert function_of(operator.neg) is function_of(operator.neg)


def test_a_callable_that_changes_is_serialized_anew():
    function = Callable(1)
    before = function_of(function)
    function.n = 2
    assert load_function(function_of(function).data)(0) == 2
    assert function_of(function).hash != before.hash


def test_the_cache_keeps_nothing_alive():
    def local(x):
        return x

    function_of(local)
    reference = weakref.ref(local)
    del local
    gc.collect()
    assert reference() is None


def test_a_closure_with_futures_and_large_data():
    future, data = FakeFuture("f"), bytes(100_000)
    serialized = function_of(lambda: (future, data))
    assert serialized.contains == ("f",)
    assert serialized.nbytes > 100_000
    assert load_function(serialized.data)() == (future, data)


def test_what_cannot_be_serialized():
    lock = threading.Lock()

    def locked():
        return lock

    with pytest.raises(SerializationError, match="the function locked cannot be serialized"):
        function_of(locked)
    with pytest.raises(TypeError, match="callable"):
        function_of(5)


def test_what_cannot_be_loaded():
    with pytest.raises(DeserializationError, match="no_such_module"):
        load_function(b"\x80\x05cno_such_module\nf\n.")
    with pytest.raises(DeserializationError, match="not the one"):
        load_function(function_of(double).data, "0" * 24)


def test_labels_are_fit_for_keys():
    def odd():
        pass

    odd.__name__ = "a b\n(c)"
    assert function_label(odd) == "abc"
    odd.__name__ = "()"
    assert function_label(odd) == "task"
    odd.__name__ = "x" * 100
    assert len(function_label(odd)) == 48


def test_registered_modules_go_by_value():
    module = types.ModuleType("only_here")
    exec("def f(x): return x + 1\nclass C: n = 7", module.__dict__)
    sys.modules["only_here"] = module
    try:
        by_reference = function_of(module.f)
        assert b"only_here" in by_reference.data
        cloudpickle.register_pickle_by_value(module)
        partial = functools.partial(module.f)
        data = function_of(partial).data
        from redist.protocol import dumps

        value = dumps([module.C()]).inline
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["only_here"]
    assert load_function(data)(1) == 2
    from redist.protocol import loads_inline

    assert loads_inline(value)[0].n == 7


MAIN = """
import functools, sys
import numpy as np
from redist.protocol import *

CONSTANT = 10
def helper(x): return x + CONSTANT
def f(x): return helper(x)
class Thing:
    def __init__(self, n): self.n = n
    def get(self): return f(self.n)
class Trouble(Exception):
    def __init__(self, a, b): super().__init__(a, b); self.a = a

def put(name, data): sys.stdout.write(f"{name}={data.hex()}\\n")
put("function", function_of(f).data)
put("partial", function_of(functools.partial(f)).data)
put("method", function_of(Thing(5).get).data)
put("cls", function_of(Thing).data)
put("args", pack_arguments((Thing(1), [Thing(2)]), {"t": Thing}).data)
put("inline", dumps({"t": Thing(3)}).inline)
put("stream", b"".join(dumps([Thing(4), np.arange(100000)]).chunks()))
put("error", pack_error(Trouble(1, 2)))
put("key", key_of_call(function_of(f), (1,), {}).encode())
"""


def test_what_is_defined_in_main_goes_by_value(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    runs = [
        subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
        for _ in "ab"
    ]
    parts = {name: bytes.fromhex(data) for name, data in (line.split("=") for line in runs[0].splitlines())}
    (tmp_path / "parts").write_text(repr(parts))
    check = """
    import pathlib, sys
    from redist.protocol import *
    p = eval(pathlib.Path(sys.argv[1]).read_text())
    assert load_function(p["function"])(1) == 11
    assert load_function(p["partial"])(1) == 11
    assert load_function(p["method"])() == 15
    assert load_function(p["cls"])(6).get() == 16
    (thing, [other]), kwargs = unpack_arguments(p["args"])
    assert (thing.get(), other.get(), kwargs["t"](0).get()) == (11, 12, 10)
    assert loads_inline(p["inline"])["t"].get() == 13
    thing, array = loads(memoryview(p["stream"]))
    assert thing.get() == 14 and array.sum() == 4999950000 and not array.flags.writeable
    # and back again, from a process that knows the class by value only
    assert loads_inline(dumps([thing]).inline)[0].get() == 14
    error, _ = unpack_error(p["error"])
    assert type(error).__name__ == "Trouble" and error.a == 1, error
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(check), tmp_path / "parts"], check=True)
    keys = [run.splitlines()[-1] for run in runs]
    assert keys[0] == keys[1], "the same call gives the same key in every process"


def test_code_by_value_knows_its_file():
    def helper():
        return 1

    def outer():
        return helper, lambda: 2

    serialized = function_of(outer)
    again = load_function(serialized.data, serialized.hash)
    for function in (again, *again()):
        assert function.__code__.co_filename == __file__


def test_the_file_is_no_part_of_the_hash():
    made = []
    for name in ("/tmp/a.py", "/home/b.py"):
        namespace = {"__name__": "__main__"}
        exec(compile("def f():\n    return 5\n", name, "exec"), namespace)
        made.append((name, function_of(namespace["f"])))
    (_, one), (_, two) = made
    assert one.hash == two.hash
    assert one.data != two.data
    for name, function in made:
        assert load_function(function.data, function.hash).__code__.co_filename == name


def test_a_large_array_or_frame_in_a_closure():
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    for large in (np.ones(50_000), np.asfortranarray(np.ones((300, 300))), np.ones(100_000)[::2]):
        assert load_function(function_of(lambda large=large: float(large.sum())).data)() == large.sum()
    large = np.ones(1_000_000)
    function_of(lambda: large)  # imports what it needs
    tracemalloc.start()
    try:
        function = function_of(lambda: len(large))
        assert tracemalloc.get_traced_memory()[1] < 1.2 * function.nbytes  # one copy, which is kept
    finally:
        tracemalloc.stop()
    frame = pd.DataFrame({"a": range(50_000), "b": "x"})
    assert load_function(function_of(lambda: frame).data)().equals(frame)
