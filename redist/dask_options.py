"""Arguments of Dask's local cluster that this one takes only where they ask for what is so anyway."""

from __future__ import annotations

from redist.errors import NotOffered

__all__ = ["check_dask_options"]


def check_dask_options(processes: object, protocol: object, port: object, security: object) -> None:
    """Refuse arguments of Dask's local cluster that ask for what this one is not.

    Raises
    ------
    NotOffered
        If one does; it says what to do.
    """
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
