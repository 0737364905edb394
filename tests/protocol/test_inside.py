"""Names of Futures inside an inline value, without loading it."""

import collections
import dataclasses
import enum
import functools

import pytest

from redist.future import _bare, _rebuild
from redist.protocol import dumps, names_inside, register_future_type, use_secret


class Key:
    def __init__(self, name):
        self.name = name

    def _check(self):
        pass

    @property
    def _state(self):
        return self


# its bare form is that of a Future
register_future_type(Key, _bare, _rebuild)


@dataclasses.dataclass
class Record:
    future: object
    rest: object = None


class Colour(enum.Enum):
    RED = 1


class Odd(dict):
    def __reduce__(self):
        return Odd, (), self.__dict__, None, iter(self.items())


def exploding():
    raise AssertionError("loaded")


class Bomb:
    def __reduce__(self):
        return exploding, ()


def inside(value):
    payload = dumps(value)
    assert payload.inline is not None
    return names_inside(payload.inline)


@pytest.mark.parametrize(
    "around",
    [
        lambda a, b: [a, b],
        lambda a, b: {"x": a, Colour.RED: (b, b, a)},
        lambda a, b: Record(a, Record(b)),
        lambda a, b: collections.OrderedDict(x=a, y=collections.deque([b])),
        lambda a, b: collections.defaultdict(list, {1: [a], 2: [b]}),
        lambda a, b: functools.partial(print, a, end=b),
        lambda a, b: Odd(x=a, y=b),
        lambda a, b: [Bomb(), a, ValueError("v", b)],
        lambda a, b: {frozenset([Colour.RED]): [range(3), a], "s": {1, 2}, "b": bytearray(b"x"), "c": [b]},
    ],
)
def test_names_are_found(around):
    assert inside(around(Key("a"), Key("(1, 'b')"))) == ("a", "(1, 'b')")


def test_a_closure_goes_by_value():
    a = Key("a")
    assert inside(lambda: a) == ("a",)


def test_a_local_class_goes_by_value():
    class Local:
        kept = Key("a")

        def __init__(self):
            self.own = Key("b")

    assert sorted(inside(Local())) == ["a", "b"]


def test_without_futures():
    assert inside([1, "redist.future"]) == ()
    assert inside("a") == ()


def test_what_is_damaged_holds_none():
    data = dumps([Key("a"), Key("b")]).inline
    assert names_inside(data[:-5]) == ()
    assert names_inside(b"redist.future") == ()


def test_a_signed_value():
    value = [Key("a")]
    unsigned = dumps(value).inline
    use_secret("s")
    try:
        assert inside(value) == ("a",)
        assert names_inside(unsigned) == ()
    finally:
        use_secret(None)
