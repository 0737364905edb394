"""Where code that travels by value was written.

cloudpickle leaves file names out, for the pickle of a function (and with it the keys of its calls) is to be the same
wherever its file lies. The pickle has numbers in their place, and the names follow behind its end, outside of its hash.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, cast

import msgpack

__all__ = ["Files", "make_code", "split", "using"]

_MAGIC = b"\0files"
_LENGTH = struct.Struct("<I")
_LONGEST = 400
_local = threading.local()


class Files:
    """The file names of code objects, in the order in which a pickler meets them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def reduce(self, code: CodeType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what rebuilds `code`; `reduced` is how cloudpickle does."""
        name = code.co_filename
        if not name.startswith("<"):
            name = os.path.abspath(name)
        return make_code, (self._numbers.setdefault(name[-_LONGEST:], len(self._numbers)), *reduced[1])

    def trailer(self) -> bytes:
        """Return the bytes that follow the pickle."""
        if not self._numbers:
            return b""
        names: bytes = msgpack.packb(list(self._numbers), unicode_errors="surrogatepass")
        return names + _LENGTH.pack(len(names)) + _MAGIC


def split(data: bytes | memoryview) -> tuple[bytes | memoryview, Sequence[str]]:
    """Return a pickle without its trailer, and the names in that."""
    if bytes(data[-len(_MAGIC) :]) != _MAGIC:  # a pickle ends with a dot
        return data, ()
    end = len(data) - len(_MAGIC) - _LENGTH.size
    begin = end - _LENGTH.unpack_from(data, end)[0]
    names = msgpack.unpackb(data[begin:end], unicode_errors="surrogatepass")
    return data[:begin], cast("list[str]", names)


@contextmanager
def using(names: Sequence[str]) -> Iterator[None]:
    """Have code that is unpickled inside in this thread be of these files."""
    before = getattr(_local, "names", ())
    _local.names = names
    try:
        yield
    finally:
        _local.names = before


def make_code(number: int, *args: Any) -> CodeType:
    """Return a code object of the file with this number."""
    code = CodeType(*args)
    names = getattr(_local, "names", ())
    return code.replace(co_filename=names[number]) if number < len(names) else code
