"""The parts of scripts fit together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from redist.store import scripts

PARTS = sorted((Path(scripts.__file__).parent / "scripts" / "include").glob("*.lua"))


def test_an_operation_belongs_to_one_part() -> None:
    """They share a table: of two of a name, the one that is loaded last would be called."""
    defined = Counter(
        name
        for part in PARTS
        for name in re.findall(r"^function S\.([a-z_]+)\(", part.read_text(), re.MULTILINE)
    )
    assert len(defined) > 100
    assert [name for name, count in defined.items() if count > 1] == []


def test_parts_that_include_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "include").mkdir()
    for path, included in (("x.lua", "a"), ("include/a.lua", "b"), ("include/b.lua", "a")):
        (tmp_path / path).write_text(f"-- @include {included}\n")
    monkeypatch.setattr(scripts, "_FOLDER", str(tmp_path))
    with pytest.raises(ValueError, match="in a circle: a -> b -> a"):
        scripts.load("x")


OF_6_2 = """
    EXISTS EXPIRE GET SET UNLINK RENAME TIME PUBLISH
    HDEL HEXISTS HGET HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HSCAN HSET HSETNX
    LINDEX LLEN LPOP LPUSH LRANGE LREM LTRIM RPUSH
    SADD SCARD SISMEMBER SMEMBERS SMISMEMBER SMOVE SPOP SRANDMEMBER SREM SSCAN SUNIONSTORE
    ZADD ZCARD ZINCRBY ZPOPMIN ZRANGE ZRANGEBYSCORE ZRANK ZREM ZREVRANGE ZSCAN ZSCORE
"""
"""Commands that scripts may use, all of Redis 6.2 as they are used. (SPUBLISH in a Cluster needs 7.0.)"""


def test_commands_are_of_6_2() -> None:
    files = [*PARTS, *PARTS[0].parent.parent.glob("*.lua")]
    used = {
        name
        for file in files
        for name in re.findall(r"(?:\bcall|S\.many)\(\s*'([A-Za-z]+)'", file.read_text())
    }
    assert len(used) > 30
    assert used - set(OF_6_2.split()) == set()


def test_sets_are_read_whole_only_where_they_are_small() -> None:
    """Executors of a worker, and dependencies of a task, whose reader looks first at how many there are."""
    folder = Path(scripts.__file__).parent / "scripts"
    pattern = re.compile(r"'SMEMBERS', P \.\. '(\w+)")
    assert {found for path in folder.rglob("*.lua") for found in pattern.findall(path.read_text())} == {
        "executors",
        "deps",
    }
