"""One pickler for values, arguments and functions.

Plain pickle (protocol 5) first, with our `reducers`; cloudpickle when that fails, or when the pickle refers to something
that another process could not import: anything of ``__main__``, or of a module registered to be pickled by value.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

from redist.errors import RedistError
from redist.imported import imported
from redist.protocol.codes import Files
from redist.protocol.futures import Collector, future_reducers
from redist.protocol.reducers import reducer_of, register_imported, waiting
from redist.protocol.sizes import OUT_OF_BAND

if TYPE_CHECKING:
    from redist.protocol.gathered import Gathered

__all__ = ["BufferSink", "Pickled", "by_value_markers", "goes_by_value", "pickle_object"]

# A frame of the pickler ends soon after 64 KiB; longer chunks are a user's bytes, passed through uncopied.
_LONGEST_FRAME = 256 * 1024


class BufferSink:
    """Takes the out-of-band buffers of a pickle that are worth a place of their own."""

    buffers: list[memoryview | Gathered]
    #: whether `stand_in` may be used: the buffers get a place of their own
    takes_buffers = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: the object is pickled a second time."""
        self.buffers = []
        self._stand_ins: dict[int, tuple[pickle.PickleBuffer, memoryview | Gathered]] = {}

    def stand_in(self, memory: memoryview | Gathered) -> pickle.PickleBuffer:
        """Return a buffer to pickle in the place of read-only `memory`, or of memory that is not contiguous.

        Pickle notes that a buffer is read-only, and then no reader could have a writable copy of it.
        """
        buffer = pickle.PickleBuffer(bytearray(1))
        self._stand_ins[id(buffer)] = buffer, memory
        return buffer

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Take `buffer`, or return True to leave it in the pickle."""
        if self._stand_ins:
            known = self._stand_ins.get(id(buffer))
            if known is not None:
                self.buffers.append(known[1])
                return False
        try:
            raw = buffer.raw()
        except BufferError:  # neither C nor Fortran contiguous
            return True
        if raw.nbytes < OUT_OF_BAND:
            return True
        self.buffers.append(raw)
        return False


class Pickled(NamedTuple):
    """A pickle in pieces; large ``bytes`` objects and arrays inside it are pieces of their own, uncopied."""

    chunks: list[bytes | memoryview]
    nbytes: int


class _Chunks:
    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write


class _Pickler(pickle.Pickler):
    collector: Collector
    files: Files | None
    sink: BufferSink | None

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in future_reducers:
            return self.collector.reduce(obj)
        reducer = reducer_of(kind)
        return NotImplemented if reducer is None else reducer(obj, self.sink)


_MAIN = [b"__main__"]
_by_value_pickler: type[Any] | None = None


def pickle_object(
    obj: Any,
    collector: Collector,
    sink: BufferSink | None = None,
    *,
    by_value: bool = False,
    files: Files | None = None,
) -> Pickled:
    """Pickle `obj`.

    Parameters
    ----------
    obj : object
        Anything.
    collector : Collector
        Notes the Futures that are met.
    sink : BufferSink, optional
        Takes large buffers; without it everything is in the pickle.
    by_value : bool
        Do not try plain pickle first.
    files : Files, optional
        Notes the files of code that goes by value.

    Raises
    ------
    Exception
        Whatever the object's own code, pickle or cloudpickle raise.
    """
    if waiting:
        register_imported()
    if not by_value:
        try:
            pickled = _run(_Pickler, obj, collector, sink)
        except RedistError:
            raise
        except Exception as error:
            # A second try with cloudpickle takes lambdas, closures and local classes; its error is the clearer one.
            if isinstance(error, (RecursionError, MemoryError)):
                raise
        else:
            if not goes_by_value(pickled.chunks):
                return pickled
        collector.names.clear()
        if sink is not None:
            sink.reset()
    return _run(_cloudpickler(), obj, collector, sink, files)


def _run(
    pickler_class: type[Any],
    obj: Any,
    collector: Collector,
    sink: BufferSink | None,
    files: Files | None = None,
) -> Pickled:
    chunks: list[Any] = []
    pickler = pickler_class(_Chunks(chunks.append), 5, buffer_callback=sink)
    pickler.collector = collector
    pickler.files = files
    pickler.sink = sink if sink is not None and sink.takes_buffers else None
    with collector:
        pickler.dump(obj)
    for i, chunk in enumerate(chunks):
        if type(chunk) is pickle.PickleBuffer:  # a large array's, without a sink
            chunks[i] = chunk.raw()
    return Pickled(chunks, len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks)))


def goes_by_value(chunks: Sequence[bytes | memoryview]) -> bool:
    """Return whether a plain pickle refers to something that another process could not import."""
    for marker in by_value_markers():
        for chunk in chunks:
            if len(chunk) <= _LONGEST_FRAME and marker in bytes(chunk):
                return True
    return False


def by_value_markers() -> list[bytes]:
    """Return byte strings that a pickle contains if it refers to something that has to go by value."""
    if "__mp_main__" in sys.modules:  # the name under which multiprocessing's children know the main script
        import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
    module: Any = imported("cloudpickle")
    if module is None or not (registered := module.list_registry_pickle_by_value()):
        return _MAIN
    return [*_MAIN, *(name.encode() for name in registered)]


def _cloudpickler() -> type[Any]:
    global _by_value_pickler
    if _by_value_pickler is None:
        import cloudpickle

        class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
            collector: Collector
            files: Files | None
            sink: BufferSink | None

            def reducer_override(self, obj: Any) -> Any:
                kind = type(obj)
                if kind in future_reducers:
                    return self.collector.reduce(obj)
                if kind is CodeType and self.files is not None:
                    return self.files.reduce(obj, self.dispatch_table[CodeType](obj))
                reducer = reducer_of(kind)
                reduced = NotImplemented if reducer is None else reducer(obj, self.sink)
                return super().reducer_override(obj) if reduced is NotImplemented else reduced

        _by_value_pickler = ByValuePickler
    return _by_value_pickler
