"""``redist worker``: become a worker process."""

from __future__ import annotations

import os
import sys

import click

from redist import config
from redist.cli.common import namespace_option, parse_address

__all__ = ["command"]


@click.command("worker", short_help="Run a worker: it keeps payloads and runs tasks.")
@click.argument("url")
@click.option("--executors", metavar="N", help="Executor processes; 'auto': one a core. Default: 1.")
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1),
    help="Threads of each executor. Default: 1.",
)
@click.option(
    "--memory-limit",
    metavar="AMOUNT",
    help="Most memory for payloads: 4GiB, or 0.5 of all. Default: what there is.",
)
@click.option("--name", metavar="NAME", help="Name of this worker, unique in the namespace.")
@click.option("--resources", metavar="ITEMS", help="What tasks can ask for, as GPU=1,MEM=2.5.")
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Where other hosts reach this one's data. Default: the way to the server.",
)
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535), help="Port of the data server. Default: any."
)
@click.option("--segments", metavar="DIR", help="Where payloads lie. Default: shared memory.")
@click.option(
    "--grace", metavar="SECONDS", type=float, help="Time for tasks to finish when the worker is stopped."
)
@click.option("--connect-timeout", metavar="SECONDS", type=float, help="How long to wait for the server.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    default="INFO",
    show_default=True,
    help="DEBUG, INFO, WARNING or ERROR; to stderr.",
)
@namespace_option
def command(url: str, executors: str | None, namespace: str | None, **options: object) -> None:
    """Run a worker of the server at URL in the foreground, until SIGTERM or Ctrl-C.

    URL is redis://HOST:PORT, rediss:// (TLS), unix:///PATH, redis+sentinel://HOST:PORT,.../SERVICE or
    redis+cluster://HOST:PORT. A password may be in REDIST_PASSWORD instead. What no option says, the configuration does.
    """
    point = parse_address(url, namespace)
    if executors == "auto":
        from redist.launch import cores

        threads = options["threads"] or config.get("worker.threads")
        executors = str(max(1, cores() // int(str(threads))))
    elif executors is not None and (not executors.isdecimal() or executors == "0"):
        raise click.BadParameter("a number from 1, or 'auto'", param_hint="--executors")
    chosen = {"namespace": point.namespace, "executors": executors, **options}
    given = {k: v for k, v in chosen.items() if v is not None}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    # The process becomes the worker, so that a service manager's signals reach it; passwords leave the command line.
    environment = {**os.environ, **point.secrets()}
    os.execve(sys.executable, [sys.executable, "-m", "redist_worker", point.url, *arguments], environment)  # noqa: S606
