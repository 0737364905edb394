"""How clients and clusters look in a notebook."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from redist.describing import scheduler_info
from redist.errors import RedistError
from redist.session.operations import Operation, Run

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["client_html", "page", "table"]

#: How long a notebook waits for what the server says, s.
PATIENCE = 0.5


def page(kind: str, name: str, facts: Iterable[tuple[str, object]], workers: str) -> str:
    """Return the HTML of an object: its name, a table of facts, and a table of workers that can be opened."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(fact)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for fact, value in facts
    )
    details = f"<details><summary>Workers</summary>{workers}</details>" if workers else ""
    return f"<div><b>{kind}</b> {escape(name)}<table>{cells}</table>{details}</div>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


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
