"""``redist doctor``: the invariants of a namespace, checked from outside."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from redist.cli.common import fail, meet, namespace_option, parse_address

if TYPE_CHECKING:
    from redist.diagnostics.invariants import Violation
    from redist.store.wire import Wire

__all__ = ["command"]

_PAUSE = 0.5


@click.command("doctor", short_help="Look for broken invariants in a namespace.")
@click.argument("url")
@namespace_option
@click.option("--no-scan", is_flag=True, help="Do not use SCAN; what no index leads to is not seen.")
@click.option(
    "--looks", metavar="N", type=click.IntRange(1), default=3, show_default=True, help="Look so often."
)
def command(url: str, namespace: str | None, no_scan: bool, looks: int) -> None:
    """Check every reference, replica, pin and dependency at the server at URL against each other; nothing is written.

    What is read while others write is never of one moment, so only what every look finds counts. Exits with 1 where
    something is broken.
    """
    import hiredis

    point = parse_address(url, namespace)
    wire = meet(point)
    try:
        broken = _look(wire, point.prefix, scan=not no_scan)
        for _ in range(looks - 1):
            if not broken:
                break
            time.sleep(_PAUSE)
            again = {(v.rule, v.subject) for v in _look(wire, point.prefix, scan=not no_scan)}
            broken = [v for v in broken if (v.rule, v.subject) in again]
    except hiredis.ReplyError as error:
        fail(RuntimeError(f"{wire.peer}: {error} (without SCAN: --no-scan)"))
    finally:
        wire.close()
    for violation in broken:
        click.echo(str(violation))
    where = f"namespace {point.namespace!r} at {point.url}"
    click.echo(f"{len(broken)} broken in {where}" if broken else f"all is well in {where}", err=bool(broken))
    sys.exit(1 if broken else 0)


def _look(wire: Wire, prefix: str, *, scan: bool) -> list[Violation]:
    from redist.diagnostics.invariants import check
    from redist.diagnostics.reading import Snapshot

    def execute(commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        return _pipeline(wire, commands)

    return check(Snapshot(execute, prefix, scan=scan))


def _pipeline(wire: Wire, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
    from redist.store.wire import pack_command

    wire.send(b"".join(map(pack_command, commands)))
    return [wire.read_reply() for _ in commands]
