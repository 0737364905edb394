"""Several processes put, read and drop at random while payloads move; some of them die, fork, or are interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_helpers import Loop
from memory_stress import HUGE, LIMIT, Stress

from redist.memory import pool
from redist.memory.directory import SegmentDirectory


def test_at_random(
    parent: str, loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    monkeypatch.setattr(pool, "IDLE", 0.2)
    for module, values in HUGE.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    directory = SegmentDirectory.create(parent, limit=LIMIT)
    directory.spill.configure(str(tmp_path / "spill"), 3 * LIMIT)
    stress = Stress(directory, loop, 7)
    stress.run(2.0)
    record_property("counts", stress.counts)
    assert stress.counts["put"] > 0
    assert stress.counts["read"] > 0
    directory.close()
