"""Errors of tasks: to bytes at the executor, back at the client. Neither direction ever fails.

Every link of the chain is pickled by itself; what does not survive that is rebuilt from class and attributes, or, where
the class cannot be had, stands in under the original's name. Frames are never kept, and a Future in an exception becomes
its text.
"""

from __future__ import annotations

import builtins
import linecache
import os
import pickle
import traceback as tracebacks
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

from redist import errors
from redist.protocol.futures import Collector, name_of
from redist.protocol.names import type_name
from redist.protocol.pickling import pickle_object
from redist.protocol.signing import open_signed, sign_blob

__all__ = ["MAX_ERROR_BYTES", "RemoteTraceback", "StandIn", "pack_error", "unpack_error"]

MAX_ERROR_BYTES = 64 * 1024
"""Longest packed error."""

_MAX_TEXT = 12 * 1024
_MAX_PICKLE = 16 * 1024
_MAX_LINKS = 12
_MAX_FRAMES = 64
_MAX_FRAMES_OF_LINK = 16
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_WORKER = f"{os.sep}redist_worker{os.sep}"


class RemoteTraceback(Exception):
    """The traceback of a task as text, shown as the cause of the exception that it raised.

    Parameters
    ----------
    text : str
        The formatted traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class StandIn(errors.RedistError):
    """Base of the exceptions that stand in for one whose class cannot be loaded here.

    The class of a stand-in carries the original's name, derives from the builtin exception that the original derived from,
    and has the original's text.
    """

    _text = ""

    def __str__(self) -> str:
        return self._text


def pack_error(exc: BaseException, traceback: TracebackType | None = None, key: str | None = None) -> bytes:
    """Return an exception as bytes, at most `MAX_ERROR_BYTES`.

    Parameters
    ----------
    exc : BaseException
        The exception, with its causes, contexts and notes.
    traceback : traceback, optional
        Where it came from; its own by default.
    key : str, optional
        The task's key, named in the text.
    """
    if traceback is None:
        traceback = exc.__traceback__
    for max_pickle, max_links, max_text in (
        (_MAX_PICKLE, _MAX_LINKS, _MAX_TEXT),
        (_MAX_PICKLE // 4, _MAX_LINKS, _MAX_TEXT),
        (2048, 3, 4096),
        (0, 0, 2048),
    ):
        try:
            root = _root(exc, max_links)
            record = {
                "text": _formatted(exc, traceback, key, max_text)
                if root is exc
                else _formatted_frames(root, key, max_text),
                "key": key,
                "frames": _frames(traceback)[: _MAX_FRAMES if max_links else 0],
                "error": _pack_link(exc, max_pickle, max_text, max_links, set(), {id(exc), id(root)}),
            }
            packed = sign_blob(b"error", pickle.dumps(record, 5))
        except Exception:  # noqa: S112 - a user's exception can break anything: its own str, repr or attributes
            continue
        if len(packed) <= MAX_ERROR_BYTES:
            return packed
    name = _cut(type(exc).__name__, 200)
    return sign_blob(
        b"error", pickle.dumps({"text": name, "frames": [], "error": {"name": name, "message": ""}}, 5)
    )


def unpack_error(data: bytes | memoryview) -> tuple[BaseException, TracebackType | None]:
    """Return an exception and a traceback that shows the task's frames.

    The exception has its chain; at the end of it hangs a `RemoteTraceback` with the original traceback of the first of the
    chain as text, and its own ``__traceback__`` is empty. Where there is no chain and the files of the task read the
    same here, a text would say everything twice: then the exception has the traceback, and a note names the task.

    Parameters
    ----------
    data : bytes
        What `pack_error` returned, or what the store itself says: ``!CLASS\\0message``, a class of `redist.errors`.
    """
    try:
        if data[:1] == b"!":
            return _from_store(bytes(data)), None
        record = pickle.loads(open_signed(b"error", data))
        exc = _unpack_link(record["error"])
        text, frames = record["text"], record["frames"]
        traceback = _traceback_of(frames)
        root = _root(exc, _MAX_LINKS)
        if root is exc and _reads_the_same(text, frames) and _noted(exc, record.get("key")):
            exc.__traceback__ = traceback  # who raises it without the traceback shows it, too
        elif text:
            root.__cause__ = RemoteTraceback(text)
        return exc, traceback
    except errors.UnsignedPayload as refused:
        return refused, None
    except Exception as error:
        return errors.DeserializationError(f"the task failed, but its error cannot be read: {error}"), None


def _reads_the_same(text: str, frames: list[tuple[str, str, int]]) -> bool:
    """Return whether a traceback of `frames` shows here the lines of source that `text` shows, and there are some."""
    for filename, name, line in frames:
        _, head, rest = text.partition(f'  File "{filename}", line {line}, in {name}\n')
        shown = rest.partition("\n")[0] if rest.startswith("    ") else ""
        if not head or shown.strip() != linecache.getline(filename, line).strip():
            return False
    return bool(frames)


def _noted(exc: BaseException, key: str | None) -> bool:
    """Name the task in a note; return whether that was possible."""
    try:
        if key is not None:
            exc.add_note(f"in the task {key}")
    except Exception:
        return False
    return True


def _pack_link(
    exc: BaseException, max_pickle: int, max_text: int, links: int, seen: set[int], shown: set[int]
) -> dict[str, Any]:
    """Return one exception and what it came from; `shown`: whose frames are told elsewhere."""
    seen.add(id(exc))
    kind = type(exc)
    link: dict[str, Any] = {
        "name": _cut(kind.__name__, 200),
        "module": _cut(str(kind.__module__), 200),
        "base": next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "Exception"),
        "message": _cut(_text_of(exc), max_text),
        "suppress": exc.__suppress_context__,
    }
    notes = getattr(exc, "__notes__", None)
    if isinstance(notes, list):
        link["notes"] = [_cut(note, 2048) for note in notes[:16] if isinstance(note, str)]
    if id(exc) not in shown:
        link["frames"] = _frames(exc.__traceback__)[:_MAX_FRAMES_OF_LINK]
    pickled = _pickle_bounded(_Reduced(exc), max_pickle)
    if pickled is not None and _loads_again(pickled, kind):
        link["exc"] = pickled
    else:
        parts = _pickle_bounded((kind, exc.args, exc.__dict__), max_pickle)
        if parts is not None:
            link["parts"] = parts
    for name in ("cause", "context"):
        other = getattr(exc, f"__{name}__")
        if other is not None and links > 0 and id(other) not in seen:
            link[name] = _pack_link(other, max_pickle, max_text, links - 1, seen, shown)
    return link


class _Reduced:
    """An exception on its way, pickled as it says itself: tblib, where installed, would pickle its traceback and chain."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._exc.__reduce_ex__(5)


