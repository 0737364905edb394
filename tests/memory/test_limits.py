"""What a worker may do with its memory, as settings say it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from redist import LocalCluster, config
from redist.errors import ConfigurationError
from redist.memory.limits import MemoryLimits, configured_limits, small_limit_warning
from redist.sizing import check_limit


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": 7}, "worker.memory.target is 7: write a fraction from 0 to 1, or false for never"),
        ({"spill": "x"}, "worker.memory.spill is 'x': write a fraction"),
        ({"pause": -1}, "worker.memory.pause is -1: write a fraction"),
        ({"pause": True}, "worker.memory.pause is True: write a fraction"),
        ({"terminate": math.nan}, "worker.memory.terminate is nan: write a fraction"),
        ({"wait": "soon"}, "worker.memory.wait: 'soon' is no span of time"),
        ({"longest-pause": -2}, "worker.memory.longest-pause is -2: write a span of time such as '10 s'"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], said: str) -> None:
    with config.set({f"worker.memory.{name}": value for name, value in settings.items()}):
        with pytest.raises(ConfigurationError) as caught:
            configured_limits()
        assert str(caught.value).startswith(said)
        # before any process is started, whose output a notebook does not show
        with pytest.raises(ConfigurationError, match=r"^worker\.memory\."):
            LocalCluster(n_workers=1, threads_per_worker=1)


@pytest.mark.parametrize("never", [False, None, 0])
def test_each_may_be_set_alone(never: Any) -> None:
    """As in Dask: whichever comes first as memory fills happens first."""
    with config.set({"worker.memory.spill": never, "worker.memory.terminate": never}):
        assert configured_limits() == MemoryLimits(spill=0.0, terminate=0.0)
    with config.set({"worker.memory.target": 0.9, "worker.memory.terminate": 0.75}):
        assert configured_limits() == MemoryLimits(target=0.9, terminate=0.75)


def test_a_limit_without_room_for_a_value() -> None:
    said = (
        r"^the memory limit of 1,000 bytes \(1000 B\) has no room for values: target=0\.6 of it are less than"
    )
    with pytest.raises(ConfigurationError, match=said):
        small_limit_warning(1000, 1, MemoryLimits())
    with pytest.raises(ConfigurationError, match="has no room for values: that is less than"):
        small_limit_warning(1000, 1, MemoryLimits(target=0.0))
    with pytest.raises(ConfigurationError, match=r"1,000 bytes"):
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="1 kB")


def test_a_limit_below_what_processes_need() -> None:
    said = r"^the memory limit of 4,000,000 bytes \(3\.81 MiB\) is less than .* 12 MiB for each of 1 .*pause=0\.8"
    with pytest.warns(UserWarning, match=said):
        check_limit("4000000", 1)
    assert small_limit_warning(30_000_000, 4, MemoryLimits())
    assert small_limit_warning(30_000_000, 1, MemoryLimits()) is None
    assert small_limit_warning(30_000_000, 4, MemoryLimits(pause=0.0)) is None
    assert small_limit_warning(0, 4, MemoryLimits()) is None
