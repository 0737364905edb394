"""Arguments that Dask's users give and that change little here: what is no value of theirs is refused all the same.

Arguments of Dask's local cluster are taken only where they ask for what is so anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redist.errors import NotOffered
from redist.timeouts import seconds

__all__ = [
    "asynchronous_in",
    "check_client_options",
    "check_cluster_options",
    "check_fifo_timeout",
    "check_flags",
    "check_loop",
]


def check_flags(**given: Any) -> None:
    """Refuse what is neither True, False nor None.

    Raises
    ------
    TypeError
        If there is such an argument.
    """
    for name, value in given.items():
        if value not in (True, False, None):
            raise TypeError(f"{name} is True, False or None, not {value!r:.80}")


def check_fifo_timeout(fifo_timeout: Any) -> None:
    """Refuse what is no span of time.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if seconds(fifo_timeout) is None:
        raise TypeError("fifo_timeout is a span of time, not None")


def check_loop(loop: Any) -> None:
    """Refuse as ``loop=`` what is neither None nor an event loop, of asyncio or of tornado.

    Raises
    ------
    TypeError
        If it is none.
    """
    if loop is not None and not (hasattr(loop, "call_soon_threadsafe") or hasattr(loop, "add_callback")):
        raise TypeError(
            f"loop is an event loop or None, not {loop!r:.80}; here an asynchronous client runs in its caller's loop"
        )


def check_client_options(
    loop: Any, security: Any, serializers: Any, deserializers: Any, extensions: Any, connection_limit: Any
) -> None:
    """Refuse as options of a client what Dask's users would not give.

    Raises
    ------
    TypeError
        If there is such an argument.
    """
    check_loop(loop)
    if security not in (None, True, False) and not (
        isinstance(security, Mapping) or hasattr(security, "get_connection_args")
    ):
        raise TypeError(
            f"security is a Security object of Dask's or None, not {security!r:.80}; here the address says what the server "
            "asks for: rediss://USER:PASSWORD@HOST"
        )
    for name, value in (("serializers", serializers), ("deserializers", deserializers)):
        if value is not None and (
            isinstance(value, str) or not all(isinstance(one, str) for one in _items(name, value))
        ):
            raise TypeError(f"{name} is a list of names, not {value!r:.80}")
    if extensions is not None and not isinstance(extensions, Mapping):
        raise TypeError(f"extensions is a mapping of names to classes, not {extensions!r:.80}")
    if connection_limit is not None and not isinstance(connection_limit, int | float):
        raise TypeError(f"connection_limit is a number, not {connection_limit!r:.80}")


def _items(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} is a list of names, not {value!r:.80}") from None


def asynchronous_in(function: str, kwargs: dict[str, Any]) -> bool | None:
    """Take ``asynchronous=`` out of the keywords of a function that takes no other.

    Raises
    ------
    TypeError
        If there are others.
    """
    asynchronous = kwargs.pop("asynchronous", None)
    if kwargs:
        raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(kwargs))!r}")
    return asynchronous  # type: ignore[no-any-return]


def check_cluster_options(
    processes: object,
    protocol: object,
    port: object,
    security: object,
    dashboard_address: object,
    diagnostics_port: object,
    loop: object,
) -> None:
    """Refuse arguments of Dask's local cluster that ask for what this one is not.

    Raises
    ------
    NotOffered
        If one does; it says what to do.
    TypeError
        If one is of a wrong type.
    """
    check_loop(loop)
    for name, value in (("dashboard_address", dashboard_address), ("diagnostics_port", diagnostics_port)):
        if value is not None and not isinstance(value, str | int):
            raise TypeError(
                f"{name} is an address such as ':8787' or None, not {value!r:.80}; there is no dashboard"
            )
    if processes is not None and not processes:
        raise NotOffered(
            "processes=False: tasks run in processes of workers, never in this one; to debug, call the function itself, "
            "compute a collection with scheduler='synchronous', or start one worker of one thread (n_workers=1, "
            "threads_per_worker=1)"
        )
    if protocol not in (None, "tcp", "tcp://"):
        raise NotOffered(
            f"protocol={protocol!r}: workers of a local cluster share memory, and its server listens at a socket of this "
            "user; between hosts TLS is set up by the settings tls.ca-file, tls.cert and tls.key (docs/security.md)"
        )
    if port:
        raise NotOffered(
            f"scheduler_port={port!r}: there is no scheduler, and the server of a local cluster listens at no port; for one "
            "that does run `redist server --bind ADDRESS --port PORT`, and give its address"
        )
    if security:
        raise NotOffered(
            "security=: what a server asks for is in its address (rediss://), and between hosts TLS is set up by the "
            "settings tls.ca-file, tls.cert and tls.key (docs/security.md)"
        )