def _pickle_bounded(obj: Any, limit: int) -> bytes | None:
    if not limit:
        return None
    try:
        pickled = pickle_object(obj, Collector(name_of, instead=_future_text))
    except Exception:
        return None
    return b"".join(pickled.chunks) if pickled.nbytes <= limit else None


def _future_text(future: Any) -> tuple[Any, ...]:
    return str, (f"<Future: {future.name}>",)


def _loads_again(pickled: bytes, kind: type) -> bool:
    """Return whether the pickle gives the exception again: one with required arguments often does not."""
    if kind.__module__ == "builtins":
        return True
    try:
        return isinstance(pickle.loads(pickled), kind)
    except Exception:
        return False


def _unpack_link(link: dict[str, Any]) -> BaseException:
    exc = _rebuilt(link)
    if exc is None:
        exc = _stand_in(link)
    notes = link.get("notes")
    if notes and getattr(exc, "__notes__", None) != notes:
        exc.__notes__ = notes
    if "context" in link:
        exc.__context__ = _unpack_link(link["context"])
    if "cause" in link:
        exc.__cause__ = _unpack_link(link["cause"])
    if "frames" in link:
        exc.__traceback__ = _traceback_of(link["frames"])
    exc.__suppress_context__ = link.get("suppress", False)
    return exc


def _rebuilt(link: dict[str, Any]) -> BaseException | None:
    try:
        exc: Any = None
        if "exc" in link:
            exc = pickle.loads(link["exc"])
        elif "parts" in link:
            kind, args, attributes = pickle.loads(link["parts"])
            exc = kind.__new__(kind, *args)
            exc.args = args
            exc.__dict__.update(attributes)
    except Exception:
        return None
    return exc if isinstance(exc, BaseException) else None


