#!/usr/bin/env python3
"""Run N workers on this host, start again those that die, and stop all on a signal; ``--help`` says the rest.

Made for a service manager: it stays in the foreground, logs one line an event to standard error, and says by its exit code
how it ended. SIGHUP starts the workers again one by one (after an upgrade). With systemd, ``Type=notify`` works.

Example
-------
    scripts/launch_workers.py redis://:PASSWORD@head:6379 --workers 2 --executors 4 --resources GPU=1
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

try:
    import click

    from redist import config
    from redist.cli.common import parse_address
    from redist.cli.options import URL_HELP, url_argument, worker_options
    from redist.ends import HOPELESS, REFUSED
    from redist.launch import Launcher, WorkerProcess, WorkerSettings
    from redist.memory.machine import cores
    from redist.timeouts import seconds
except ModuleNotFoundError as missing:
    sys.exit(
        f"launch_workers: {missing}: activate the environment that has redist (as `. .venv/bin/activate`), or install "
        "it with `pip install redist`"
    )

logger = logging.getLogger("launch_workers")

EXIT_KILLED = 1


class _Signals:
    """Signals as flags, with a launcher to be woken by them."""

    def __init__(self) -> None:
        self.stop = 0
        self.reload = False
        self.launcher: Launcher | None = None
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            self.reload = True
        else:
            self.stop = signum
        if self.launcher is not None:
            self.launcher.wake()


@click.command(epilog=URL_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@url_argument
@click.option(
    "--workers", metavar="N", type=click.IntRange(1), default=1, help="Workers on this host. Default: 1."
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name of the workers, followed by -0, -1, ...; a second launcher on a host needs another. Default: the host's.",
)
@click.option("--once", is_flag=True, help="Do not start workers again.")
@worker_options
def main(
    url: str,
    workers: int,
    name: str | None,
    once: bool,
    namespace: str | None,
    executors: str | None,
    **options: Any,
) -> None:
    """Run N workers on this host, start again those that die, and stop all on a signal.

    What no option says, the configuration does; executors fill the cores. SIGHUP starts the workers again one by one.

    \b
    Exit codes:
      0   stopped by SIGTERM or SIGINT, every worker ended in good order
      1   stopped by a signal, and some workers had to be killed
      2   wrong arguments
      69  the server could not be reached, and --once was given
      78  no worker can run: the server refuses them, or they are set up wrongly
    """
    if options["port"] and workers > 1:
        raise click.UsageError("--port is for one worker; several on a host get any free ports.")
    logging.basicConfig(
        stream=sys.stderr,
        level=options["log_level"],
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    point = parse_address(url, namespace)
    threads = options["threads"] or int(config.get("worker.threads"))
    grace = seconds(_or_setting(options, "grace")) or 0.0
    settings = WorkerSettings(
        point.url,
        namespace=point.namespace,
        executors=max(1, cores() // (workers * threads))
        if executors in (None, "auto")
        else int(executors or 0),
        threads=threads,
        memory_limit=str(_or_setting(options, "memory_limit")),
        spill_dir=_or_setting(options, "spill_dir"),
        max_spill=str(_or_setting(options, "max_spill")),
        resources=_or_setting(options, "resources"),
        host=options["host"] or "",
        port=options["port"] or 0,
        segments=options["segments"] or "",
        connect_timeout=options["connect_timeout"] or "",
        grace=grace,
        log_level=options["log_level"],
        environment=point.secrets(),
    )
    base = name or socket.gethostname()
    names = [base] if workers == 1 and name else [f"{base}-{i}" for i in range(workers)]
    sys.exit(_run(settings, names, once, grace + 10))


def _or_setting(options: dict[str, Any], name: str) -> Any:
    return config.get(f"worker.{name}") if options[name] is None else options[name]


def _run(settings: WorkerSettings, names: list[str], once: bool, timeout: float) -> int:
    """Run workers until a signal; return the exit code."""
    signals = _Signals()
    launcher = signals.launcher = Launcher(settings, restart=not once, report=_report)
    launcher.add(names)
    _notify("READY=1")
    status = _watch(launcher, signals, names, timeout)
    if signals.stop:
        logger.info("%s: stopping", signal.Signals(signals.stop).name)
    _notify("STOPPING=1")
    clean = launcher.close(timeout)
    logger.info("all workers have ended")
    return status or (0 if clean else EXIT_KILLED)


def _watch(launcher: Launcher, signals: _Signals, names: list[str], timeout: float) -> int:
    """Watch until a signal, or until no worker can be expected to run any more."""
    while not signals.stop:
        workers = launcher.workers
        if workers and all(worker.hopeless for worker in workers.values()):
            logger.error("no worker is left")
            statuses = {worker.status or 0 for worker in workers.values()}
            return REFUSED if statuses & HOPELESS else next((abs(status) for status in statuses if status), 0)
        if signals.reload:
            signals.reload = False
            for name in names:
                launcher.remove([name], timeout)
                launcher.add([name])
        launcher.watch()
    return 0


def _report(worker: WorkerProcess, text: str) -> None:
    level = logging.WARNING if worker.status not in (None, 0) and not worker.running else logging.INFO
    logger.log(level, "worker %s (pid %d) %s", worker.name, worker.last_pid, text)


def _notify(state: str) -> None:
    """Tell systemd, where it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall(state.encode())


if __name__ == "__main__":
    main()
