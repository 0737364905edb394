"""Scripts: locks, semaphores, several locks at once; on fakeredis and real servers, every call sent twice."""

from __future__ import annotations

from typing import Any

import pytest

from redist.store import calls as C
from redist.store import coordination as K
from store.kit import Caller, World


@pytest.fixture
def ada(world: World) -> Caller:
    return world.client("ada")


@pytest.fixture
def bob(world: World) -> Caller:
    return world.client("bob")


def ask(caller: Caller, token: str, *names: str, **options: Any) -> int:
    """Ask for locks; returns how many are missing."""
    missing: int = caller.ok(K.acquire(token, names, **options))[2]
    return missing


def leave(caller: Caller, *tokens: str, taken: bool = False) -> int:
    found: int = caller.ok(K.leave(tokens, taken=taken))[2]
    return found


def told(caller: Caller) -> list[str]:
    """Tokens of which the caller was told."""
    return [token.decode() for m in caller.listen_up() if m[0] == b"y" for token in m[3:]]


def standing(caller: Caller, kind: str, name: str) -> int:
    reply = caller.send(K.standing(kind, name))
    assert reply[0] == b"OK"
    value: int = reply[2]
    return value


def nothing_is_left(world: World) -> None:
    for family in ("lock:x", "lock:y", "waits:event x", "limits", "items:x", "topic:x", "subscribers:x"):
        assert not world.exists(family), family


def test_a_lock(world: World, ada: Caller, bob: Caller) -> None:
    assert standing(ada, "lock", "x") == 0
    assert ask(ada, "a", "x") == 0
    assert standing(bob, "lock", "x") == 1
    assert ask(bob, "b", "x") == 1
    assert told(bob) == []
    assert leave(ada, "a") == 1
    assert told(bob) == ["b"]
    assert ask(bob, "b", "x") == 0  # asked again, it says how it stands
    assert leave(ada, "a") == 0  # it is not ada's any more
    assert standing(bob, "lock", "x") == 1
    assert leave(bob, "b") == 1
    nothing_is_left(world)


def test_who_asks_first_is_first(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a0", "x")
    for i in range(1, 4):
        assert ask(ada, f"a{i}", "x") == 1
        assert ask(bob, f"b{i}", "x") == 1
    order = []
    for token, caller in [("a0", ada)] + [
        (f"{who}{i}", c) for i in (1, 2, 3) for who, c in (("a", ada), ("b", bob))
    ]:
        leave(caller, token)
        order += told(ada) + told(bob)
    assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]
    nothing_is_left(world)


def test_who_will_not_wait(world: World, ada: Caller, bob: Caller) -> None:
    assert ask(ada, "a", "x", wait=False) == 0
    assert ask(bob, "b", "x", wait=False) == -1
    assert leave(ada, "a") == 1
    assert told(bob) == []
    nothing_is_left(world)