def _stand_in(link: dict[str, Any]) -> BaseException:
    name = link["name"]
    base = getattr(builtins, link.get("base", ""), Exception)
    attributes = {"__module__": link.get("module", "builtins"), "_text": link["message"]}
    if isinstance(base, type) and issubclass(base, Exception) and not issubclass(base, BaseExceptionGroup):
        try:
            kind: type[StandIn] = type(name, (StandIn, base), attributes)
            exc = kind.__new__(kind)
            exc.args = (link["message"],)
            return exc
        except TypeError:  # layouts that do not go together
            pass
    plain: type[StandIn] = type(name, (StandIn,), attributes)
    return plain(link["message"])


def _from_store(data: bytes) -> BaseException:
    name, _, message = data[1:].decode("utf-8", "replace").partition("\0")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.RedistError):
        try:
            return kind(message)
        except TypeError:
            pass
    return errors.RedistError(f"{name}: {message}" if message else name)


def _root(exc: BaseException, links: int) -> BaseException:
    """Return the first of the chain that a printed `exc` shows, at most so many links away."""
    seen = {id(exc)}
    for _ in range(links):
        before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        if before is None or id(before) in seen:
            break
        exc = before
        seen.add(id(exc))
    return exc


def _formatted(exc: BaseException, traceback: TracebackType | None, key: str | None, limit: int) -> str:
    try:
        told = tracebacks.TracebackException(type(exc), exc, traceback, compact=True)
        told.stack[:] = _of_users(told.stack)
        text = "".join(told.format(chain=False))
    except Exception:
        text = f"{type(exc).__name__}: {_text_of(exc)}\n"
    return _cut(_headed(text, key), limit)


def _formatted_frames(exc: BaseException, key: str | None, limit: int) -> str:
    """Return the traceback of the first of a chain, which is printed after it and tells what it is."""
    stack = tracebacks.StackSummary.from_list(_of_users(tracebacks.extract_tb(exc.__traceback__)))
    text = "".join(["Traceback (most recent call last):\n", *stack.format()]) if stack else ""
    return _cut(_headed(text, key), limit)


def _headed(text: str, key: str | None) -> str:
    return text if key is None else f"in the task {key}\n{text}"


def _of_users(stack: list[tracebacks.FrameSummary]) -> list[tracebacks.FrameSummary]:
    """Return the frames without those of redist; all, if there are no others."""
    return [frame for frame in stack if not _is_ours(frame.filename)] or stack


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or _WORKER in filename


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return f"<{type_name(type(exc))} whose str() fails>"


def _cut(text: str, limit: int) -> str:
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... {len(text) - limit} characters left out ...\n{text[-limit // 2 :]}"


def _frames(traceback: TracebackType | None) -> list[tuple[str, str, int]]:
    frames: list[tuple[str, str, int]] = []
    while traceback is not None and len(frames) < 10_000:
        code = traceback.tb_frame.f_code
        frames.append((_cut(code.co_filename, 400), _cut(code.co_name, 200), traceback.tb_lineno or 0))
        traceback = traceback.tb_next
    return [frame for frame in frames if not _is_ours(frame[0])] or frames


def _traceback_of(frames: list[tuple[str, str, int]]) -> TracebackType | None:
    """Return a traceback that prints as the original did: frames of the same files, names and lines."""
    result: TracebackType | None = None
    for filename, name, line in reversed(frames):
        frame = _frame(filename, name)
        result = TracebackType(result, frame, frame.f_lasti, max(line, 1))
    return result


def _suspended() -> Iterator[None]:
    yield


def _without_lines(code: CodeType) -> CodeType:
    """Return `code` with a line table that says "no location" (0b11111, a run of 8 units a byte) everywhere."""
    units = len(code.co_code) // 2
    runs = [8] * (units // 8) + ([units % 8] if units % 8 else [])
    return code.replace(co_linetable=bytes([0b11111 << 3 | (run - 1) for run in runs]))


_FRAME_CODE = _without_lines(_suspended.__code__)


def _frame(filename: str, name: str) -> FrameType:
    # A generator that never runs has a frame without callers, so nothing of ours is kept alive by a traceback; and without
    # a line table the traceback's own line numbers count, and nothing false is underlined.
    code = _FRAME_CODE.replace(co_filename=filename, co_name=name, co_qualname=name)
    generator: Any = FunctionType(code, {"__name__": name, "__file__": filename})()
    frame: FrameType = generator.gi_frame
    return frame
