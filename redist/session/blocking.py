"""Operations run by a thread that blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redist.session.operations import Ask, AskAll, Operation, Post, Request, Run, Sendable, Until
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

    def limit(self, timeout: float | None) -> tuple[float | None, bool]:
        """Return how long to wait for replies, and whether from the last thing on that the server did for us."""
        raise NotImplementedError

    def wait(self, what: Waiter, timeout: float | None = None) -> bool:
        """Wait until `what` is ready."""
        raise NotImplementedError

    def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end and return what it returns."""
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
            error = None  # or its traceback refers to this frame, and keeps the caller's values until they are collected

    def perform(self, request: Request) -> Any:
        """Do what an operation asks for, and return the outcome."""
        kind = type(request)
        if kind is Run:
            return request.function(*request.args)  # type: ignore[union-attr]
        if kind is Post:
            return self.post(request.call)  # type: ignore[union-attr,arg-type]
        block = self.on_block
        if block is None:
            return self._await(request)
        if kind is Until and request.waiter.ready():  # type: ignore[union-attr]
            return True
        block()
        try:
            return self._await(request)
        finally:
            if self.on_unblock is not None:
                self.on_unblock()

    def _await(self, request: Request) -> Any:
        if isinstance(request, Until):
            return self.wait(request.waiter, request.timeout)
        assert isinstance(request, Ask | AskAll)
        timeout, patient = self.limit(request.timeout)
        calls = [request.call] if isinstance(request, Ask) else request.calls
        replies = self.call_all(calls, timeout, patient=patient, stays=request.stays) if calls else []
        return replies[0] if isinstance(request, Ask) else replies
