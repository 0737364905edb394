"""``redist ping``: is the server there, and a worker of this host; made for health checks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from redist.cli.common import meet, parse_address
from redist.cli.options import URL_HELP, namespace_option, url_argument
from redist.ends import UNAVAILABLE

if TYPE_CHECKING:
    from redist.store.wire import Wire

__all__ = ["command"]


@click.command(
    "ping", epilog=URL_HELP, short_help="Say whether the server, and a worker of this host, are well."
)
@url_argument
@click.option(
    "--worker", is_flag=True, help="Also look for a worker of this host whose lease has not run out."
)
@namespace_option
def command(url: str, worker: bool, namespace: str | None) -> None:
    """Connect to the server at URL and check it, as health checks do. Exits with 69 or 78 if it is not well."""
    import socket
    import time

    point = parse_address(url, namespace)
    started = time.perf_counter()
    wire = meet(point)
    try:
        took = (time.perf_counter() - started) * 1000
        found = _workers(wire, point.prefix, socket.gethostname()) if worker else []
    finally:
        wire.close()
    if worker and not found:
        click.echo(f"no living worker of this host in namespace {point.namespace!r} at {point.url}", err=True)
        sys.exit(UNAVAILABLE)
    click.echo(f"{point.url} is well ({took:.1f} ms){': ' + ', '.join(found) if found else ''}")


def _workers(wire: Wire, prefix: str, hostname: str) -> list[str]:
    """Return the names of the workers on `hostname` whose lease has not run out."""
    seconds, microseconds = wire.call("TIME")
    now = int(seconds) * 1000 + int(microseconds) // 1000
    flat = wire.call("HGETALL", f"{prefix}workers")
    names = []
    for ordinal, name in zip(flat[::2], flat[1::2]):
        host, seen, lease = wire.call("HMGET", f"{prefix}caller:{ordinal.decode()}", "host", "seen", "lease")
        if host == hostname.encode() and int(seen or 0) + int(lease or 0) >= now:
            names.append(name.decode())
    return names