def test_who_waits_and_gives_up_is_passed_over(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x")
    assert ask(bob, "b", "x") == 1
    assert ask(ada, "c", "x") == 1
    assert leave(bob, "b") == 1
    leave(ada, "a")
    assert told(ada) == ["c"]
    leave(ada, "c")
    nothing_is_left(world)


def test_who_gives_up_when_it_was_granted_gives_it_back(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x")
    ask(bob, "b", "x")
    ask(ada, "c", "x")
    leave(ada, "a")
    leave(bob, "b")  # it has not heard yet that it has it
    assert told(ada) == ["c"]
    leave(ada, "c")


def test_a_semaphore(world: World, ada: Caller, bob: Caller) -> None:
    options = {"leases": 2, "how": K.MAY_OPEN}
    assert [ask(ada, f"a{i}", "x", **options) for i in range(4)] == [0, 0, 1, 1]
    assert standing(bob, "lock", "x") == 2
    leave(ada, "a1")
    assert told(ada) == ["a2"]
    leave(ada, "a3", "a0", "a2")
    assert told(ada) == []
    assert standing(bob, "lock", "x") == 0
    assert world.command("HGET", "limits", "lock x") == b"2"  # ada has it open
    assert bob.do(K.acquire("b", ["x"], leases=3, how=K.MAY_OPEN))[:3] == [b"NO", b"limit", b"2"]
    assert bob.do(K.acquire("b", ["x"]))[:3] == [b"NO", b"limit", b"2"]
    assert bob.do(K.acquire("b", ["other"], leases=3, how=K.OPEN))[:3] == [b"NO", b"closed", b"other"]
    assert ask(bob, "b", "x", leases=2, how=K.MAY_OPEN, need=0) == 0  # opened only
    ada.do(C.close())
    assert world.command("HGET", "limits", "lock x") == b"2"  # bob has it open
    bob.ok(K.shut("x"))
    nothing_is_left(world)


def test_a_closed_semaphore(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x", leases=1, how=K.MAY_OPEN)
    ask(bob, "b", "x", leases=1, how=K.MAY_OPEN)
    assert ada.ok(K.shut("x"))[2] == 2
    assert ada.do(K.acquire("c", ["x"], how=K.OPEN))[:2] == [b"NO", b"closed"]
    leave(ada, "a")
    assert told(bob) == ["b"]  # who waits still gets one
    assert ada.do(K.acquire("c", ["x"], leases=5, how=K.MAY_OPEN))[:3] == [b"NO", b"limit", b"1"]
    leave(bob, "b")
    nothing_is_left(world)
    assert ask(ada, "c", "x", leases=5, how=K.MAY_OPEN) == 0  # opened anew
    leave(ada, "c")
    ada.ok(K.shut("x"))
    nothing_is_left(world)


def test_several_locks(world: World, ada: Caller, bob: Caller) -> None:
    assert ask(ada, "a", "x", "y") == 0
    assert ask(bob, "b", "y", "z") == 1
    assert ask(bob, "c", "z") == 1  # behind, which waits for y
    assert ask(ada, "d", "x", "y", "z") == 3
    leave(ada, "a")
    assert told(bob) == ["b"]
    leave(bob, "b")
    assert told(bob) == ["c"]
    assert told(ada) == []
    leave(bob, "c")
    assert told(ada) == ["d"]
    leave(ada, "d")
    nothing_is_left(world)


def test_some_of_several_locks(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x")
    assert ask(bob, "b", "x", "y", "z", need=2) == 0
    assert standing(ada, "lock", "x") == 1
    assert ask(ada, "c", "x", "y", "z", need=2, wait=False) == -1
    assert ask(ada, "d", "x", "y", "z", need=2) == 2
    leave(ada, "a")
    assert told(ada) == []
    leave(bob, "b")
    assert told(ada) == ["d"]
    assert sorted(standing(bob, "lock", name) for name in "xyz") == [0, 1, 1]  # it left the third line
    leave(ada, "d")
    nothing_is_left(world)


def test_what_a_closed_client_held_is_free(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x")
    ask(ada, "b", "y")
    ask(bob, "c", "x", "y")
    ask(ada, "d", "y")
    ada.do(C.close())
    world.drain()
    assert told(bob) == ["c"]
    bob.do(C.close())
    world.drain()
    nothing_is_left(world)


def test_what_a_dead_client_held_is_free(world: World, ada: Caller, bob: Caller) -> None:
    carl = world.client("carl")
    for i, caller in enumerate((ada, carl, bob)):
        ask(caller, f"t{i}", "x")
    carl.deaf()
    world.expire(carl, by=bob)  # who waits and dies is passed over
    world.drain()
    ada.deaf()
    world.expire(ada, by=bob)
    world.drain()
    assert told(bob) == ["t2"]
    world.callers.remove(ada)
    world.callers.remove(carl)


def test_what_a_dead_executor_held_is_free(world: World, bob: Caller) -> None:
    worker = world.worker()
    x = world.executor(worker)
    ask(x, "x", "x")
    ask(bob, "b", "x")
    worker.ok(C.lost_executor(x.ordinal, "died"))
    assert told(bob) == ["b"]
    world.callers.remove(x)


def test_what_the_executors_of_a_dead_worker_held_is_free(world: World, bob: Caller) -> None:
    worker = world.worker()
    x = world.executor(worker)
    ask(x, "x", "x")
    ask(bob, "b", "x")
    worker.deaf()
    world.expire(worker, by=bob)
    world.drain()
    assert told(bob) == ["b"]
    world.callers.remove(x)
    world.callers.remove(worker)


def test_a_restart_leaves_locks_alone(world: World, ada: Caller, bob: Caller) -> None:
    ask(ada, "a", "x")
    ask(bob, "b", "x")
    ada.ok(C.restart())
    assert leave(ada, "a") == 1  # of the old generation, which does not matter
    assert told(bob) == ["b"]


def test_a_session_taken_up_by_another_process(world: World, bob: Caller) -> None:
    old = world.client("session", named=True)
    ask(old, "p1.1", "x")
    ask(bob, "b", "x")
    old.register(ordinal=0)  # another process of that name
    ask(old, "p2.1", "y")
    old.ok(K.quit_("p2"))
    assert told(bob) == ["b"]
    assert standing(bob, "lock", "y") == 1


def test_many_requests_end_in_slices(store: Any) -> None:
    world = World(store, slice=20, checking=False, repeating=False)
    ada, bob = world.client("ada"), world.client("bob")
    for i in range(300):
        ask(ada, f"a{i}", f"n{i % 7}")
    ask(bob, "b", "n3")
    ada.do(C.close())
    assert world.drain() > 3
    assert told(bob) == ["b"]
    world.check()
    world.end()
