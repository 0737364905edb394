"""Files that a client writes and reads: where the cluster is, and the state of its namespace."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from redist.describing import scheduler_info
from redist.session.operations import Operation, Run

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["dump_cluster_state", "read_scheduler_file", "write_scheduler_file"]

_PAUSE = 0.01


def write_scheduler_file(client: Client, path: str) -> Operation[None]:
    """Write what `scheduler_info` tells as JSON; it is never there half written."""
    info = yield from scheduler_info(client, -1)

    def write() -> None:
        unfinished = f"{path}.{os.getpid()}"
        Path(unfinished).write_text(json.dumps({**info, "namespace": client.namespace}, indent=2))
        os.replace(unfinished, path)

    client.scheduler_file, before = path, client.scheduler_file
    try:
        yield Run(write)
    except BaseException:
        client.scheduler_file = before  # it may be tried again
        raise


def read_scheduler_file(path: str, timeout: float) -> tuple[str, str]:
    """Return address and namespace, waiting `timeout` seconds for a file with them. Blocks.

    Raises
    ------
    TimeoutError
        If there is none in time.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            with open(path) as file:
                info = json.load(file)
            return str(info["address"]), str(info["namespace"])
        except FileNotFoundError:
            problem = "is not there"
        except (ValueError, KeyError, TypeError):
            problem = "names no address and namespace, as Client.write_scheduler_file would"
        if time.monotonic() > until:
            raise TimeoutError(f"the scheduler file {path} {problem}, after {timeout:.3g} s")
        time.sleep(_PAUSE)


def dump_cluster_state(
    client: Client, filename: str, exclude: Collection[str], form: str, options: dict[str, Any]
) -> Operation[None]:
    """Write everything that is known of the namespace into a file."""
    if form not in ("msgpack", "yaml"):
        raise ValueError(f"format is 'msgpack' or 'yaml', not {form!r}")
    suffix = ".msgpack.gz" if form == "msgpack" else ".yaml"
    path = filename if filename.endswith(suffix) else filename + suffix
    info = yield from scheduler_info(client, -1)
    yield Run(_dump, (client, info, path, frozenset(exclude), form, options))


def _dump(
    client: Client,
    info: dict[str, Any],
    path: str,
    exclude: frozenset[str],
    form: str,
    options: dict[str, Any],
) -> None:
    import gzip

    from redist.diagnostics.doctor import look
    from redist.inspecting import versions_here

    found = look(client._endpoint, client._timeout)
    found["meta"] = {field: value for field, value in found.get("meta", {}).items() if field != "secret"}
    state: dict[str, Any] = {
        "namespace": client.namespace,
        "scheduler": info,
        "versions": versions_here(),
        "state": {
            key: _plain(value) for key, value in found.items() if not {key, key.partition(":")[0]} & exclude
        },
    }
    state = {key: value for key, value in state.items() if key not in exclude}
    if form == "msgpack":
        data = gzip.compress(msgpack.packb(state))
    else:
        import yaml

        data = yaml.safe_dump(state, sort_keys=False).encode()
    if "://" in path:
        import fsspec

        with fsspec.open(path, "wb", **options) as file:
            file.write(data)
    elif options:
        raise TypeError(f"{sorted(options)} are options of a URL, and {path} is none")
    else:
        Path(path).write_bytes(data)


def _plain(value: Any) -> Any:
    """Return a value of the server as what both formats can hold; what is no text becomes bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
        return value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | set):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    return value
