import gc
import linecache
import pickle
import traceback
import weakref

import pytest

from protocol.helpers import FakeFuture
from redist import errors
from redist.protocol import RemoteTraceback, StandIn, pack_error, unpack_error
from redist.protocol.functions import load_function
from redist.protocol.task_errors import MAX_ERROR_BYTES
from redist.submitting import apply


def raised(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def there_and_back(error, key=None):
    data = pack_error(error, error.__traceback__, key)
    assert len(data) <= MAX_ERROR_BYTES
    return unpack_error(data)


def divide():
    return 1 / 0


def chained():
    try:
        divide()
    except ZeroDivisionError as error:
        raise KeyError("wrapped") from error


def in_context():
    try:
        divide()
    except ZeroDivisionError:
        raise KeyError("meanwhile")  # noqa: B904


def hidden():
    try:
        divide()
    except ZeroDivisionError:
        raise KeyError("alone") from None


class Required(Exception):
    def __init__(self, a, *, b):
        super().__init__(f"{a} {b}")
        self.a = a
        self.b = b


class Unpicklable(ValueError):
    def __init__(self, text):
        super().__init__(text)
        self.handle = (i for i in ())


class Noteless(ValueError):
    def add_note(self, note):
        raise RuntimeError("no")

    @classmethod
    def fail(cls):
        raise cls("x")


class Nasty(Exception):
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__

    def __reduce__(self):
        raise RuntimeError("no")

    @property
    def __notes__(self):
        raise RuntimeError("no")


def test_type_text_and_traceback_come_back():
    error, frames = there_and_back(raised(divide), key="inc-1")
    assert type(error) is ZeroDivisionError
    assert str(error) == "division by zero"
    assert [frame.name for frame in traceback.extract_tb(frames)] == ["raised", "divide"]
    assert traceback.extract_tb(frames)[-1].line == "return 1 / 0"
    with pytest.raises(ZeroDivisionError):
        raise error.with_traceback(frames)


def test_a_traceback_that_reads_the_same_here_is_shown_once():
    error, frames = there_and_back(raised(divide), key="inc-1")
    shown = "".join(traceback.format_exception(error.with_traceback(frames)))
    for text in ("Traceback", "return 1 / 0", "ZeroDivisionError", "in the task inc-1"):
        assert shown.count(text) == 1
    assert error.__cause__ is None


@pytest.mark.parametrize("change", ["", "# another version\n{}"])
def test_a_traceback_whose_source_is_not_here_is_shown_as_text(tmp_path, change):
    """The file is not on this host, or another version of it."""
    path = tmp_path / "theirs.py"
    source = "def theirs():\n    return 1 / 0\n"
    path.write_text(source)
    space = {}
    exec(compile(source, str(path), "exec"), space)
    data = pack_error(raised(space["theirs"]), key="inc-1")
    path.write_text(change.format(source))
    linecache.clearcache()
    error, frames = unpack_error(data)
    shown = "".join(traceback.format_exception(error.with_traceback(frames)))
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in the task inc-1" in shown
    assert shown.count("return 1 / 0") == 1


def test_an_error_that_takes_no_notes_is_shown_as_text():
    error, _ = there_and_back(raised(Noteless.fail), key="inc-1")
    assert type(error) is Noteless
    assert "in the task inc-1" in str(error.__cause__)


def test_the_chain_is_kept():
    error, _ = there_and_back(raised(chained))
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    error, _ = there_and_back(raised(in_context))
    assert error.__cause__ is None
    assert isinstance(error.__context__, ZeroDivisionError)
    assert "The above exception was the direct cause" in "".join(traceback.format_exception(error))
    error, _ = there_and_back(raised(hidden))
    assert error.__cause__ is None
    assert "division" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("function", [chained, in_context])
def test_a_chain_is_shown_once(function):
    error, frames = there_and_back(raised(function), key="inc-1")
    shown = "".join(traceback.format_exception(error.with_traceback(frames)))
    assert shown.count("ZeroDivisionError: ") == 1
    assert shown.count("KeyError: ") == 1
    assert shown.count("return 1 / 0") == 1
    assert shown.count("in the task inc-1") == 1


def test_a_middle_link_has_its_frames():
    def outer():
        try:
            chained()
        except KeyError as error:
            raise ValueError("outer") from error

    error, frames = there_and_back(raised(outer))
    shown = "".join(traceback.format_exception(error.with_traceback(frames)))
    assert shown.count("in chained\n") == 2  # where it was caught, and where it was raised again
    for text in ("ZeroDivisionError: ", "KeyError: ", "ValueError: "):
        assert shown.count(text) == 1


def test_frames_of_redist_are_left_out():
    error, frames = there_and_back(raised(apply, divide))
    assert [frame.name for frame in traceback.extract_tb(frames)] == ["raised", "divide"]
    assert "submitting.py" not in "".join(traceback.format_exception(error))
    error, frames = there_and_back(raised(load_function, b"nonsense").with_traceback(None))
    assert isinstance(error, errors.DeserializationError)


def test_a_chain_that_bites_its_tail():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    error, _ = there_and_back(one)
    assert str(error) == "one"
    assert str(error.__cause__) == "two"


def test_notes_and_attributes_are_kept():
    error = ValueError("x")
    error.add_note("a note")
    error.code = 7
    result, _ = there_and_back(error)
    assert result.__notes__ == ["a note"]
    assert result.code == 7


def test_required_arguments():
    error, _ = there_and_back(Required(1, b=2))
    assert type(error) is Required
    assert (error.a, error.b, str(error)) == (1, 2, "1 2")


def test_groups():
    group = ExceptionGroup("several", [ValueError(1), raised(chained)])
    error, _ = there_and_back(group)
    assert type(error) is ExceptionGroup
    assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]


