"""``redist worker``: become a worker process."""

from __future__ import annotations

import os
import sys

import click

from redist import config
from redist.cli.common import parse_address
from redist.cli.options import URL_HELP, url_argument, worker_options

__all__ = ["command"]


@click.command("worker", epilog=URL_HELP, short_help="Run a worker: it keeps values and runs tasks.")
@url_argument
@click.option("--name", metavar="NAME", help="Name of this worker, which no living one has.")
@worker_options
def command(url: str, executors: str | None, namespace: str | None, **options: object) -> None:
    """Run a worker of the server at URL in the foreground, until SIGTERM or Ctrl-C.

    What no option says, the configuration does. Exits with 69 if the server cannot be reached, and with 78 if it refuses the
    worker or the worker cannot run.
    """
    point = parse_address(url, namespace)
    if executors == "auto":
        from redist.memory.machine import cores

        threads = options["threads"] or config.get("worker.threads")
        executors = str(max(1, cores() // int(str(threads))))
    chosen = {"namespace": point.namespace, "executors": executors, **options}
    given = {k: v for k, v in chosen.items() if v is not None}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    # The process becomes the worker, so that a service manager's signals reach it; passwords leave the command line.
    environment = {**os.environ, **point.secrets()}
    os.execve(sys.executable, [sys.executable, "-m", "redist_worker", point.url, *arguments], environment)  # noqa: S606
