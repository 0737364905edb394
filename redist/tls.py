"""TLS between workers, and between clients and workers of other hosts, as the settings ``tls`` want it.

Both sides show a certificate, as in Dask: who has none that the authority signed is not let in. The name in a worker's
certificate is not compared with its address, which may be one of many; the token of the namespace tells that it is one of
its workers.
"""

from __future__ import annotations

import ssl

from redist import config
from redist.errors import ConfigurationError

__all__ = ["client_context", "server_context"]


def client_context() -> ssl.SSLContext | None:
    """Return the context of who connects, None without TLS.

    Raises
    ------
    ConfigurationError
        If only some of the settings are there, or a file is not what it should be.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def server_context() -> ssl.SSLContext | None:
    """Return the context of who listens, None without TLS; raises as `client_context`."""
    return _context(ssl.PROTOCOL_TLS_SERVER)


def _context(protocol: int) -> ssl.SSLContext | None:
    files = {name: config.get(f"tls.{name}") for name in ("ca-file", "cert", "key")}
    missing = [f"tls.{name}" for name, path in files.items() if not path]
    if len(missing) == len(files):
        return None
    if missing:
        raise ConfigurationError(
            f"TLS needs tls.ca-file, tls.cert and tls.key: {', '.join(missing)} is not set"
        )
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files["ca-file"])
        context.load_cert_chain(files["cert"], files["key"])
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: {', '.join(files.values())} cannot be used: {error}") from error
    return context
