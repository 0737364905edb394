"""``redist memory``: what memory holds."""

from __future__ import annotations

import sys

import click

from redist.cli.common import fail, meet, parse_address
from redist.cli.options import URL_HELP, namespace_option, url_argument

__all__ = ["command"]


@click.command("memory", epilog=URL_HELP, short_help="Show what memory and disk hold, by worker and host.")
@url_argument
@namespace_option
def command(url: str, namespace: str | None) -> None:
    """Show bytes in memory and on disk, by worker and by host, at the server at URL.

    They are values in memory (managed), memory of the processes that run tasks (unmanaged), values on disk (spilled),
    dropped values that somebody still maps (lingering), files that wait for the next values (pooled), what is being
    written (granted), and what small values take beyond their own bytes (overhead). They are what workers said last, so
    up to a heartbeat (2 s) old; a worker that said nothing for longer than its lease is late.

    Exits with 1 where there is no such namespace.
    """
    from redist.diagnostics.doctor import nothing_stored
    from redist.diagnostics.memory import read_memory
    from redist.errors import RedistError
    from redist.store.side import Side

    point = parse_address(url, namespace)
    meet(point).close()
    side = Side(point)
    try:
        if not side.fields("meta"):
            click.echo(nothing_stored(point.url, point.namespace))
            sys.exit(1)
        click.echo(str(read_memory(side)))
    except RedistError as error:
        fail(error)
    finally:
        side.close()
