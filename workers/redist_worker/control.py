"""Messages to a worker in its inbox.

A message is a msgpack list, put there by `redist.store.calls.send`:

=================================================== =================================================================
``["kill", executor ordinal...]``             kill these executors, or all; successors are started
``["replace", executor ordinal...]``          the same; nobody is blamed for what runs
``["interrupt", executor ordinal, attempt]``  kill this executor if it runs this attempt; nobody is blamed
``["restart"]``                               replace the executors that were started before the last restart
``["close"]``                                 stop in good order
``["copy", name, attempt, nbytes, addresses, ...]``  bring copies here, each from one of these data servers
``["retire", close]``                         get no more tasks, and if `close` end when all is done
=================================================== =================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgpack

from redist.errors import RedistError
from redist.store.copying import Order, not_copied, parse_order
from redist.store.portions import portions

if TYPE_CHECKING:
    from redist.memory.fetcher import Fetcher
    from redist.store.side import Side
    from redist_worker.worker import Worker

__all__ = ["Control"]

logger = logging.getLogger("redist.worker")

_AT_A_TIME = 100
#: Bytes of copies that are brought and reported together, and what each counts at least.
_BULK, _EACH = 64 << 20, 64 << 10
_START_SECONDS = 2.0
_LOOKS = (0.02, 0.1, 0.5, 2.0, 0.0)  # s until it is looked again whether what is to be interrupted runs


class Control:
    """Reads a worker's inbox and obeys.

    Parameters
    ----------
    worker : Worker
        Whose.
    side : Side
        For reading.
    fetcher : Fetcher
        For copies.
    """

    def __init__(self, worker: Worker, side: Side, fetcher: Fetcher) -> None:
        self._worker = worker
        self._side = side
        self._fetcher = fetcher
        self._again = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Read the inbox soon."""
        if self._reading is not None and not self._reading.done():
            self._again = True
        else:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            inbox = f"{self._side.endpoint.prefix}inbox:{self._worker.session.ordinal}"
            try:
                messages = await asyncio.to_thread(self._side.command, "LPOP", inbox, _AT_A_TIME)
            except RedistError as error:
                logger.warning("the inbox cannot be read: %s", error)
                return
            for data in messages or ():
                self._again = True
                try:
                    self._obey(msgpack.unpackb(data))
                except Exception:
                    logger.exception("a control message could not be obeyed")

    def _obey(self, message: list[Any]) -> None:
        op, *rest = message
        if op == "kill":
            self._spawn(self._kill("was killed on demand", [int(ordinal) for ordinal in rest]))
        elif op == "replace":
            why = "was replaced by restart_workers()"
            self._spawn(self._kill(why, [int(ordinal) for ordinal in rest], blame=False))
        elif op == "interrupt":
            self._spawn(self._interrupt(int(rest[0]), int(rest[1])))
        elif op == "restart":
            self._worker.executors.renew(self._worker.session.generation)
        elif op == "close":
            self._worker.stop()
        elif op == "copy":
            for part in portions(parse_order(rest), _BULK, lambda order: order.nbytes + _EACH):
                self._spawn(self._copy(part))
        elif op == "retire":
            self._worker.retire(close=bool(rest[0]))
        else:
            logger.warning("a control message of unknown kind %r", op)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kill(self, why: str, ordinals: list[int], *, blame: bool = True) -> None:
        executors = self._worker.executors
        until = asyncio.get_running_loop().time() + _START_SECONDS
        # one that has just been registered tells us its ordinal in a moment
        while ordinals and not all(executor.ordinal for executor in executors):
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.02)
        executors.kill(why, ordinals or None, blame=blame)

    async def _interrupt(self, ordinal: int, attempt: int) -> None:
        for pause in _LOOKS:  # what was handed out in this moment starts soon
            if self._worker.executors.interrupt(ordinal, attempt):
                return
            await asyncio.sleep(pause)

    async def _copy(self, orders: list[Order]) -> None:
        files = self._worker.home.directory.files
        here = {order for order in map(_copy_of, orders) if order in files}
        wanted = [(order.name, order.attempt, order.addresses) for order in orders]
        failed = []
        for order, outcome in zip(orders, await self._fetcher.fetch(wanted)):
            if outcome is not None:
                logger.info("a copy of %s could not be made here: %s", order.name, outcome)
                failed.append(order.name)
            elif _copy_of(order) in here:  # else it was reported when it came
                self._worker.replicas.fetched(order.name, order.attempt, order.nbytes)
        if failed:
            self._worker.post(not_copied(failed))


def _copy_of(order: Order) -> tuple[str, int]:
    return order.name, order.attempt
