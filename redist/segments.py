"""Payloads that are not inline: loaded where they lie, or fetched from another host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redist.current import as_current
from redist.errors import RedistError, SegmentError, SegmentGone
from redist.loading import load_payload, load_received, load_small
from redist.memory.arena import LARGEST
from redist.memory.headers import path_of

if TYPE_CHECKING:
    from redist.client import Client
    from redist.memory.broker_client import BrokerClient
    from redist.memory.data_client import DataClient
    from redist.memory.receive import Received
    from redist.peers import Peer, Peers

__all__ = ["Segments", "Trouble", "Unread"]

#: So many small payloads are looked up together.
_MANY = 16
_LOOK = 10.0  # s that a worker may take to look at a file, and to tell the server


class Trouble:
    """A payload that could not be had this time, or, if that is `lasting`, not at all."""

    __slots__ = ("error", "lasting")

    def __init__(self, error: RedistError, *, lasting: bool = False) -> None:
        self.error = error
        self.lasting = lasting


class Unread(NamedTuple):
    """A payload that could not be read on this host.

    Attributes
    ----------
    name, where : str
        Wire name of the key, and its copies as `Peers.copies` takes them.
    wrong : SegmentError or None
        Why a copy that is here could not be read, if it is not gone.
    again : bool
        Whether it was looked for before in the same places, and they were asked for again since.
    """

    name: str
    where: str
    wrong: SegmentError | None = None
    again: bool = False


class _Loading:
    """Loads values that come from other hosts, each as soon as it is here: others are on their way meanwhile."""

    def __init__(self, writable: bool) -> None:
        self._writable = writable
        self._values: dict[str, Any] = {}
        self._errors: dict[str, Exception] = {}

    def load(self, received: Received) -> None:
        """Load a value; never raises, since that would break off the transfer of others."""
        name = received.header.name
        try:
            self._values[name] = load_received(received, writable=self._writable)
        except Exception as error:
            self._errors[name] = error

    def value(self, name: str) -> Any:
        """Return a value that was loaded, or raise what loading it raised."""
        if name in self._errors:
            try:
                raise self._errors.pop(name)
            finally:
                self._errors.clear()  # their tracebacks lead here: what they keep would stay
        return self._values.pop(name)


class Segments:
    """Loads payloads that are not inline. Safe to use from several threads; blocks.

    Parameters
    ----------
    peers : Peers
        Who the workers are.
    broker : BrokerClient, optional
        In an executor: its worker, which fetches from other hosts.
    own : str
        In an executor: the worker's segment directory.
    """

    def __init__(self, peers: Peers, broker: BrokerClient | None = None, own: str = "") -> None:
        self._peers = peers
        self._broker = broker
        self._own = own
        self._remote: DataClient | None = None

    def load_here(self, name: str, where: str, nbytes: int, copy: bool, writable: bool) -> tuple[bool, Any]:
        """Return (True, value) if a copy can be read on this host, else (False, None or what is wrong with one).

        `nbytes` may be 0, if it is not known.
        """
        wrong = None
        for segments, attempt in self._peers.here(where):
            try:
                return True, load_payload(
                    segments, name, attempt, copy=copy, writable=writable, nbytes=nbytes
                )
            except SegmentGone:
                continue
            except SegmentError as error:
                # not that one: its traceback would keep this frame and those of all callers
                wrong = type(error)(str(error))
        return False, wrong

    def load_all(
        self, wanted: Sequence[tuple[str, str, int]], copy: bool, writable: bool
    ) -> list[tuple[bool, Any]]:
        """Return for each what `load_here` would: many small ones in less time."""
        outcomes: list[tuple[bool, Any] | None] = [None] * len(wanted)
        if len(wanted) >= _MANY:
            for segments, (which, payloads) in self._small_ones(wanted).items():
                if len(which) >= _MANY:
                    loaded = load_small(segments, payloads, copy=copy, writable=writable)
                    for i, outcome in zip(which, loaded):
                        outcomes[i] = outcome
        return [
            outcome if outcome is not None else self.load_here(*item, copy, writable)
            for item, outcome in zip(wanted, outcomes)
        ]

    def _small_ones(
        self, wanted: Sequence[tuple[str, str, int]]
    ) -> dict[str, tuple[list[int], list[tuple[str, int]]]]:
        """Return the small payloads on this host by segment directory: which they are, and name and attempt of each."""
        small: dict[str, tuple[list[int], list[tuple[str, int]]]] = {}
        # by ordinal: whoever has one, and no other worker, has many
        of_worker: dict[str, tuple[list[int], list[tuple[str, int]]]] = {}
        for i, (name, where, nbytes) in enumerate(wanted):
            if not 0 < nbytes <= LARGEST:
                continue
            ordinal, _, attempt = where.partition(".")
            alone = attempt.isdigit()
            if alone and (group := of_worker.get(ordinal)) is not None:
                group[0].append(i)
                group[1].append((name, int(attempt)))
                continue
            for segments, number in self._peers.here(where)[:1]:
                group = small.setdefault(segments, ([], []))
                group[0].append(i)
                group[1].append((name, number))
                if alone:
                    of_worker[ordinal] = group
        return small

    def fetch(
        self, client: Client, wanted: Sequence[Unread], copy: bool, writable: bool, patience: float
    ) -> list[Any]:
        """Bring payloads from other hosts: for each a tuple with the value, or what kept it away.

        Copies of this host that are damaged, or were looked for twice, are looked at by their workers before, which have
        `patience` seconds for it at most.
        """
        doubtful = [item for item in wanted if item.wrong is not None or item.again]
        doubted = self._check(client, doubtful, min(patience, _LOOK))
        far: list[tuple[str, int, list[str]]] = []
        for name, where, _, _ in wanted:
            sources: dict[int, list[str]] = {}
            for peer, attempt in self._peers.copies(where):
                if peer.address and not peer.here:
                    sources.setdefault(attempt, []).append(peer.address)
            attempt, addresses = next(iter(sources.items()), (0, []))
            far.append((name, attempt, addresses))
        there = [item for item in far if item[2]]
        outcomes: dict[str, Any] = {}
        with as_current(client):
            if self._broker is not None:
                for (name, attempt, _), outcome in zip(there, self._broker.fetch(there) if there else ()):
                    if outcome is None:
                        try:
                            value = load_payload(self._own, name, attempt, copy=copy, writable=writable)
                            outcomes[name] = (value,)
                        except SegmentGone as error:
                            outcomes[name] = Trouble(error)
                    else:
                        outcomes[name] = Trouble(outcome)
            elif there:
                from redist.memory.receive import PrivateSink

                loading = _Loading(writable or copy)
                fetched = self.data_client(client).fetch(there, PrivateSink(loading.load))
                for (name, _, _), received in zip(there, fetched):
                    if isinstance(received, RedistError):
                        outcomes[name] = Trouble(received)
                    else:
                        outcomes[name] = (loading.value(name),)
        if any(isinstance(outcome, Trouble) for outcome in outcomes.values()):
            self._peers.forget()
        return [
            outcomes.get(item.name) or doubted.get(item.name) or self._gone(item.name, item.where)
            for item in wanted
        ]

    def _check(self, client: Client, wanted: Sequence[Unread], timeout: float) -> dict[str, Trouble]:
        """Have the workers of this host look at copies that could not be read; return what there is to say of each value."""
        asked: dict[int, tuple[Peer, list[tuple[Unread, int]]]] = {}
        for item in wanted:
            for peer, attempt in self._peers.copies(item.where):
                if peer.here:
                    asked.setdefault(peer.ordinal, (peer, []))[1].append((item, attempt))
        found: dict[str, Trouble] = {}
        for peer, copies in asked.values():
            own = self._broker is not None and peer.segments == self._own
            broker = self._broker if own else client._broker_of(peer)
            assert broker is not None
            try:
                outcomes = broker.check([(item.name, attempt) for item, attempt in copies], timeout=timeout)
            except RedistError as error:  # it is gone, or hangs: its lease tells
                outcomes = [error] * len(copies)
            for (item, _), outcome in zip(copies, outcomes):
                if outcome is not None:
                    found.setdefault(item.name, Trouble(outcome))
                elif item.wrong is not None:  # its file is whole, and cannot be read here all the same
                    found[item.name] = Trouble(item.wrong, lasting=True)
        return found

    def _gone(self, name: str, where: str) -> Trouble:
        """Return what there is to say of a payload that no other host has."""
        for segments, attempt in self._peers.here(where):
            return Trouble(SegmentGone(f"{path_of(segments, name, attempt)}: the payload's file is gone"))
        return Trouble(SegmentGone("it is on no worker that is known"))

    def data_client(self, client: Client) -> DataClient:
        """Return the client of data servers."""
        from redist.memory.data_client import DataClient

        if self._remote is None:
            from redist.tls import client_context

            self._remote = DataClient(client.session.secret, tls=client_context())
        self._remote.token = client.session.secret  # a server that lost its memory has made another one
        return self._remote

    def close(self) -> None:
        """Close connections, and files from which small payloads were read; keep no memory for others."""
        for module in ("redist.memory.payloads", "redist.memory.private"):
            if module in sys.modules:
                sys.modules[module].let_go()
        if self._remote is not None:
            self._remote.close()
            self._remote = None
