"""What calls and properties give is of the types that it has in Dask, also where it is to be awaited."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import redist
from audit.shapes import Outcome, async_outcomes, outcomes
from redist import LocalCluster
from servers import keys_of, wait_until

pytest.importorskip("distributed", reason="what comes is compared with the installed dask.distributed")

#: What is otherwise here, as docs/dask-api.md says: by the call, or the call and "asynchronous".
OTHERWISE = {
    "client.dashboard_link": "NoneType",  # there is none
    "client.refcount": "raises AttributeError",  # of Dask's own machinery
    "future.type": "str",  # the class's name
    "get_versions()": "mapping {str: mapping {str: mapping {}}}",  # there is no scheduler whose versions there are
    "MultiLock.release()": "bool",  # whether they were still held
    "asynchronous scheduler_info()": "await mapping {str: str}",  # asks, instead of telling what it heard last
    "asynchronous write_scheduler_file(str)": "await NoneType",  # as it asks for what it writes
    "asynchronous progress": "await NoneType",  # returns when all are done, in a loop too
    "asynchronous get_versions()": "await mapping {str: mapping {str: mapping {}}}",
    "asynchronous MultiLock.release()": "await bool",
    # What Dask cannot do in a loop:
    "asynchronous compute(sync)": "await int",
    "asynchronous get(dict, str)": "await int",
    "asynchronous get(dict, list)": "await list[int]",
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    path = tmp_path_factory.mktemp("dask")
    env = os.environ | {"DASK_TEMPORARY_DIRECTORY": str(path)}
    script = Path(__file__).with_name("shapes.py")
    subprocess.run(
        [sys.executable, str(script), str(path / "out.json")],
        capture_output=True,
        timeout=100,
        check=True,
        env=env,
    )
    found: dict[str, Outcome] = json.loads((path / "out.json").read_text())
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    path = tmp_path_factory.mktemp("redist")
    with LocalCluster(n_workers=1, threads_per_worker=2) as cluster:
        found = {
            "synchronous": outcomes(redist, cluster, path),
            "asynchronous": asyncio.run(async_outcomes(redist, cluster, path)),
        }
        wait_until(lambda: not keys_of(cluster), what="no call has left a key")
    return found


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_types(theirs: dict[str, Outcome], ours: dict[str, Outcome], kind: str) -> None:
    assert ours[kind].keys() == theirs[kind].keys()
    wrong = []
    for name, expected in theirs[kind].items():
        key = f"asynchronous {name}" if kind == "asynchronous" else name
        otherwise = OTHERWISE.get(key) or OTHERWISE.get(name)
        came = ours[kind][name]
        if otherwise is None and came != expected:
            wrong.append(f"{name}: {came}, and Dask's is {expected}")
        elif otherwise is not None and came != otherwise:
            wrong.append(f"{name}: {came} instead of {otherwise}")
        elif otherwise is not None and came == expected:
            wrong.append(f"{name}: is as in Dask; take it out of the table")
    assert not wrong, "\n".join(wrong)
