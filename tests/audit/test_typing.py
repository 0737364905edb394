"""What a type checker makes of the API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
from functools import partial
from typing import Any, assert_type
from redist import Client, Future

def f(x: int, y: str = "") -> float:
    return 1.0

class C:
    def method(self) -> bytes:
        return b""

    async def coroutine(self) -> bytes:
        return b""

async def coroutine(x: int) -> float:
    return 1.0

async def nothing() -> None: ...

untyped: Any = None

def check(client: Client) -> None:
    assert_type(client.submit(f, 1), Future[float])
    assert_type(client.submit(f, 1, key="k", retries=2, workers=["w"], pure=False), Future[float])
    assert_type(client.submit(f, client.submit(f, 1)).result(), float)
    assert_type(client.submit(lambda: 1), Future[int])
    assert_type(client.submit(partial(f, 1)), Future[float])
    assert_type(client.submit(C), Future[C])
    assert_type(client.submit(C().method), Future[bytes])
    assert_type(client.map(f, [1, 2]), list[Future[float]])
    assert_type(client.submit(untyped, 1), Future[Any])
    assert_type(client.submit(coroutine, 1), Future[float])
    assert_type(client.submit(coroutine, 1, key="k", retries=2, pure=False), Future[float])
    assert_type(client.submit(coroutine, 1).result(), float)
    assert_type(client.submit(partial(coroutine, 1)), Future[float])
    assert_type(client.submit(C().coroutine), Future[bytes])
    assert_type(client.map(coroutine, [1, 2], pure=False), list[Future[float]])
    assert_type(client.submit(nothing), Future[None])

async def check_awaited(client: Client) -> None:
    assert_type(await client.submit(f, 1), float)
    assert_type(await client.submit(coroutine, 1), float)
"""


def test_futures_have_the_type_of_what_the_function_returns(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"),
         str(program)],
        env={"MYPYPATH": f"{ROOT}:{ROOT / 'workers'}", "PATH": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