def test_a_stand_in():
    error, _ = there_and_back(Unpicklable("the text"))
    assert isinstance(error, StandIn)
    assert isinstance(error, ValueError)
    assert type(error).__name__ == "Unpicklable"
    assert str(error) == "the text"


def test_a_class_that_is_not_here(monkeypatch):
    data = pack_error(Required(1, b=2))
    monkeypatch.delitem(globals(), "Required")
    error, _ = unpack_error(data)
    assert isinstance(error, StandIn)
    assert type(error).__name__ == "Required"
    assert str(error) == "1 2"


@pytest.mark.parametrize(
    "error",
    [
        Nasty(),
        ValueError("x" * 10_000_000),
        ValueError(bytes(10_000_000)),
        ValueError("lone surrogate \ud800"),
        KeyboardInterrupt(),
        SystemExit(3),
        OSError(2, "No such file", "path"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "reason"),
        StopIteration(1),
        type("N" * 100_000, (Exception,), {})(),
        errors.FutureCancelledError("key", "why"),
        errors.DatasetNotFound("no dataset"),
    ],
    ids=lambda error: type(error).__name__[:20],
)
def test_never_fails(error):
    result, _ = there_and_back(error)
    assert type(result).__name__[:100] == type(error).__name__[:100]
    if not isinstance(error, Nasty):
        assert str(result)[:20] == str(error)[:20]


def test_deep_tracebacks_and_long_chains():
    def deep(n):
        if n:
            deep(n - 1)
        divide()

    error, frames = there_and_back(raised(deep, 500))
    assert type(error) is ZeroDivisionError
    assert frames is not None
    error = ValueError("0")
    for i in range(300):
        error, error.__cause__ = ValueError(str(i) * 500), error
    result, _ = there_and_back(error)
    assert isinstance(result.__cause__, ValueError)


def test_no_futures_and_no_frames_are_kept():
    class Big:
        pass

    def fail():
        big = Big()
        refs.append(weakref.ref(big))
        raise ValueError(FakeFuture("f"), [FakeFuture("g")])

    refs = []
    data = pack_error(raised(fail))
    error, frames = unpack_error(data)
    assert error.args == ("<Future: f>", ["<Future: g>"])
    gc.collect()
    assert refs[0]() is None
    while frames is not None:
        assert frames.tb_frame.f_back is None
        frames = frames.tb_next


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", pickle.dumps(5), pickle.dumps({"text": "", "frames": []})]
)
def test_damaged_errors(data):
    error, _ = unpack_error(data)
    assert isinstance(error, errors.DeserializationError)


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"!DataLost\0the copy on w1 is gone", errors.DataLost, "the copy on w1 is gone"),
        (b"!DatasetNotFound\0no such", errors.DatasetNotFound, "no such"),
        (b"!FutureCancelledError\0key", errors.FutureCancelledError, "'key' cancelled for reason: unknown"),
        (b"!Unknown\0text \xff", errors.RedistError, "Unknown: text \ufffd"),
        (b"!concurrent\0x", errors.RedistError, "concurrent: x"),
        (b"!DataLost", errors.DataLost, ""),
    ],
)
def test_what_the_store_says(data, kind, text):
    error, frames = unpack_error(data)
    assert type(error) is kind
    assert str(error) == text
    assert frames is None
