"""Start of a worker process: parse, fork the fork server while there is one thread, then be a worker.

What it is told comes from `redist worker`, which people use, or from a launcher; both have checked it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main", "start"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker in the foreground; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv

    from redist import config
    from redist.timeouts import seconds

    if any(arg.startswith("--die-with-parent") for arg in argv):
        # who started us has the same settings, and has said so
        warnings.filterwarnings("ignore", "redist has no setting")

    def configured(name: str) -> Any:
        return config.get(f"worker.{name}")

    if "--help" in argv or "-h" in argv:
        from redist.cli.worker import command

        command.main(["--help"], prog_name="redist worker", help_option_names=["-h", "--help"])
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("address")
    parser.add_argument("--namespace")
    parser.add_argument("--name", default="")
    parser.add_argument("--executors", type=int, default=configured("executors"))
    parser.add_argument("--threads", type=int, default=configured("threads"))
    parser.add_argument("--memory-limit", default=str(configured("memory-limit")))
    parser.add_argument("--spill-dir", default=configured("spill-dir"))
    parser.add_argument("--max-spill", default=str(configured("max-spill")))
    parser.add_argument("--resources", default=configured("resources"))
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--segments", default=configured("segments"))
    parser.add_argument("--lease", type=seconds, default=configured("lease"))
    parser.add_argument("--grace", type=seconds, default=configured("grace"))
    parser.add_argument("--connect-timeout", type=seconds, default=configured("connect-timeout"))
    parser.add_argument("--die-with-parent", type=int, default=-1)
    parser.add_argument("--no-echo", action="store_true")
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        default="WARNING",
    )
    return start(parser, parser.parse_args(argv))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as `redist worker` does, which has the words about the options."""

    def error(self, message: str) -> NoReturn:
        if "." not in message.split(" ", 1)[0]:  # else it begins with the name of a setting
            message = message[:1].upper() + message[1:]
        sys.stderr.write(
            "Usage: redist worker [OPTIONS] [URL]\nTry 'redist worker --help' for help.\n\n"
            f"Error: {message}\n"
        )
        sys.exit(2)


def start(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run a worker by parsed arguments."""
    from redist.memory.amounts import parse_bytes
    from redist.memory.limits import configured_limits, small_limit_warning
    from redist.resources import parse_resources
    from redist.sizing import limit
    from redist.store.connect import endpoint
    from redist_worker.options import WorkerOptions

    logging.basicConfig(
        stream=sys.stderr,
        level=args.log_level,
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
            memory_limit=int(limit(args.memory_limit, args.executors * args.threads)),
            memory=configured_limits(),
            spill_dir=args.spill_dir,
            max_spill=parse_bytes(args.max_spill),
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
        warning = small_limit_warning(options.memory_limit, options.executors, options.memory)
    except ValueError as error:
        parser.error(str(error))
    if warning:
        logging.getLogger("redist.worker").warning("%s", warning)
    if options.parent_fd >= 0:
        os.set_inheritable(options.parent_fd, False)

    import redist_worker.executor  # noqa: F401  what worker and executors both need is imported once, before the fork
    from redist_worker.forkserver import ForkServer

    server = ForkServer()
    server.start()

    from redist_worker.worker import serve

    return serve(options, server)
