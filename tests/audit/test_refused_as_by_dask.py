"""What Dask refuses is refused here with an error that can be caught as Dask's, and that says something."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import redist
from audit.refusals import Outcome, async_outcomes, outcomes
from redist import Client, LocalCluster
from servers import keys_of, wait_until

pytest.importorskip("distributed", reason="what is refused is compared with the installed dask.distributed")

#: Dask's own classes, and what stands for each here.
OURS = {
    "FutureCancelledError": redist.FutureCancelledError,
    "FuturesCancelledError": redist.CancelledError,
    "CancelledError": concurrent.futures.CancelledError,
    "WorkerStartTimeoutError": TimeoutError,
    # One of Dask's own, which fails on a busy machine where it connects in vain.
    "AssertionError": Exception,
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str] | None]:
    """Each call's type and text of error in Dask, None for one that Dask serves."""
    script = Path(__file__).with_name("refusals.py")
    env = os.environ | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path_factory.mktemp("dask"))}
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=True, env=env
    )
    found: dict[str, list[str] | None] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, Outcome]:
    with LocalCluster(n_workers=1, threads_per_worker=4) as cluster:
        with Client(cluster) as client:
            found = outcomes(redist, client)
            found |= asyncio.run(async_outcomes(redist, cluster))
        wait_until(lambda: not keys_of(cluster), what="nothing that was refused has left a key")
    return found


def test_what_dask_refuses(theirs: dict[str, list[str] | None], ours: dict[str, Outcome]) -> None:
    assert theirs.keys() == ours.keys()
    wrong = []
    for name, refused in theirs.items():
        came = ours[name]
        if refused is None:
            wrong.append(f"{name}: Dask serves it; take it out of the table")
            continue
        kind, text = refused
        if came is None:
            wrong.append(f"{name}: is served, and Dask raises {kind}: {text:.80}")
        elif not issubclass(came[0], OURS.get(kind) or getattr(builtins, kind)):
            wrong.append(f"{name}: {came[0].__name__} is no {kind}: {came[1]:.80}")
        elif text and not came[1]:
            wrong.append(f"{name}: {came[0].__name__} says nothing, and Dask's {text:.80}")
    assert not wrong, "\n".join(wrong)
