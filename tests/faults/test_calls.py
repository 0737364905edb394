"""One fault at every call and every push of a story in turn: the end state is that of the undisturbed one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.handling import HANDLINGS
from faults.of_coordination import OfCoordination
from faults.of_copies import OfCopies
from faults.of_keys import OfKeys
from faults.of_metadata import OfMetadata
from faults.of_processes import OfProcesses
from faults.of_sessions import OfSessions
from faults.scenario import Story
from faults.stage import KINDS, LONG, Stage
from faults.transport import Proxy
from redist.store.scripts import names
from servers import Server

STORIES = (OfKeys, OfProcesses, OfCopies, OfSessions, OfCoordination, OfMetadata)


@pytest.fixture(scope="module")
def stage_of(proxy: Proxy, valkey: Server) -> Callable[[type[Story], str], Stage]:
    stages: dict[tuple[type[Story], str], Stage] = {}

    def get(story: type[Story], handling: str) -> Stage:
        if (story, handling) not in stages:
            stages[story, handling] = Stage(proxy, valkey, story, handling)
        return stages[story, handling]

    return get


@pytest.mark.parametrize("handling", HANDLINGS)
def test_every_script_is_called(stage_of: Callable[[type[Story], str], Stage], handling: str) -> None:
    """Who adds one has a story call it."""
    met = {event.what for story in STORIES for event in stage_of(story, handling).events}
    assert set(names()) <= met, f"no story calls {sorted(set(names()) - met)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handling", HANDLINGS)
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.timeout(1200 if LONG else 120)
def test_end_state_is_the_undisturbed_one(
    stage_of: Callable[[type[Story], str], Stage], story: type[Story], handling: str, kind: str
) -> None:
    stage_of(story, handling).try_all(kind)
