"""Start of a worker process: parse, fork the fork server while there is one thread, then be a worker."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main", "start"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker in the foreground; return its exit code."""
    from redist import config
    from redist.timeouts import seconds

    def configured(name: str) -> Any:
        return config.get(f"worker.{name}")

    parser = argparse.ArgumentParser("redist_worker", description="Run a worker of redist in the foreground.")
    parser.add_argument(
        "address", help="URL of the server: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://"
    )
    parser.add_argument("--namespace", help="namespace of the keys; default: the URL's, or 'default'")
    parser.add_argument("--name", default="", help="name of this worker, unique in the namespace")
    parser.add_argument(
        "--executors",
        type=int,
        default=configured("executors"),
        metavar="N",
        help="executor processes; default 1",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=configured("threads"),
        metavar="N",
        help="threads of each executor; default 1",
    )
    parser.add_argument(
        "--memory-limit",
        default=str(configured("memory-limit")),
        metavar="BYTES",
        help="most memory for payloads: 4GiB, or 0.5 of all",
    )
    parser.add_argument(
        "--resources",
        default=configured("resources"),
        help="what tasks can ask for, for example GPU=1,MEM=2.5",
    )
    parser.add_argument("--host", default="", help="address on which other hosts reach this one's data")
    parser.add_argument("--port", type=int, default=0, help="port of the data server; default: any")
    parser.add_argument(
        "--segments",
        default=configured("segments"),
        metavar="DIR",
        help="where payloads lie; default: shared memory",
    )
    parser.add_argument(
        "--lease", type=seconds, default=configured("lease"), metavar="SECONDS", help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=configured("grace"),
        metavar="SECONDS",
        help="time for tasks to finish at the end",
    )
    parser.add_argument(
        "--connect-timeout",
        type=seconds,
        default=configured("connect-timeout"),
        metavar="SECONDS",
        help="wait so long for the server",
    )
    parser.add_argument("--die-with-parent", type=int, default=-1, metavar="FD", help=argparse.SUPPRESS)
    parser.add_argument("--no-echo", action="store_true", help="send what tasks print to the clients only")
    parser.add_argument("--log-level", default="WARNING", help="DEBUG, INFO, WARNING or ERROR")
    return start(parser, parser.parse_args(argv))


def start(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run a worker by parsed arguments."""
    from redist.memory.amounts import parse_bytes
    from redist.store.connect import endpoint
    from redist_worker.options import WorkerOptions, parse_resources

    logging.basicConfig(
        stream=sys.stderr,
        level=args.log_level.upper(),
        format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s",
    )
    if args.executors < 1 or args.threads < 1:
        parser.error("--executors and --threads must be at least 1")
    try:
        options = WorkerOptions(
            endpoint(args.address, args.namespace),
            name=args.name,
            executors=args.executors,
            threads=args.threads,
            memory_limit=parse_bytes(args.memory_limit),
            resources=parse_resources(args.resources),
            host=args.host,
            port=args.port,
            segments=args.segments,
            lease=args.lease,
            grace=args.grace,
            connect_timeout=args.connect_timeout,
            parent_fd=args.die_with_parent,
            echo=not args.no_echo,
        )
    except ValueError as error:
        parser.error(str(error))
    if options.parent_fd >= 0:
        os.set_inheritable(options.parent_fd, False)

    import redist_worker.executor  # noqa: F401  what worker and executors both need is imported once, before the fork
    from redist_worker.forkserver import ForkServer

    server = ForkServer()
    server.start()

    from redist_worker.worker import serve

    return serve(options, server)
