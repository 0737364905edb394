"""The memory rule, written down once more: plain Python, recomputed from first principles after every event.

Nothing here counts: who is wanted is asked anew of all holders each time, so that it shares no mistake with the
scripts, which count. Which executor gets a task is the server's choice, as is which of several erred dependencies is named.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ALLOWED_FAILURES = 3


@dataclass(eq=False)
class Key:
    """What is known of one key."""

    name: str
    fn: str = ""
    spec: bool = False
    deps: set[str] = field(default_factory=set)
    state: str = "waiting"  # waiting, ready (queued or processing), memory, erred, released
    run: tuple[int, int] | None = None  # executor and attempt, while it is processing
    inline: bool = False
    keep: bool = False
    copies: dict[int, int] = field(default_factory=dict)
    wanted_copies: int = 1
    contains: frozenset[str] = frozenset()
    refs: dict[int, int] = field(default_factory=dict)
    fired: bool = False
    published: bool = False
    shared: bool = False  # a variable's value, or an item of a queue
    tokens: set[str] = field(default_factory=set)
    retries: int = 0
    deaths: int = 0
    type: str = ""
    cause: str = ""
    linking: int = 0  # the client that is still to tell of further dependencies
    untold: bool = False  # its submitter went before it had told all

    @property
    def unfinished(self) -> bool:
        return self.state in ("waiting", "ready")


class Model:
    """A namespace as it should be."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.datasets: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self.queue: list[str] = []  # records of its items, in order
        self.got: dict[str, tuple[int, str]] = {}  # token -> client and item
        self.workers: set[int] = set()
        self.parents: dict[int, int] = {}  # executor: worker
        self.evicted: Counter[tuple[int, str, int]] = Counter()
        self.generation = 1

    # --- first principles -------------------------------------------------------------------------------------------

    def dependents(self, name: str) -> list[Key]:
        return [k for k in self.keys.values() if name in k.deps]

    def needed(self, name: str) -> int:
        return sum(k.unfinished for k in self.dependents(name))

    def pins(self, name: str) -> int:
        return sum(name in k.contains for k in self.keys.values() if k.state == "memory")

    def missing(self, k: Key) -> int:
        waits = sum(self.keys[d].state != "memory" for d in k.deps) if k.unfinished else 0
        return waits + bool(k.linking)

    def wanted(self, k: Key) -> bool:
        held = k.refs or k.fired or k.published or k.shared or k.tokens
        return bool(held or self.pins(k.name) or self.needed(k.name))

    def settle(self) -> None:
        """Apply every consequence until there is none left."""
        while self._step():
            pass

    def _step(self) -> bool:
        for k in list(self.keys.values()):
            if k.linking and k.linking not in k.refs:
                self.abandon(k)
                return True
        for k in list(self.keys.values()):
            if k.state == "released" and self.wanted(k):
                self.revive(k)
                return True
        if any(self._blame(k) for k in list(self.keys.values())):
            return True
        for k in list(self.keys.values()):
            if k.unfinished and k.run is None:
                state = "waiting" if self.missing(k) else "ready"
                if state != k.state:
                    k.state = state
                    return True
        return any(self._free(k) for k in list(self.keys.values()) if not self.wanted(k))

    def _blame(self, k: Key) -> bool:
        erred = [self.keys[d] for d in k.deps if self.keys[d].state == "erred"] if k.unfinished else []
        if erred:
            self.err(k, erred[0].type, erred[0].cause or erred[0].name)
        return bool(erred)

    def _free(self, k: Key) -> bool:
        if not self.dependents(k.name):
            self.drop_value(k)
            del self.keys[k.name]
            return True
        if k.unfinished:
            k.state, k.run = "released", None
            return True
        if k.state == "memory" and not k.inline and not k.keep:
            self.drop_value(k)
            k.state = "released"
            return True
        return False

    def drop_value(self, k: Key) -> None:
        for worker, attempt in k.copies.items():
            self.evict(worker, k.name, attempt)
        k.copies, k.contains = {}, frozenset()

    def evict(self, worker: int, name: str, attempt: int) -> None:
        if worker in self.workers:
            self.evicted[worker, name, attempt] += 1

    # --- how states change ------------------------------------------------------------------------------------------

    def err(self, k: Key, kind: str, cause: str = "") -> None:
        k.state, k.type, k.cause, k.run = "erred", kind, cause, None
        k.fired, k.retries, k.deaths = False, 0, 0

    def revive(self, k: Key) -> None:
        if not k.spec:
            self.err(k, "DataLost")
            return
        k.state, k.run, k.cause = "waiting", None, ""
        for d in k.deps:
            dep = self.keys[d]
            if dep.state == "erred":
                self.rerun(dep)
            elif dep.state == "released":
                self.revive(dep)

    def rerun(self, k: Key) -> None:
        """Run an erred key again, and with it what erred because of it."""
        root = k.cause or k.name
        self.revive(k)
        if k.state != "erred":
            self.rouse(k, root)

    def rouse(self, k: Key, root: str) -> None:
        for dependent in self.dependents(k.name):
            if dependent.state == "erred" and dependent.cause == root:
                if self.wanted(dependent):
                    self.rerun(dependent)
                else:
                    dependent.state, dependent.cause = "released", ""
                    self.rouse(dependent, root)

    def remember(
        self, k: Key, *, copies: dict[int, int] | None = None, contains: set[str] = frozenset()
    ) -> None:  # type: ignore[assignment]
        k.state, k.run, k.type, k.cause = "memory", None, "", ""
        k.fired, k.retries, k.deaths = False, 0, 0
        k.inline = not copies
        k.wanted_copies = 1 if k.inline else k.wanted_copies
        k.copies = dict(copies or {})
        if k.inline:
            k.spec, k.deps = False, set()
        k.contains = frozenset(n for n in contains if n in self.keys and n != k.name)

    def want_copies(self, name: str, count: int) -> None:
        k = self.keys.get(name)
        if k is not None and not (k.state == "memory" and k.inline):
            k.wanted_copies = count

    def add_copy(self, name: str, attempt: int, worker: int, moved_from: int) -> None:
        k = self.keys.get(name)
        if k is not None and attempt in k.copies.values():
            k.copies[worker] = attempt
            if moved_from and self.is_surplus(k, moved_from):
                self.evict(moved_from, name, k.copies.pop(moved_from))
        elif k is None or k.copies.get(worker) != attempt:
            self.evict(worker, name, attempt)

    def is_surplus(self, k: Key, worker: int) -> bool:
        others = sum(holder in self.workers for holder in k.copies if holder != worker)
        return worker in k.copies and others >= k.wanted_copies

    def lose_copy(self, k: Key, worker: int) -> None:
        k.copies.pop(worker, None)
        if k.state == "memory" and not k.copies and not k.inline:
            k.contains = frozenset()
            k.state = "released"

    # --- events -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        client: int,
        name: str,
        fn: str,
        deps: set[str],
        *,
        count: int,
        retries: int,
        fired: bool,
        more: bool = False,
    ) -> None:
        k = self.keys.get(name)
        bare = k is not None and k.state == "released" and not k.fn and not k.spec
        if (
            k is not None
            and k.untold
            and k.state == "erred"
            and k.fn == fn
            and count
            and (not more or k.linking in (0, client))
        ):
            self.tell_again(k, client, deps, count, more=more)
            return
        if k is not None and not bare:
            if k.fn and k.fn != fn:
                return
            theirs = k.linking not in (0, client) and k.state == "waiting" and k.fn == fn
            if theirs and count and not more and deps and k.deps <= deps <= self.keys.keys() - {name}:
                k.linking, k.deps = 0, set(deps)  # nobody waits for who has begun to tell it
                self._blame(k)
            if count:
                k.refs[client] = count
            if fired and k.state not in ("memory", "erred"):
                k.fired = True
            return
        if any(d not in self.keys or d == name for d in deps):
            return
        k = k or Key(name)
        self.keys[name] = k
        k.fn, k.spec, k.deps, k.state, k.run, k.retries = fn, True, set(deps), "waiting", None, retries
        if count:
            k.refs[client] = count
        k.fired = fired
        k.linking = client if more else 0
        self._blame(k)  # at once: such a task never wants its other dependencies

    def link(self, client: int, name: str, before: int, deps: list[str], *, last: bool) -> None:
        k = self.keys.get(name)
        if k is None or k.linking != client:
            return
        fault = len(k.deps) < before
        for d in deps if not fault else ():
            fault = d not in self.keys or d == name
            if fault:
                break
            k.deps.add(d)
        if fault or (last and len(k.deps) != before + len(deps)):
            k.refs.pop(client, None)
            self.abandon(k)
            return
        if last:
            k.linking = 0
            if k.untold:
                k.untold = False
                if k.state == "erred":
                    self.rerun(k)
        self._blame(k)

    def tell_again(self, k: Key, client: int, deps: set[str], count: int, *, more: bool) -> None:
        if any(d not in self.keys or d == k.name for d in deps) or not (more or k.deps <= deps):
            k.refs.pop(client, None)
            return
        k.refs[client] = count
        k.spec = True
        k.deps |= deps
        if more:
            k.linking = client
            return
        k.linking, k.untold = 0, False
        self.rerun(k)

    def abandon(self, k: Key) -> None:
        k.linking, k.spec = 0, False
        if not k.untold and k.state in ("waiting", "released"):
            k.untold = True
            self.err(k, "DataLost")

    def ledger(self, client: int, name: str, count: int) -> None:
        k = self.keys.get(name)
        if k is not None and count:
            k.refs[client] = count
        elif k is not None:
            k.refs.pop(client, None)

    def commit(
        self, client: int, name: str, worker: int, attempt: int, *, count: int, keep: bool, contains: set[str]
    ) -> None:
        k = self.keys.get(name)
        same = (
            k is not None
            and k.state == "memory"
            and (k.inline if not worker else k.copies.get(worker) == attempt)
        )
        if k is not None and k.fn and not same:
            self.evict(worker, name, attempt)
            return
        if k is None:
            k = self.keys[name] = Key(name, state="released")
        if count:
            k.refs[client] = count
        k.keep = k.keep or keep
        if k.state == "memory":
            if k.copies.get(worker) != attempt:
                self.evict(worker, name, attempt)
        elif worker and worker not in self.workers:
            was_erred = k.state == "erred"
            k.state, k.cause = "released", ""
            if was_erred:
                self.rouse(k, name)
        else:
            was_erred = k.state == "erred"
            self.remember(k, copies={worker: attempt} if worker else None, contains=contains)
            if was_erred:
                self.rouse(k, name)

    def cancel(self, client: int, names: list[str], *, force: bool) -> None:
        todo, seen = list(names), set()
        while todo:
            k = self.keys.get(todo.pop())
            if k is None or k.name in seen:
                continue
            seen.add(k.name)
            if force:
                k.refs, k.fired = {}, False
            else:
                k.refs.pop(client, None)
            todo += [d.name for d in self.dependents(k.name) if d.unfinished]

    def retry(self, names: list[str]) -> None:
        for name in names:
            k = self.keys.get(name)
            if k is not None and k.state == "erred" and self.wanted(k):
                self.rerun(k)

    def hand_in(
        self,
        x: int,
        name: str,
        attempt: int,
        status: str,
        *,
        contains: set[str],
        copy: tuple[str, int, int] | None,
    ) -> None:
        k = self.keys.get(name)
        if k is None or not k.unfinished or k.run != (x, attempt):
            if status == "segment":
                self.evict(self.parents[x], name, attempt)
            return
        k.run = None
        if status == "segment":
            self.remember(k, copies={self.parents[x]: attempt}, contains=contains)
        elif status == "inline":
            self.remember(k, contains=contains)
        elif status == "erred":
            if k.retries:
                k.retries -= 1
            else:
                self.err(k, "ValueError")
        elif status == "missing" and copy is not None:
            d, worker, of = copy
            dep = self.keys.get(d)
            if dep is not None and dep.copies.get(worker) == of:
                self.lose_copy(dep, worker)

    def lost_executor(self, x: int, running: set[int]) -> None:
        for k in self.keys.values():
            if k.run is not None and k.run[0] == x:
                blamed = k.run[1] in running
                k.run = None
                if blamed:
                    k.deaths += 1
                    if k.deaths > ALLOWED_FAILURES:
                        self.err(k, "KilledWorker")
        del self.parents[x]

    def lost_worker(self, worker: int) -> None:
        for x in [x for x, parent in self.parents.items() if parent == worker]:
            self.lost_executor(x, set())
        self.workers.discard(worker)
        for k in self.keys.values():
            if worker in k.copies:
                self.lose_copy(k, worker)

    def keep(self, record: str, inside: set[str]) -> None:
        """A value is kept under a name until somebody replaces, deletes or takes it."""
        self.keys[record] = Key(record, state="memory", inline=True, shared=True, contains=frozenset(inside))

    def drop(self, record: str | None) -> None:
        if record is not None:
            self.keys[record].shared = False

    def leave(self, token: str, *, taken: bool) -> None:
        """A request ends: the item that it got is taken, or goes back to its place."""
        _, record = self.got.pop(token, (0, None))
        if record is not None and taken:
            self.drop(record)
        elif record is not None:
            self.queue = sorted([*self.queue, record], key=lambda item: int(item.rpartition("@")[2]))

    def gone_client(self, client: int) -> None:
        for token in [token for token, (owner, _) in self.got.items() if owner == client]:
            self.leave(token, taken=False)
        for k in self.keys.values():
            k.refs.pop(client, None)

    def restart(self) -> None:
        for k in self.keys.values():
            self.drop_value(k)
        self.keys.clear()
        self.datasets.clear()
        self.variables.clear()
        self.queue.clear()
        self.got.clear()
        self.generation += 1
