"""Which workers values are placed on, where more places are given than are needed."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store import replies as R
from store.kit import World

AHEAD = 16


@pytest.mark.parametrize(("workers", "values"), [(2, 8), (3, 2), (4, 4), (17, 1), (18, 2)])
def test_all_come_first_in_turn(world: World, workers: int, values: int) -> None:
    """Whoever needs none of the places that are given ahead, or asks again since a worker is silent."""
    client = world.client()
    ordinals = {world.worker(f"w{i}").ordinal for i in range(workers)}
    places = [R.parse_place(client.ok(C.place(values, 100, ahead=AHEAD))) for _ in range(workers)]
    assert {len(given) for given in places} == {values + AHEAD}
    assert {given[0][1] for given in places} == ordinals


def test_all_get_as_many(world: World) -> None:
    client = world.client()
    ordinals = [world.worker(f"w{i}").ordinal for i in range(3)]
    given = [place for _ in range(3) for place in R.parse_place(client.ok(C.place(2, 100, ahead=AHEAD)))]
    workers = [worker for _, worker in given]
    assert {workers.count(ordinal) for ordinal in ordinals} == {len(workers) // 3}
    assert len({attempt for attempt, _ in given}) == len(given)
