"""One fault at every call and every push of a story in turn: the end state is that of the undisturbed one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.handling import HANDLINGS
from faults.of_keys import OfKeys
from faults.scenario import Story
from faults.stage import KINDS, LONG, Stage
from faults.transport import Proxy
from servers import Server

STORIES = (OfKeys,)


@pytest.fixture(scope="module")
def stage_of(proxy: Proxy, valkey: Server) -> Callable[[type[Story], str], Stage]:
    stages: dict[tuple[type[Story], str], Stage] = {}

    def get(story: type[Story], handling: str) -> Stage:
        if (story, handling) not in stages:
            stages[story, handling] = Stage(proxy, valkey, story, handling)
        return stages[story, handling]

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handling", HANDLINGS)
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.timeout(1200 if LONG else 120)
def test_end_state_is_the_undisturbed_one(
    stage_of: Callable[[type[Story], str], Stage], story: type[Story], handling: str, kind: str
) -> None:
    stage_of(story, handling).try_all(kind)
