#!/usr/bin/env python3
"""Run N workers on this host, start again those that die, and stop all on a signal.

Made for a service manager: it stays in the foreground, logs one line an event to standard error, and says by its exit code

  0   stopped by SIGTERM or SIGINT, every worker ended in good order
  1   stopped by a signal, and some workers had to be killed
  2   wrong arguments
  69  the server could not be reached, and --once was given
  78  no worker can run: the server refuses them, or their arguments are wrong

SIGHUP starts the workers again one by one (after an upgrade). With systemd, ``Type=notify`` works.

Example
-------
    scripts/launch_workers.py redis://:PASSWORD@head:6379 --workers 2 --executors 4 --resources GPU=1
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from types import FrameType

from redist.launch import HOPELESS, Launcher, WorkerProcess, WorkerSettings, cores
from redist.store.connect import endpoint

logger = logging.getLogger("launch_workers")

EXIT_KILLED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_CONFIG = 1, 2, 69, 78


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


def main(argv: list[str] | None = None) -> int:
    """Run the workers; return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=args.log_level.upper(),
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        point = endpoint(args.url, args.namespace)
    except ValueError as error:
        parser.error(str(error))
    settings = WorkerSettings(
        point.url,
        namespace=point.namespace,
        executors=args.executors or max(1, cores() // (args.workers * args.threads)),
        threads=args.threads,
        memory_limit=args.memory_limit,
        resources=args.resources,
        host=args.host,
        port=args.port,
        grace=args.grace,
        log_level=args.log_level.upper(),
        environment=point.secrets(),
    )
    name = args.name or socket.gethostname()
    names = [name] if args.workers == 1 and args.name else [f"{name}-{i}" for i in range(args.workers)]
    signals = _Signals()
    launcher = signals.launcher = Launcher(settings, restart=not args.once, report=_report)
    launcher.add(names)
    _notify("READY=1")
    status = _watch(launcher, signals, names, args.grace + 10)
    if signals.stop:
        logger.info("%s: stopping", signal.Signals(signals.stop).name)
    _notify("STOPPING=1")
    clean = launcher.close(args.grace + 10)
    logger.info("all workers have ended")
    return status or (0 if clean else EXIT_KILLED)


def _watch(launcher: Launcher, signals: _Signals, names: list[str], timeout: float) -> int:
    """Watch until a signal, or until no worker can be expected to run any more."""
    while not signals.stop:
        workers = launcher.workers
        if workers and all(worker.hopeless for worker in workers.values()):
            logger.error("no worker is left")
            statuses = {worker.status or 0 for worker in workers.values()}
            return (
                EXIT_CONFIG
                if statuses & HOPELESS
                else next((abs(status) for status in statuses if status), 0)
            )
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


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "url", help="the server: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://"
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="workers on this host; default 1"
    )
    parser.add_argument(
        "--executors", type=_positive, metavar="N", help="executors of each; default: fill the cores"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads of each executor; default 1"
    )
    parser.add_argument(
        "--memory-limit", default="0", metavar="AMOUNT", help="most memory for payloads of each: 4GiB or 0.5"
    )
    parser.add_argument(
        "--name", default="", help="name of the workers, followed by -0, -1, ...; default: the host's"
    )
    parser.add_argument(
        "--resources", default="", help="what tasks can ask each worker for, as GPU=1,MEM=2.5"
    )
    parser.add_argument("--host", default="", help="address at which other hosts reach the data of this one")
    parser.add_argument(
        "--port", type=int, default=0, help="port of the data server, with one worker; default: any"
    )
    parser.add_argument("--namespace", help="namespace of the keys; default: the URL's, or 'default'")
    parser.add_argument(
        "--grace", type=float, default=5.0, metavar="SECONDS", help="time for tasks to finish; default 5"
    )
    parser.add_argument("--once", action="store_true", help="do not start workers again")
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
