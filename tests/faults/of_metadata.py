"""The story of what is kept beside keys: metadata, events and plugins."""

from __future__ import annotations

from typing import Any

from faults.scenario import Story
from redist.store import beside

__all__ = ["OfMetadata"]


class OfMetadata(Story):
    """Two clients set, log and listen."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.heard: list[Any] = []

    def see(self, *asked: Any, client: str = "c1") -> None:
        function, *args = asked
        self.seen.append(self.do(getattr(self.clients[client], function), *args))

    def log(self, value: str) -> None:
        """Log, and wait until that is heard."""
        self.see("log_event", "t", value)
        self.wait(lambda: value in self.heard, "it is heard")

    def plugin(self, data: bytes, *, once: bool) -> None:
        """Whether it is another one than there was."""
        reply = self.call(self.c1, beside.put_plugin("p", data, once=once))
        self.seen.append(reply[2] > 0)

    def tell(self) -> None:
        self.open()
        step = self.step
        step("set", self.see, "set_metadata", "m", 1)
        step("set inside", self.see, "set_metadata", ["n", "x"], 2)
        step("set inside again", lambda: self.see("set_metadata", ["n", "y"], 3, client="c2"))
        step("set anew", self.see, "set_metadata", "m", 4)
        for name in "mn":
            step(f"get {name}", self.see, "get_metadata", name, None)
        self.settle()
        self.stop()

        self.do(self.c2.subscribe_topic, "t", lambda event: self.heard.append(event[1]))
        self.settle()
        step("log", self.log, "first")
        step("log more", self.log, "second")
        step("log still more", self.log, "third")
        step("events", lambda: self.seen.append([event for _, event in self.do(self.c1.get_events, "t")]))
        self.do(self.c2.unsubscribe_topic, "t")
        self.settle()
        self.seen.append(list(self.heard))

        step("plugin", lambda: self.plugin(b"first", once=True))
        step("plugin again", lambda: self.plugin(b"second", once=True))
        step("another plugin", lambda: self.plugin(b"third", once=False))
        self.stop()
        step("drop plugin", lambda: self.call(self.c2, beside.drop_plugin("p")))
        step(
            "drop nothing", self.refused, self.c2._driver.call, beside.drop_plugin("p"), needs=["drop plugin"]
        )
        self.settle()
        self.stop()
