"""`Client.why`: every holder of a key; living clients are asked for the lines that made their Futures."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgpack

from redist.errors import RedistError
from redist.session.operations import Operation, Run
from redist.session.states import PENDING, FutureState
from redist.store import calls

if TYPE_CHECKING:
    from redist.client import Client
    from redist.diagnostics.why import Why

__all__ = ["Inbox", "unfinished", "why"]

#: How long another client may take to say where its Futures were made, s.
_PATIENCE = 0.5
_AT_A_TIME = 100


def why(client: Client, name: str) -> Operation[Why]:
    """Return every holder of the key with this wire name."""
    found: Why = yield Run(_why, (client, name))
    return found


def _why(client: Client, name: str) -> Why:
    from redist.diagnostics.why import WireReader
    from redist.diagnostics.why import why as explain

    deadline = time.monotonic() + client._timeout
    # of a server that takes no calls all the same can be read, in the other half of the time
    with contextlib.suppress(RedistError, TimeoutError):
        client._settle(client._timeout / 2)
    reader = WireReader(client._peers.command, client.session.endpoint.prefix)
    with client._peers.within(deadline):
        return explain(reader, name, client._inbox.ask)


def unfinished(client: Client, states: Iterable[FutureState]) -> Operation[str]:
    """Return what may keep `states` of `client`, to be put behind a message that they did not come in time."""
    standing: str = client._driver.links.standing()
    pending = [state for state in states if state.status == PENDING]
    if standing or not pending:
        return standing
    restricted = next((state.name for state in pending if state.task is not None and state.task.cls), None)
    run = (
        Run(_no_worker, (client, pending[0].name))
        if restricted is None
        else Run(_queued, (client, restricted))
    )
    why: str = yield run
    return why


def _no_worker(client: Client, name: str) -> str:
    """Say that there is no worker, or why none takes tasks; empty if one does, or if that cannot be told soon. Blocks."""
    from redist.diagnostics.memory import cannot_work

    with contextlib.suppress(RedistError), client._peers.within(time.monotonic() + _PATIENCE):
        workers = client._peers.fields("workers")
        if not workers:
            return " (no worker is registered)"
        why = cannot_work(client._peers, workers) if len(workers) <= _AT_A_TIME else ""
        state = client._peers.field(f"key:{name}", "state") or b"" if why else b""
        # a worker that is paused goes on with what it runs
        if why and not (state.startswith(b"processing") and " not heard of " not in why):
            return f" ({why})"
    return ""


def _queued(client: Client, name: str) -> str:
    """Return what a queued task waits for; empty if that cannot be told soon. Blocks."""
    from redist.diagnostics.standing import standing
    from redist.diagnostics.why import WireReader

    reader = WireReader(client._peers.command, client.session.endpoint.prefix)
    with contextlib.suppress(RedistError), client._peers.within(time.monotonic() + _PATIENCE):
        record = reader.hash(f"key:{name}")
        if record.get("state", "").startswith("queued"):
            return f" ({standing(reader, record)})"
    return ""


class Inbox:
    """Control messages between clients: msgpack lists in the inboxes of the namespace.

    ====================================== ==========================================================================
    ``["sites", name, asker, token]``      where were your Futures of this key made?
    ``["made", token, [line, time]...]``   the answer; the time is in seconds of the epoch
    ``["ran", ...]``, ``["unknown", ...]`` answers of executors, see `redist.running`
    ====================================== ==========================================================================

    Parameters
    ----------
    client : Client
        Whose.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        #: by token, None until it comes
        self._answers: dict[str, list[tuple[str, float]] | None] = {}
        self._arrived = threading.Condition()

    def ask(self, ordinal: int, name: str) -> list[tuple[str, float]]:
        """Return where the client `ordinal` made its Futures of a key, and when; blocks, not in the loop."""
        client = self._client
        if ordinal == client.session.ordinal:
            return self._lines(name)
        token = secrets.token_hex(8)
        message = msgpack.packb(["sites", name, client.session.ordinal, token])
        self._answers[token] = None
        try:
            client._post_from_thread(calls.send([ordinal], message))
            with self._arrived:
                self._arrived.wait_for(lambda: self._answers[token] is not None, _PATIENCE)
        except RedistError:
            pass
        finally:
            answer = self._answers.pop(token)
        return answer or []

    def look(self) -> None:
        """Read the inbox and act on it; blocks, not under the lock."""
        client = self._client
        inbox = f"{client.session.endpoint.prefix}inbox:{client.session.ordinal}"
        with contextlib.suppress(RedistError):
            while messages := client._peers.command("LPOP", inbox, _AT_A_TIME):
                for data in messages:
                    self.obey(msgpack.unpackb(data))

    def obey(self, message: list[Any]) -> None:
        """Act on one message."""
        match message:
            case ["sites", str(name), int(asker), str(token)]:
                answer = msgpack.packb(["made", token, *self._lines(name)])
                self._client._post_from_thread(calls.send([asker], answer))
            case ["made", str(token), *lines]:
                with self._arrived:
                    if token in self._answers:  # else it is late
                        self._answers[token] = [(str(line), float(since)) for line, since in lines]
                        self._arrived.notify_all()
            case ["ran", str(token), int(executor), int(ok), bytes(data)]:
                self._client._runs.answered(token, executor, (bool(ok), data))
            case ["unknown", str(token), int(executor)]:
                self._client._runs.unheard(token, executor)

    def _lines(self, name: str) -> list[tuple[str, float]]:
        with self._client.session.lock:
            state = self._client.session.states.get(name)
            self._client.session.ledger.drain()
            sites = state.sites if state is not None else ()
        self._client._wake_releases()
        return [(f"{file}:{line}", since) for file, line, since in sites]
