"""What the address of a server says: the URL forms that redist takes, parsed and checked.

==================================================  ======================================================
``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``        a server over TCP; ``rediss://`` with TLS
``unix://[USER:PASSWORD@]/PATH[?db=DB]``            a server on this host's socket
``redis+sentinel://HOST[:PORT],.../SERVICE[/DB]``   the master that Sentinels name
``redis+cluster://HOST[:PORT],...``                 a Redis Cluster (7.0 or later); any of its nodes
==================================================  ======================================================

``valkey`` may stand for ``redis`` everywhere, and ``HOST:PORT`` alone means ``redis://``. Options follow a ``?``: `OPTIONS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redist.store.keys import check_namespace

__all__ = ["OPTIONS", "Address", "parse"]

OPTIONS = {
    "namespace": "namespace of the keys ('default')",
    "db": "number of the database (0)",
    "username": "ACL user; else REDIST_USERNAME in the environment",
    "password": "its password; else REDIST_PASSWORD in the environment",
    "timeout": "seconds to connect and to wait for a reply at connect (10)",
    "client_name": "name of the connections in CLIENT LIST ('redist')",
    "sentinel_username": "ACL user at the Sentinels",
    "sentinel_password": "its password; else REDIST_SENTINEL_PASSWORD in the environment",
    "ssl_ca_certs": "file of certificate authorities to trust",
    "ssl_certfile": "this side's certificate",
    "ssl_keyfile": "its private key",
    "ssl_cert_reqs": "'required' (default) or 'none': take any certificate",
    "ssl_check_hostname": "'true' (default) or 'false'",
}
"""Options of a URL's query, which `redist.store.connect.endpoint` takes as keywords too."""

_KINDS = {"": "tcp", "sentinel": "sentinel", "cluster": "cluster"}
_SECRET = {"password": "REDIST_PASSWORD", "sentinel_password": "REDIST_SENTINEL_PASSWORD"}
_PORT = {"tcp": 6379, "cluster": 6379, "sentinel": 26379}
_HELP = "use redis://HOST:PORT, rediss://, unix:///PATH, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address.

    Attributes
    ----------
    kind : {'tcp', 'unix', 'sentinel', 'cluster'}
        How the server is found.
    hosts : tuple of (host, port)
        The server, the Sentinels, or nodes of the Cluster; empty for a socket.
    path : str
        The socket.
    service : str
        The master's name at the Sentinels.
    tls : bool
        Whether connections are encrypted.
    options : dict of str
        What else was given; see `OPTIONS`.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def db(self) -> int:
        """Number of the database."""
        return int(self.options.get("db", "0"))

    @property
    def timeout(self) -> float:
        """Seconds to connect, and to wait for a reply at connect."""
        return float(self.options.get("timeout", "10"))

    @property
    def namespace(self) -> str:
        """Namespace of the keys."""
        return self.options.get("namespace", "default")

    def credentials(self, prefix: str = "") -> tuple[str, str]:
        """Return user and password, from the options or the environment; both empty for none."""
        secret = f"{prefix}password"
        user = self.options.get(f"{prefix}username", "" if prefix else os.environ.get("REDIST_USERNAME", ""))
        return user, self.options.get(secret, os.environ.get(_SECRET[secret], ""))

    def secrets(self) -> dict[str, str]:
        """Return the passwords as variables of an environment, for a child process that is given `url`."""
        return {_SECRET[name]: value for name, value in self.options.items() if name in _SECRET}

    def url(self, *, secrets: bool = False) -> str:
        """Return the address as a URL, the same for equal addresses; without passwords unless `secrets`."""
        options = {k: v for k, v in sorted(self.options.items()) if secrets or k not in _SECRET}
        if self.namespace == "default":
            options.pop("namespace", None)
        query = f"?{urlencode(options, quote_via=quote)}" if options else ""
        if self.kind == "unix":
            return f"unix://{quote(self.path)}{query}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "tcp" else f"+{self.kind}")
        path = f"/{quote(self.service)}" if self.service else ""
        return f"{scheme}://{','.join(map(show, self.hosts))}{path}{query}"


