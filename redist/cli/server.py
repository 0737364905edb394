"""``redist server``: the embedded server in the foreground."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from redist.cli.common import fail
from redist.cli.options import checked
from redist.memory.amounts import parse_bytes

__all__ = ["command"]

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Told(BaseException):
    """A signal told the command to end; no Exception, which a library on the way may take for one of its own."""


@click.command("server", short_help="Run the embedded server in the foreground.")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    help="Keep the data here, in an append-only file synced every second.",
)
@click.option(
    "--bind", metavar="ADDRESS", help="Listen here over TCP. Other than 127.0.0.1 it gets a password."
)
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535), help="Port, 0 for any free one. Default: 6379."
)
@click.option(
    "--maxmemory",
    metavar="AMOUNT",
    callback=checked(parse_bytes),
    help="Full at so much: 4GiB, or 0.5 of all memory. Default: a quarter of it.",
)
@click.option("--quiet", is_flag=True, help="Only print the address.")
def command(
    directory: str | None, bind: str | None, port: int | None, maxmemory: str | None, quiet: bool
) -> None:
    """Run a Valkey server in the foreground, until SIGTERM or Ctrl-C.

    Without --bind and --port it listens on a socket only. The first line on standard output is its address. The password
    of REDIST_PASSWORD, if set, is taken.
    """
    from redist.errors import RedistError
    from redist.sizing import server_limit
    from redist.store.server import EmbeddedServer

    if port is not None and bind is None:
        bind = "127.0.0.1"
    try:
        server = EmbeddedServer(
            directory=directory,
            bind=bind,
            port=6379 if port is None and bind is not None else port or 0,
            maxmemory=server_limit(maxmemory),
            password=os.environ.get("REDIST_PASSWORD") or None,
            log=None if quiet else sys.stderr,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    came = _heed_signals()
    status = 0
    try:
        server.start()
        # The address comes last: who has read it may end the command, and nothing is left to be said then.
        if not quiet:
            click.echo(
                f"connect with  redist.Client({server.url!r})  or  redist worker '{server.url}'", err=True
            )
        click.echo(server.url)
        ended = server.wait_unless(came)
        if ended is not None:
            status = ended
            said = f": {server.log_causes()}" if quiet else ""  # else it has been seen
            click.echo(f"redist: the server ended with status {status}{said}", err=True)
    except _Told:
        pass
    except RedistError as error:
        fail(error)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    finally:
        for signum in _ENDING:
            signal.signal(signum, signal.SIG_IGN)
        server.stop()
    sys.exit(0 if status == 0 else 1)


def _heed_signals() -> int:
    """Have the first signal raise `_Told`; return a descriptor that can be read once one has come.

    The exception alone can be lost: in a finalizer, or where the signal comes just before a wait begins.
    """
    came, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    told = False

    def tell(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        # A terminal or service manager sends several: the next would strike where the first is dealt with.
        if not told:
            told = True
            raise _Told

    for signum in _ENDING:
        signal.signal(signum, tell)
    return came
