"""`progress`: a bar of text that grows as Futures finish."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from redist.current import futures_of
from redist.dask_options import check_flags, check_loop
from redist.errors import NoClientError
from redist.hanging import hang_across
from redist.session.operations import Operation, Until
from redist.session.states import FINISHED, PENDING, FutureState, Waiter
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["progress"]

#: What ends a line that is drawn over an older one, which may have been longer.
_ERASE = "\x1b[K"


def progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    group_by: Callable[[Any], Hashable] | Literal["spans", "prefix"] = "prefix",
    **kwargs: Any,
) -> Any:
    """Show on standard output how many Futures are done, and return when all are; a coroutine with an asynchronous client.

    On a terminal a bar is drawn over and over; elsewhere only its last state is written.

    Parameters
    ----------
    *futures : Futures, or collections of them
        Which; of a Dask collection those in its graph, as `Client.persist` makes them. What they depend on is not counted.
    notebook, multi, complete, group_by : object
        Accepted for Dask's sake: there is one bar of text, in a notebook too.
    interval : float or str, optional
        Time between two looks; default 100 ms.
    width : int, optional
        Characters of the bar; default 40.

    Examples
    --------
    >>> progress(client.map(abs, range(10)))  # doctest: +SKIP
    [########################################] | 100% Completed | 0.1 s
    """
    if group_by not in ("spans", "prefix") and not callable(group_by):
        raise ValueError(f"group_by is 'spans', 'prefix' or a function, not {group_by!r:.80}")
    interval = seconds(kwargs.pop("interval", None))
    width = int(kwargs.pop("width", 40))
    check_loop(kwargs.pop("loop", None))
    check_flags(notebook=notebook, multi=multi, complete=complete)
    if kwargs:
        raise TypeError(f"progress has no arguments {sorted(kwargs)}")
    found = futures_of(list(futures))
    if not found:
        return None
    client = found[0].client
    if client is None:
        raise NoClientError("the Futures belong to no client; unpickle them where there is one")
    futures_of(found, client)  # refuses those that are cancelled
    owners = {future._state: future._client for future in found}
    bar = _Bar(list(owners), sys.stdout, width)
    return client._run(_watch(client, owners, bar, 0.1 if interval is None else interval))


class _Bar:
    """Draws how `states` stand."""

    def __init__(self, states: Sequence[FutureState], out: TextIO, width: int) -> None:
        self._states = states
        self._out = out
        self._width = width
        self._begun = time.monotonic()
        self._terminal = out.isatty()
        self._drawn = ""

    def _line(self, done: int) -> str:
        part = done / len(self._states)
        spent = time.monotonic() - self._begun
        return f"[{'#' * int(self._width * part):<{self._width}}] | {int(100 * part)}% Completed | {_words(spent)}"

    def draw(self, remaining: int) -> None:
        """Draw it again if it looks otherwise."""
        if not self._terminal:
            return
        line = self._line(len(self._states) - remaining)
        if line != self._drawn:
            self._drawn = line
            self._out.write(f"\r{line}{_ERASE}")
            self._out.flush()

    def end(self) -> None:
        """Draw it for the last time."""
        done = [state for state in self._states if state.status != PENDING]
        bad = sum(state.status != FINISHED for state in done)
        line = self._line(len(done)) + (f" | {bad} failed" if bad else "")
        self._out.write(f"\r{line}{_ERASE}\n" if self._terminal else f"{line}\n")
        self._out.flush()


def _watch(client: Client, owners: dict[FutureState, Client], bar: _Bar, interval: float) -> Operation[None]:
    waiter = Waiter()
    hung = hang_across(waiter, owners.items())
    try:
        while waiter.remaining > 0:
            bar.draw(waiter.remaining)
            yield Until(waiter, interval)
    finally:
        hung.drop()
        bar.end()


def _words(spent: float) -> str:
    if spent < 60:
        return f"{spent:.1f} s"
    minutes, rest = divmod(int(spent), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m {rest:02}s" if hours else f"{minutes}m {rest:02}s"
