"""What the runner needs of the executor's session, by the thread driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redist.session.outcome import Outcome

if TYPE_CHECKING:
    from redist.session.thread_driver import ThreadDriver
    from redist.store.calls import Call

__all__ = ["DriverLane"]

_LOOK_AGAIN = 0.25


class DriverLane:
    """A `redist_worker.threads.Lane`.

    Parameters
    ----------
    driver : ThreadDriver
        The driver of an executor's session.
    """

    def __init__(self, driver: ThreadDriver) -> None:
        self.wait = driver.wait
        self._driver = driver
        self._session = driver.session

    def call(self, call: Call) -> Any:
        """Send a call and wait for its reply."""
        driver = self._driver
        outcome = Outcome(1)
        with driver.lock:
            driver.check_alive()
            # Behind the tasks and counts of this executor's own client: a result may contain their Futures.
            self._session.enqueue(call, *outcome.of(0))
            driver.push_out()
        # looked at now and then: a session that fails for good answers nothing
        while not driver.wait(outcome, _LOOK_AGAIN, replies=True):
            driver.check_alive()
            if self._session.failure is not None:
                raise self._session.failure
        return outcome.result()[0]

    def post(self, call: Call, on_reply: Callable[[Any], None]) -> None:
        """Send a call; `on_reply` is called with its reply by whoever reads."""
        self._driver.post(call, on_reply)

    def enqueue(self, call: Call, on_reply: Callable[[Any], None]) -> None:
        """`post`, from within a callback: the session's lock is held, and its driver sends when the callback is over."""
        self._session.enqueue(call, on_reply)

    @property
    def failed(self) -> bool:
        """Whether the session will never work again."""
        return self._session.failure is not None
