"""How clients and their datasets look in a notebook: what the server does not say at once is left out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redist.describing import scheduler_info
from redist.errors import RedistError
from redist.markup import page, table
from redist.session.operations import Operation, Run
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["client_html", "datasets_html"]

#: How long a notebook waits for what the server says, s.
PATIENCE = 0.5
#: Most datasets that are listed.
_LISTED = 100


def client_html(client: Client) -> str:
    """Return what a notebook shows of a client; what the server does not say at once is left out."""
    if not hasattr(client, "session"):
        return page("Client", "", [("Status", client.status)], "")
    facts: list[tuple[str, object]] = [
        ("Server", client.url),
        ("Namespace", client.namespace),
        ("Status", client.status),
    ]
    workers = ""
    if not client.closed:
        facts.append(("Keys of this client", len(client.session.states.records)))
        read = _within(PATIENCE, lambda: _read(client))
        if read is None:
            facts.append(("Cluster", f"did not answer within {PATIENCE:g} s"))
        else:
            info, keys = read
            listed = list(info["workers"].values())
            held = [int(worker["metrics"].get("managed", 0)) for worker in listed]
            facts += [
                ("Keys of the cluster", keys),
                ("Workers", info["n_workers"]),
                ("Threads", info["total_threads"]),
                ("Memory", f"{_size(sum(held))} of {_size(info['total_memory'])}"),
            ]
            rows = (
                (
                    w["name"],
                    w["host"],
                    w["status"],
                    w["nthreads"],
                    f"{_size(n)} of {_size(w['memory_limit'])}",
                )
                for w, n in zip(listed, held)
            )
            workers = table(("Name", "Host", "Status", "Threads", "Memory"), rows)
    return page("Client", client.name, facts, workers)


def datasets_html(client: Client) -> str:
    """Return what a notebook shows of a client's datasets: their names."""
    if not hasattr(client, "session") or client.closed:
        return page("Datasets", "", [("Client", client.status)])
    facts: list[tuple[str, object]] = [("Client", client.name), ("Namespace", client.namespace)]
    names = _within(PATIENCE, lambda: sorted(client._peers.fields("datasets")))
    if names is None:
        return page("Datasets", "", [*facts, ("Cluster", f"did not answer within {PATIENCE:g} s")])
    facts.append(("Published", len(names)))
    listed = [(repr(decode_key(name)),) for name in names[:_LISTED]]
    if len(names) > _LISTED:
        listed.append((f"and {len(names) - _LISTED} more",))
    return page("Datasets", "", facts, below=table(("Name",), listed) if listed else "")


def _read(client: Client) -> tuple[dict[str, Any], int]:
    info = _carry_out(scheduler_info(client, -1))
    return info, int(client._peers.fields("meta").get("keys", 0))


def _carry_out(operation: Operation[dict[str, Any]]) -> dict[str, Any]:
    """Run an operation that only reads beside the lane, in any thread."""
    value: Any = None
    try:
        while True:
            request = operation.send(value)
            assert isinstance(request, Run)
            value = request.function(*request.args)
    except StopIteration as stop:
        result: dict[str, Any] = stop.value
        return result


def _within(seconds: float, read: Callable[[], Any]) -> Any:
    """Return what `read` does, None if it fails or takes longer."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(read())
        except RedistError:
            pass  # the server is away

    thread = threading.Thread(target=run, name="redist-shows", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else None


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"
