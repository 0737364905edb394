"""What subcommands share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from redist.ends import REFUSED, UNAVAILABLE
from redist.errors import RedistError

if TYPE_CHECKING:
    from redist.store.connect import Endpoint
    from redist.store.wire import Wire

__all__ = ["fail", "meet", "parse_address"]


def fail(error: Exception) -> NoReturn:
    """Print an error as one line and exit: 69 where trying again may help, 78 where it will not."""
    from redist.errors import ConnectionLost

    click.echo(f"redist: {error}", err=True)
    sys.exit(UNAVAILABLE if isinstance(error, ConnectionLost) else REFUSED)


def parse_address(url: str, namespace: str | None) -> Endpoint:
    """Return the endpoint of an address from the command line; a bad one is a usage error."""
    from redist.store.connect import endpoint

    try:
        return endpoint(url, namespace)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def meet(point: Endpoint) -> Wire:
    """Connect to a server and check it, or exit."""
    try:
        wire = point.open()
        point.check(wire)
    except RedistError as error:
        fail(error)
    return wire
