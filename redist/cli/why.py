"""``redist why``: who keeps a key."""

from __future__ import annotations

import ast
import sys

import click

from redist.cli.common import fail, meet, parse_address
from redist.cli.options import URL_HELP, namespace_option, url_argument
from redist.store.keys import Key

__all__ = ["command"]


@click.command("why", epilog=URL_HELP, short_help="Tell who keeps a key.")
@click.argument("key")
@url_argument
@namespace_option
def command(key: str, url: str, namespace: str | None) -> None:
    """Name every holder of KEY at the server at URL: Futures, containers, dependents, and where its value is.

    A tuple key is written as in Python: redist why "('x', 0)"; a number or bytes in parentheses: "(5)". Exits with 1 where
    the key is not known.
    """
    from redist.diagnostics.why import explain
    from redist.errors import InvalidKey

    point = parse_address(url, namespace)
    meet(point).close()
    try:
        found = explain(point, _parse(key))
    except InvalidKey as error:
        fail(error)
    click.echo(str(found))
    sys.exit(1 if found.state == "forgotten" else 0)


def _parse(text: str) -> Key:
    if text.startswith("("):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        if isinstance(value, tuple | int | float | bytes):
            return value
    return text
