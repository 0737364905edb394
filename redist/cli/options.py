"""Arguments and options that several commands share, and the values that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from redist import config
from redist.errors import SegmentError
from redist.memory.amounts import parse_bytes
from redist.resources import parse_resources
from redist.timeouts import seconds

__all__ = ["URL_HELP", "checked", "namespace_option", "url_argument", "worker_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

URL_HELP = (
    "URL is redis://HOST:PORT, rediss:// (TLS), unix:///PATH, redis+sentinel://HOST:PORT,.../SERVICE or "
    "redis+cluster://HOST:PORT. Default: the setting `address`, which REDIST_ADDRESS in the environment sets. "
    "A password may be in REDIST_PASSWORD instead."
)


Check = Callable[[click.Context, click.Parameter, str | None], str | None]


def checked(check: Callable[[str], object]) -> Check:
    """Return a callback of an option whose text `check` takes; it stays text, for the process that it is passed on to."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        try:
            if value is not None:
                check(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        return value

    return callback


def _check_executors(text: str) -> None:
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise ValueError("a number from 1, or 'auto'")


def _check_limit(text: str) -> None:
    if text != "auto":
        parse_bytes(text)


def _check_place(text: str) -> None:
    from redist.memory.places import check_above

    try:
        check_above(text)
    except SegmentError as error:
        raise ValueError(str(error)) from error


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is None and not ctx.resilient_parsing:
        value = config.get("address")
        if not value:
            raise click.UsageError("Missing argument 'URL', and REDIST_ADDRESS is not set either.")
    return value or ""


url_argument = click.argument("url", required=False, callback=_address)
#: of the commands that take a server, which may be configured
namespace_option = click.option(
    "--namespace", metavar="NAME", help="Namespace of the keys. Default: the URL's, or 'default'."
)

_WORKER_OPTIONS = (
    click.option(
        "--executors",
        metavar="N",
        callback=checked(_check_executors),
        help="Executor processes of a worker; 'auto': as many as fill the cores.",
    ),
    click.option(
        "--threads", metavar="N", type=click.IntRange(1), help="Threads of each executor. Default: 1."
    ),
    click.option(
        "--memory-limit",
        metavar="AMOUNT",
        callback=checked(_check_limit),
        help="Most memory of a worker, payloads and executors: 4GiB, 0.5 of all, 0 for no limit. Default: a share by its"
        " threads.",
    ),
    click.option(
        "--spill-dir",
        metavar="DIR",
        callback=checked(_check_place),
        help="Where payloads lie that memory has no room for; made if it is missing. Default: a temporary directory.",
    ),
    click.option(
        "--max-spill",
        metavar="AMOUNT",
        callback=checked(parse_bytes),
        help="Most bytes of a worker that lie there. Default: what the disk has.",
    ),
    click.option(
        "--resources",
        metavar="ITEMS",
        callback=checked(parse_resources),
        help="What tasks can ask a worker for, as GPU=1,MEM=2.5.",
    ),
    click.option(
        "--host",
        metavar="ADDRESS",
        help="Where other hosts reach this one's data. Default: the address that leads to the server.",
    ),
    click.option(
        "--port", metavar="PORT", type=click.IntRange(0, 65535), help="Port of the data server. Default: any."
    ),
    click.option(
        "--segments",
        metavar="DIR",
        callback=checked(_check_place),
        help="Where payloads lie; made if it is missing. Default: shared memory.",
    ),
    click.option(
        "--grace",
        metavar="SECONDS",
        callback=checked(seconds),
        help="Time for tasks to finish when a worker is stopped. Default: 5.",
    ),
    click.option(
        "--connect-timeout",
        metavar="SECONDS",
        callback=checked(seconds),
        help="How long a worker waits for the server when it starts. Default: 60.",
    ),
    click.option(
        "--log-level",
        metavar="LEVEL",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], case_sensitive=False),
        default="INFO",
        show_default=True,
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL; to stderr.",
    ),
    namespace_option,
)


def worker_options(function: Command) -> Command:
    """Give a command the options of a worker."""
    for option in reversed(_WORKER_OPTIONS):
        function = option(function)
    return function
