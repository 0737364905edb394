"""``redist doctor``: the invariants of a namespace, checked from outside."""

from __future__ import annotations

import sys

import click

from redist.cli.common import fail, meet, parse_address
from redist.cli.options import URL_HELP, namespace_option, url_argument

__all__ = ["command"]


@click.command("doctor", epilog=URL_HELP, short_help="Look for broken invariants in a namespace.")
@url_argument
@namespace_option
@click.option(
    "--patience",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="Broken is what looks so for so long. Default: 5.",
)
def command(url: str, namespace: str | None, patience: float | None) -> None:
    """Check every reference, replica, pin and dependency at the server at URL against each other; nothing is written.

    Payload files of living workers on this host are looked at too. Exits with 1 where something is broken, and where
    there is no such namespace.
    """
    from redist.diagnostics.doctor import PATIENCE, examine
    from redist.errors import RedistError

    point = parse_address(url, namespace)
    meet(point).close()
    try:
        report = examine(point, patience=PATIENCE if patience is None else patience)
    except RedistError as error:
        fail(error)
    click.echo(str(report))
    sys.exit(0 if report.healthy and report.exists else 1)
