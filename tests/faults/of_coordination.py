"""The story of what callers coordinate by: locks, semaphores, events, variables, queues and topics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from faults.scenario import Story
from redist import Client, Event, Future, Lock, MultiLock, Pub, Queue, Semaphore, Sub, Variable
from redist.errors import ServerFull

__all__ = ["OfCoordination"]


class Warned(logging.Handler):
    """Whether a message was not published: nobody waits for that."""

    seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += 1


class OfCoordination(Story):
    """One client holds what the other waits for, and lets go."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.held: dict[str, Any] = {}
        self.pending: dict[str, Any] = {}
        self.warned = Warned()
        logging.getLogger("redist.coordination").addHandler(self.warned)

    def have(self, name: str, make: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.held[name] = self.do(make, *args, **options)

    def see(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self.seen.append(shown(self.do(function, *args)))
        except TimeoutError:
            self.seen.append("too late")

    def begin(self, what: str, client: Client, function: Callable[..., Any], *args: Any) -> None:
        """Have a client begin to wait, and return when the server knows that it does."""
        asks, lane = f"asks:{client.session.ordinal}", client.session.lane
        known, n = self.command("HLEN", asks), lane.n
        pending = self.handling.begin(function, *args)
        self.wait(
            lambda: (
                pending.done() or (lane.n > n and (self.command("HLEN", asks) > known or what == "message"))
            ),
            f"{what} is begun",
        )
        self.settle()
        self.pending[what] = pending
        if pending.done() and pending.exception() is not None:
            self.end(what)

    def end(self, what: str) -> Any:
        """Return what came of it."""
        result = self.handling.end(self.pending.pop(what))
        self.seen.append((what, shown(result)))
        return result

    def finish(self) -> None:
        self.held.clear()
        super().finish()

    def clear(self) -> None:
        logging.getLogger("redist.coordination").removeHandler(self.warned)
        self.held.clear()
        super().clear()

    def let_go(self, *names: str) -> None:
        for name in names:
            del self.held[name]

    def tell(self) -> None:
        self.open()
        self.submit("a")
        self.run()
        self.settle()
        self.locks()
        self.events()
        self.variables()
        self.queues()
        self.topics()
        self.stop()

    def locks(self) -> None:
        step, held = self.step, self.held
        for c, client in (("1", self.c1), ("2", self.c2)):
            self.have("x" + c, Lock, "x", client=client)
            self.have("s" + c, Semaphore, 2, "s", client=client)
            self.have("xy" + c, MultiLock, ["x", "y"], client=client)
        step("lock", lambda: self.see(held["x1"].acquire))
        step("wait for it", lambda: self.begin("lock of c2", self.c2, held["x2"].acquire))
        step("wait for two", lambda: self.begin("both", self.c1, held["xy1"].acquire))
        step("try", lambda: self.see(held["xy2"].acquire, False))
        step("see it locked", lambda: self.see(held["x2"].locked))
        self.stop()
        if held["x1"]._leases:
            step("unlock", lambda: self.see(held["x1"].release))
        step("get it", lambda: self.end("lock of c2"))
        if held["x2"]._leases:
            step("unlock again", lambda: self.see(held["x2"].release))
        step("get both", lambda: self.end("both"))
        self.settle()
        self.stop()
        step("drop both", self.let_go, "xy1")
        self.settle()

        step("lease", lambda: self.see(held["s1"].acquire))
        step("lease another", lambda: self.see(held["s1"].acquire))
        step("wait for one", lambda: self.begin("lease of c2", self.c2, held["s2"].acquire))
        step("count", lambda: self.see(held["s2"].get_value))
        self.stop()
        if held["s1"]._leases:
            step("give back", lambda: self.see(held["s1"].release))
        step("lease it", lambda: self.end("lease of c2"))
        for c in "12":
            if held["s" + c]._leases:
                step(f"give back of c{c}", lambda c=c: self.see(held["s" + c].release))
        step("another size", self.refused, Semaphore(3, "s", client=self.c1).acquire, needs=["lease"])
        step("close it", lambda: self.see(held["s1"].close))
        step("lease a closed one", self.refused, held["s2"].acquire, needs=["lease it"])
        self.settle()
        self.stop()

    def events(self) -> None:
        step, held = self.step, self.held
        for c, client in (("1", self.c1), ("2", self.c2)):
            self.have("e" + c, Event, "e", client=client)
        step("await", lambda: self.begin("event", self.c2, held["e2"].wait))
        self.stop()
        step("set", lambda: self.see(held["e1"].set))
        step("awaited", lambda: self.end("event"))
        step("see it set", lambda: self.see(held["e2"].is_set))
        step("await nothing", lambda: self.see(held["e2"].wait))
        step("clear", lambda: self.see(held["e1"].clear))
        step("await in vain", lambda: self.see(held["e2"].wait, 0))
        self.settle()

    def variables(self) -> None:
        step, held, futures = self.step, self.held, self.futures
        for c, client in (("1", self.c1), ("2", self.c2)):
            self.have("v" + c, Variable, "v", client=client)
        step("read in vain", lambda: self.see(held["v1"].get, 0))
        step("read", lambda: self.begin("variable", self.c2, held["v2"].get))
        self.stop()
        step("let", lambda: self.see(held["v1"].set, [futures["a"]]))
        step("have read", lambda: futures.update({"a of v": self.end("variable")[0]}), needs=["let"])
        self.settle()
        self.stop()
        step("let anew", lambda: self.see(held["v2"].set, 5))
        step("have read at last", lambda: self.end("variable"))
        step("read anew", lambda: self.see(held["v1"].get))
        step("unlet", lambda: self.see(held["v1"].delete))
        step("release v", self.drop, "a of v")
        self.settle()
        self.stop()

    def queues(self) -> None:
        step, held, futures = self.step, self.held, self.futures

        def open_(name: str, client: Client) -> None:
            self.have(name, Queue, "q", client=client, maxsize=1)
            self.settle()
            if not self.command("SISMEMBER", "openers:queue q", str(client.session.ordinal)):
                self.let_go(name)
                raise ServerFull("nobody hears of that")

        step("open q1", open_, "q1", self.c1)
        step("open q2", open_, "q2", self.c2)
        step("put", lambda: self.see(held["q1"].put, [futures["a"]]))
        step("put in vain", lambda: self.see(held["q2"].put, "late", 0), needs=["put"])
        step("put more", lambda: self.begin("put", self.c1, held["q1"].put, "second"), needs=["open q2"])
        self.stop()
        step("got", lambda: futures.update({"a of q": self.do(held["q2"].get)[0]}), needs=["put"])
        step("have put", lambda: self.end("put"))
        step("measure", lambda: self.see(held["q2"].qsize))
        step("got second", lambda: self.see(held["q2"].get, 0))
        self.settle()
        step("get in vain", lambda: self.see(held["q2"].get, 0))
        step("get", lambda: self.begin("get", self.c2, held["q2"].get), needs=["open q1"])
        self.stop()
        step("put third", lambda: self.see(held["q1"].put, "third"), needs=["got second"])
        step("have got", lambda: self.end("get"), needs=["put third"])
        step("put at once", lambda: self.see(held["q1"].put, [futures["a"]], 0))
        step("have got at last", lambda: self.end("get"))
        self.settle()
        self.stop()
        step("close q1", lambda: self.see(held["q1"].close))
        step("release q", self.drop, "a of q")
        step("close q2", lambda: self.see(held["q2"].close))
        self.settle()
        self.stop()

    def hear_the_last(self) -> None:
        if self.pending:
            self.end("message")
        else:
            self.see(self.held["sub"].get)

    def topics(self) -> None:
        step, held, futures = self.step, self.held, self.futures

        def publish(value: Any) -> None:
            before = self.warned.seen
            self.do(held["pub"].put, value)
            self.settle()
            if self.warned.seen > before:
                raise ServerFull("a log says so")

        self.have("pub", Pub, "t", client=self.c1)
        step("subscribe", lambda: self.have("sub", Sub, "t", client=self.c2))
        self.settle()
        step("subscribed", lambda: self.see(lambda: held["pub"].subscribers))
        step("announce", lambda: publish([futures["a"]]))
        step("hear", lambda: futures.update({"a of t": self.do(held["sub"].get)[0]}), needs=["announce"])
        step("hear nothing", lambda: self.see(held["sub"].get, 0))
        self.settle()
        self.stop()
        step("listen", lambda: self.begin("message", self.c2, held["sub"].get))
        step("announce more", publish, "more")
        step("have heard", lambda: self.end("message"), needs=["announce more"])
        step("announce at last", publish, "last")
        step("hear the last", self.hear_the_last, needs=["announce at last"])
        step("release t", self.drop, "a of t")
        step("unsubscribe", self.let_go, "sub")
        self.settle()


def shown(value: Any) -> Any:
    """What a client saw, without Futures, which would stay."""
    if isinstance(value, list):
        return [shown(item) for item in value]
    return f"Future of {value.key}" if isinstance(value, Future) else value
