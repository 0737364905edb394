"""Operations run by a thread that blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redist.session.operations import (
    Ask,
    AskAll,
    Collect,
    Operation,
    Post,
    Request,
    Run,
    Send,
    Sendable,
    Sent,
    Until,
)
from redist.session.states import Waiter
from redist.store.calls import Call

__all__ = ["BlockingRunner"]

T = TypeVar("T")


class BlockingRunner:
    """Runs operations by means of blocking calls and waits, which a driver has."""

    on_block: Callable[[], object] | None
    on_unblock: Callable[[], object] | None

    def post(self, call: Call) -> None:
        """Send a call and go on."""
        raise NotImplementedError

    def call_all(
        self,
        calls: Sequence[Sendable],
        timeout: float | None = None,
        *,
        patient: bool = False,
        stays: bool = False,
    ) -> list[list[Any]]:
        """Send calls together and return their replies."""
        raise NotImplementedError

    def send_all(self, calls: Sequence[Sendable]) -> Sent:
        """Send calls together and go on."""
        raise NotImplementedError

    def collect(
        self, sent: Sent, timeout: float | None = None, *, patient: bool = False, stays: bool = False
    ) -> list[Any]:
        """Return the replies to what was sent."""
        raise NotImplementedError

    def limit(self, timeout: float | None) -> tuple[float | None, bool]:
        """Return how long to wait for replies, and whether from the last thing on that the server did for us."""
        raise NotImplementedError

    def wait(self, what: Waiter, timeout: float | None = None) -> bool:
        """Wait until `what` is ready."""
        raise NotImplementedError

    def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end and return what it returns."""
        request: Request | None = None
        value: Any = None
        error: BaseException | None = None
        try:
            while True:
                request = operation.send(value) if error is None else operation.throw(error)
                value = error = None
                try:
                    value = self.perform(request)
                except BaseException as raised:
                    error = raised
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            # or their tracebacks refer to this frame, and keep the caller's values until they are collected
            request = value = error = None

    def perform(self, request: Request) -> Any:
        """Do what an operation asks for, and return the outcome."""
        kind = type(request)
        if kind is Run:
            return request.function(*request.args)  # type: ignore[union-attr]
        if kind is Post:
            return self.post(request.call)  # type: ignore[union-attr,arg-type]
        if kind is Send:
            return self.send_all(request.calls)  # type: ignore[union-attr]
        block = self.on_block
        if block is None:
            return self._await(request)
        if kind is Until and request.waiter.ready():  # type: ignore[union-attr]
            return True
        if kind is Collect and request.sent.outcome.ready():  # type: ignore[union-attr]
            return request.sent.outcome.replies  # type: ignore[union-attr]
        block()
        try:
            return self._await(request)
        finally:
            if self.on_unblock is not None:
                self.on_unblock()

    def _await(self, request: Request) -> Any:
        if isinstance(request, Until):
            return self.wait(request.waiter, request.timeout)
        assert isinstance(request, Ask | AskAll | Collect)
        timeout, patient = self.limit(request.timeout)
        if isinstance(request, Collect):
            return self.collect(request.sent, timeout, patient=patient)
        calls = [request.call] if isinstance(request, Ask) else request.calls
        replies = self.call_all(calls, timeout, patient=patient, stays=request.stays) if calls else []
        return replies[0] if isinstance(request, Ask) else replies
