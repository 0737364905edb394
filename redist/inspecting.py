"""What a client can ask of the processes and keys of a cluster, beyond `redist.describing`: versions, sizes, call stacks."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import hiredis

from redist.describing import all_names, names_of, read_states
from redist.errors import ServerRefused
from redist.running import run
from redist.session.operations import Ask, Operation, Run
from redist.store import calls
from redist.store.keys import Key, decode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["call_stack", "get_versions", "nbytes", "versions_here"]

#: What must be the same in every process, and what is told of besides.
_REQUIRED = ("redist", "dask", "msgpack", "cloudpickle", "pyarrow", "numpy")
_OPTIONAL = ("hiredis", "pandas", "polars")


# --- versions -------------------------------------------------------------------------------------------------------


def versions_here(packages: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the versions of this process: ``host`` and ``packages``."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    uname = platform.uname()
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info))}
    for package in (*_REQUIRED, *_OPTIONAL, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    host = {
        "python": ".".join(map(str, sys.version_info)),
        "python-bits": struct.calcsize("P") * 8,
        "OS": uname.system,
        "OS-release": uname.release,
        "machine": uname.machine,
        "processor": uname.processor,
        "byteorder": sys.byteorder,
        "LC_ALL": os.environ.get("LC_ALL", "None"),
        "LANG": os.environ.get("LANG", "None"),
    }
    return {"host": host, "packages": found}


def get_versions(client: Client, check: bool, packages: list[str]) -> Operation[dict[str, Any]]:
    """Return the versions of this process, of the processes that run tasks, and of the server."""
    here = versions_here(packages)
    workers = yield from run(client, versions_here, (packages,), {}, on_error="ignore")
    server = yield Run(_server, (client,))
    if check:
        wrong = _differences(here, workers or {}, packages)
        if wrong:
            raise ValueError("versions differ:\n" + "\n".join(wrong))
    return {"scheduler": {"host": {}, "packages": server}, "workers": workers, "client": here}


def _server(client: Client) -> dict[str, str]:
    """Return the server's product and version, as far as it tells. Blocks."""
    try:
        text: bytes = client._peers.command("INFO", "server")
    except (hiredis.ReplyError, ServerRefused):  # without the right to ask
        return {}
    facts = dict(line.partition(":")[::2] for line in text.decode().split("\r\n"))
    product = "valkey" if "valkey_version" in facts else "redis"
    return {product: facts.get(f"{product}_version", "")}


def _differences(here: dict[str, Any], workers: dict[str, Any], packages: list[str]) -> list[str]:
    lines = []
    for package in dict.fromkeys(("python", *_REQUIRED, *_OPTIONAL, *packages)):
        mine = here["packages"].get(package)
        lines += [
            f"  {package}: {mine or 'missing'} in this client, {theirs or 'missing'} at {worker}"
            for worker, versions in workers.items()
            if (theirs := versions["packages"].get(package)) != mine
        ]
    return lines


# --- keys -----------------------------------------------------------------------------------------------------------


def nbytes(client: Client, keys: Any, summary: bool) -> Operation[dict[Key, int]]:
    """Return how many bytes the values of keys take, by key or by the first part of keys."""
    if keys is None:
        names = yield Run(all_names, (client,))
    else:
        names = names_of(client, keys)
    sizes: dict[Key, int] = {}
    for state in (yield from read_states(names)):
        key = decode_key(state.name)
        if state.state == "memory":
            sizes[key] = state.nbytes
        elif keys is not None:
            if state.state == "forgotten":
                raise KeyError(key)
            sizes[key] = -1
    if not summary:
        return sizes
    from dask.utils import key_split

    sums: dict[Key, int] = {}
    for key, size in sizes.items():
        prefix = key_split(key)
        sums[prefix] = sums.get(prefix, 0) + size
    return sums


def call_stack(client: Client, wanted: list[str] | None) -> Operation[dict[str, dict[Key, tuple[str, ...]]]]:
    """Return what running tasks do now: the worker's address -> key -> a text for each frame, the outermost first."""
    names = None
    if wanted is not None:
        names = yield from _running(wanted)
        if not names:
            return {}
    found = yield from run(client, _call_stacks, (names,), {}, on_error="ignore")
    result: dict[str, dict[Key, tuple[str, ...]]] = {}
    for place, stacks in (found or {}).items():
        if stacks:
            of_worker = result.setdefault("/".join(place.split("/")[:3]), {})
            of_worker.update({decode_key(name): tuple(frames) for name, frames in stacks.items()})
    return result


def _running(names: list[str]) -> Operation[set[str]]:
    """Return those of `names` that run, and for those that wait what they wait for."""
    seen: set[str] = set()
    running: set[str] = set()
    while names := [name for name in names if name not in seen]:
        seen.update(names)
        waiting = []
        for state in (yield from read_states(names)):
            kind = state.state.split(" ", 1)[0]
            if kind == "forgotten":
                raise KeyError(decode_key(state.name))
            if kind == "processing":
                running.add(state.name)
            elif kind == "waiting":
                waiting.append(state.name)
        names = []
        for name in waiting:
            names += yield from _dependencies(name)
    return running


def _dependencies(name: str) -> Operation[list[str]]:
    cursor, found = 0, []
    while True:
        reply = yield Ask(calls.dependencies(name, cursor))
        found += [dep.decode() for dep in reply[2:]]
        cursor = int(reply[1])
        if cursor == 0:
            return found


def _call_stacks(names: Any, dask_worker: Any) -> Any:
    return dask_worker.call_stacks(names)