def show(host: tuple[str, int]) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host[0]}]:{host[1]}" if ":" in host[0] else f"{host[0]}:{host[1]}"


def parse(address: str, **options: object) -> Address:
    """Parse an address; keywords take precedence over the options in its query, None is as if not given.

    Raises
    ------
    ValueError
        If the address or an option is none that redist knows, naming those that it does.
    TypeError
        If the address is not a str.
    """
    if not isinstance(address, str):
        raise TypeError(f"an address is a str, not {type(address).__name__}; {_HELP}")
    text = address.strip()
    if not text:
        raise ValueError(f"the address is empty; {_HELP}")
    if "://" not in text:
        text = f"unix://{text}" if text.startswith("/") else f"redis://{text}"
    parts = urlsplit(text)
    scheme, _, suffix = parts.scheme.lower().partition("+")
    scheme = scheme.replace("valkey", "redis")
    if scheme == "redis" and suffix == "unix":
        scheme, suffix = "unix", ""
    if scheme not in ("redis", "rediss", "unix") or suffix not in _KINDS or (scheme == "unix" and suffix):
        raise ValueError(f"address {_safe(parts.scheme)}://...: unknown scheme; {_HELP}")
    given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    credentials, at, netloc = parts.netloc.rpartition("@")
    if at:
        user, _, password = credentials.partition(":")
        given |= {k: unquote(v) for k, v in (("username", user), ("password", password)) if v}
    path = unquote(parts.path)
    kind = "unix" if scheme == "unix" else _KINDS[suffix]
    service = ""
    if kind == "unix":
        if netloc or not path.startswith("/"):
            raise ValueError(f"address unix://{netloc}{path}: the path of a socket begins with '/'")
    elif kind == "sentinel":
        service, _, path = path.strip("/").partition("/")
        if not service:
            raise ValueError(
                "address redis+sentinel://...: name the master, as in redis+sentinel://HOST:PORT/SERVICE"
            )
    if kind != "unix" and path.strip("/"):
        given["db"] = path.strip("/")
    hosts = () if kind == "unix" else tuple(_host(item, _PORT[kind]) for item in netloc.split(",") if item)
    if kind != "unix" and not hosts:
        hosts = (("localhost", _PORT[kind]),)
    if kind == "tcp" and len(hosts) > 1:
        raise ValueError(
            f"address with {len(hosts)} hosts: that is for redis+sentinel:// and redis+cluster://"
        )
    given |= {k: _text(v) for k, v in options.items() if v is not None}
    _check(given, kind)
    return Address(kind, hosts, path if kind == "unix" else "", service, scheme == "rediss", given)


def _host(item: str, default: int) -> tuple[str, int]:
    host, port = item, ""
    if item.startswith("["):
        host, _, rest = item[1:].partition("]")
        port = rest.removeprefix(":")
    elif item.count(":") == 1:
        host, _, port = item.partition(":")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"address {item!r}: the port is a number from 1 to 65535")
    return host or "localhost", int(port or default)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _safe(scheme: str) -> str:
    return scheme if len(scheme) <= 20 else f"{scheme[:20]}..."


def _check(options: dict[str, str], kind: str) -> None:
    unknown = options.keys() - OPTIONS.keys()
    if unknown:
        raise ValueError(f"unknown option {min(unknown)!r} of an address; there are: {', '.join(OPTIONS)}")
    check_namespace(options.get("namespace", "default"))
    if not options.get("db", "0").isdecimal():
        raise ValueError(f"database {options['db']!r}: give its number")
    if kind == "cluster" and int(options.get("db", "0")):
        raise ValueError("a Redis Cluster has database 0 only")
    try:
        good = float(options.get("timeout", "10")) > 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"timeout {options['timeout']!r}: give seconds, more than 0")
    for name, allowed in (("ssl_cert_reqs", ("required", "none")), ("ssl_check_hostname", ("true", "false"))):
        if options.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name}={options[name]!r}: one of {', '.join(allowed)}")
