"""Who waits for a lock, an event, an item: one `Wait` a request, found by the request's token.

A push says that a request has what it waited for. When pushes may have been missed, after a registration anew too, all are
told to look: they ask again how their request stands, which makes it anew where the server does not know it any more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections import deque
from collections.abc import Iterable

from redist.session.states import Waiter

__all__ = ["Claim", "Wait", "Waits"]


class Wait(Waiter):
    """A wait of one request.

    Attributes
    ----------
    told : bool
        Whether the request has what it waited for; otherwise, when it is ready, it is to ask.
    """

    __slots__ = ("told",)

    def __init__(self) -> None:
        super().__init__(1)
        self.told = False

    def rest(self) -> None:
        """Wait on; before the request is made (again), so that what comes meanwhile counts."""
        self.remaining = 1
        self.told = False

    def over(self, *, told: bool) -> None:
        """Note that the request has what it waited for, or that it is to ask."""
        self.told = self.told or told
        self.remaining = 0
        if self.wake is not None:
            self.wake()


class Claim:
    """What a request lives by. When it is gone, wherever a Ctrl-C struck, the request is left with the next heartbeat."""

    __slots__ = ("__weakref__", "token")

    def __init__(self, token: str) -> None:
        self.token = token


class Waits:
    """The requests of a session that wait.

    Attributes
    ----------
    prefix : str
        How all tokens of this process begin.
    abandoned : deque of str
        Tokens of requests whose handles are gone; the session leaves them with its next `tick`. Appended to in any thread,
        inside garbage collections too.
    """

    __slots__ = ("_claims", "_count", "_waits", "abandoned", "prefix")

    def __init__(self) -> None:
        self.prefix = os.urandom(5).hex()
        self._count = itertools.count(1)
        self._waits: dict[str, Wait] = {}
        self._claims: dict[str, weakref.ref[Claim]] = {}
        self.abandoned: deque[str] = deque()

    def take_abandoned(self) -> list[str]:
        """Take the tokens of requests that are to be left."""
        tokens: list[str] = []
        with contextlib.suppress(IndexError):
            while True:
                tokens.append(self.abandoned.popleft())
        return tokens

    def claim(self) -> Claim:
        """Return the claim of a new request; from any thread."""
        claim = Claim(self.token())
        self._claims[claim.token] = weakref.ref(claim)
        return claim

    def left(self, tokens: Iterable[str]) -> None:
        """Note that requests were left, or left nothing with the server."""
        for token in tokens:
            self._claims.pop(token, None)

    def abandon_lost(self) -> None:
        """Have the requests left whose claims are gone."""
        with contextlib.suppress(RuntimeError):  # a garbage collection changed them: the next time
            self.abandoned.extend([token for token, claim in self._claims.items() if claim() is None])

    def token(self) -> str:
        """Return a new token; from any thread."""
        return f"{self.prefix}.{next(self._count):x}"

    def begin(self, token: str, wait: Wait) -> None:
        """Have `wait` told of what comes for `token`."""
        self._waits[token] = wait

    def end(self, token: str) -> None:
        """Forget the wait for `token`."""
        self._waits.pop(token, None)

    def heard(self, tokens: Iterable[str]) -> None:
        """Take note of a push: these requests have what they waited for."""
        for token in tokens:
            wait = self._waits.get(token)
            if wait is not None:
                wait.over(told=True)

    def look(self) -> None:
        """Have all ask again how they stand."""
        for wait in list(self._waits.values()):
            wait.over(told=False)
