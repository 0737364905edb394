"""The end of a process that has closed what it opened: at once, without the interpreter's own tear-down."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["run_and_exit"]


def run_and_exit(body: Callable[[], int]) -> NoReturn:
    """Run `body` and end the process with the exit code that it returns.

    Neither threads are waited for, one of which may be stuck in a call to a dead server, nor objects freed one by one; a
    forked process never returns into its parent's stack.
    """
    code = 1
    try:
        code = body()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        logging.getLogger("redist.worker").exception("process %d failed", os.getpid())
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
