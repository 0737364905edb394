"""Connect to a server and see whether it is fit.

An `Endpoint` is what an address, a namespace and options come to. It opens wires, also again after a failover, and checks
once whether the server is fit. Every refusal is an error of its own type that names the mend.

The handshake is done here, not by redis-py: importing that takes a third of a second in every process.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import hiredis

from redist.errors import ConnectionLost, ProtocolError, ServerRefused
from redist.store.address import Address, parse, show
from redist.store.fitness import ServerInfo, check, takes_writes, without_rights
from redist.store.keys import prefix_of
from redist.store.wire import Wire, pack_command

if TYPE_CHECKING:
    import ssl

__all__ = ["Endpoint", "ServerInfo", "endpoint"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25
_MAX_REDIRECTIONS = 5


def endpoint(address: str, namespace: str | None = None, **options: object) -> Endpoint:
    """Return the endpoint of an address.

    Parameters
    ----------
    address : str
        A URL; the forms are in `redist.store.address`.
    namespace : str, optional
        Namespace of the keys; default: the URL's, else ``'default'``.
    **options
        As in `redist.store.address.OPTIONS`.

    Raises
    ------
    ValueError
        If the address or an option is not understood.
    """
    return Endpoint(parse(address, namespace=namespace, **options))


class Endpoint:
    """Where the server is and how to connect to it.

    Attributes
    ----------
    namespace, prefix : str
        The namespace, and what all its Redis keys and channels begin with.
    cluster : bool
        Whether it is a Redis Cluster.
    publish, subscribe, unsubscribe : str
        Names of the pub/sub commands: the sharded ones in a Cluster.
    url : str
        The address without passwords.
    timeout : float
        Seconds to connect, and to wait for a reply at connect.
    """

    __slots__ = (
        "_owner", "_tls", "address", "cluster", "namespace", "prefix", "publish", "subscribe", "timeout", "unsubscribe",
        "url",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.namespace = address.namespace
        self.prefix = prefix_of(address.namespace)
        self.cluster = address.kind == "cluster"
        self.timeout = address.timeout
        self.url = address.url()
        shard = "S" if self.cluster else ""
        self.publish, self.subscribe, self.unsubscribe = (
            f"{shard}PUBLISH",
            f"{shard}SUBSCRIBE",
            f"{shard}UNSUBSCRIBE",
        )
        self._tls: ssl.SSLContext | None = None
        # The node that owned the namespace's slot when last asked.
        self._owner: tuple[str, int] | None = None

    def __repr__(self) -> str:
        return f"<Endpoint {self.url} namespace={self.namespace!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Endpoint, (self.address,)

    def secrets(self) -> dict[str, str]:
        """Return the passwords as environment variables, for a child process that is given `url` on its command line."""
        return self.address.secrets()

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self, timeout: float | None = None, *, retry: bool = False) -> Wire:
        """Return a new, authenticated connection to the server that may write this namespace.

        Parameters
        ----------
        timeout : float, optional
            Seconds for all of it; default: the endpoint's.
        retry : bool
            Try again until `timeout` while nobody answers, instead of failing at once.

        Raises
        ------
        ConnectionLost
            If no server could be reached in time.
        ServerRefused
            If one answered that it does not let us in.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._open_once(deadline)
            except ConnectionLost:
                if not retry or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _open_once(self, deadline: float) -> Wire:
        kind = self.address.kind
        if kind == "cluster":
            return self._open_owner(deadline)
        if kind == "sentinel":
            return self._open_master(deadline)
        return self._connect(self.address.hosts[0] if kind == "tcp" else None, deadline)

    def _connect(self, host: tuple[str, int] | None, deadline: float, *, sentinel: bool = False) -> Wire:
        peer = (
            f"unix://{self.address.path}"
            if host is None
            else f"{'rediss' if self.address.tls else 'redis'}://{show(host)}"
        )
        sock = self._socket(host, peer, max(0.001, deadline - time.monotonic()))
        wire = Wire(sock, peer=peer, timeout=max(0.001, deadline - time.monotonic()))
        try:
            self._greet(wire, sentinel)
        except BaseException:
            wire.close()
            raise
        wire.timeout = self.timeout
        return wire

    def _socket(self, host: tuple[str, int] | None, peer: str, timeout: float) -> socket.socket:
        sock = None
        try:
            if host is None:
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(timeout)
                sock.connect(self.address.path)
                return sock
            sock = socket.create_connection(host, timeout)
            _keep_alive(sock)
            return self._encrypt(sock, host[0]) if self.address.tls else sock
        except OSError as error:
            if sock is not None:
                sock.close()
            if _is_tls_error(error):
                raise ServerRefused(
                    f"{peer} does not agree on TLS: {error}. Check that the port speaks TLS, and give ssl_ca_certs=FILE for "
                    "a private authority (ssl_certfile, ssl_keyfile where the server asks for a certificate)"
                ) from error
            if sock is not None and host is not None:
                raise ConnectionLost(
                    f"{peer} broke off the TLS handshake ({error}); check that the port speaks TLS"
                ) from error
            raise ConnectionLost(_unreachable(peer, host, error, timeout)) from error

    def _encrypt(self, sock: socket.socket, hostname: str) -> socket.socket:
        import ssl

        options = self.address.options
        if self._tls is None:
            context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
            if options.get("ssl_check_hostname") == "false" or options.get("ssl_cert_reqs") == "none":
                context.check_hostname = False
            if options.get("ssl_cert_reqs") == "none":
                context.verify_mode = ssl.CERT_NONE
            if "ssl_certfile" in options:
                context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
            self._tls = context
        return self._tls.wrap_socket(sock, server_hostname=hostname)

    def _greet(self, wire: Wire, sentinel: bool) -> None:
        user, password = self.address.credentials("sentinel_" if sentinel else "")
        commands: list[tuple[str, ...]] = []
        if password:
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if self.address.db and not sentinel:
            commands.append(("SELECT", str(self.address.db)))
        commands.append(("CLIENT", "SETNAME", self.address.options.get("client_name", "redist")))
        commands.append(("PING",))
        try:
            wire.send(b"".join(map(pack_command, commands)))
            replies = [wire.read_reply() for _ in commands]
        except ProtocolError as error:
            raise ServerRefused(
                f"what answers at {wire.peer} is no Redis server, or speaks TLS (then use rediss://): {error}"
            ) from error
        for command, reply in zip(commands, replies):
            if isinstance(reply, hiredis.ReplyError):
                _judge_greeting(wire.peer, command[0], str(reply))

    def _open_owner(self, deadline: float) -> Wire:
        """Connect to the node of the Cluster that owns the namespace's slot, following redirections."""
        failures = []
        for seed in dict.fromkeys([*([self._owner] if self._owner else []), *self.address.hosts]):
            host = seed
            try:
                for _ in range(_MAX_REDIRECTIONS):
                    wire = self._connect(host, deadline)
                    moved = self._redirection(wire, host)
                    if moved is None:
                        self._owner = host
                        return wire
                    wire.close()
                    host = moved
                failures.append(f"{show(seed)} redirects in a circle")
            except ConnectionLost as error:
                failures.append(str(error))
        raise ConnectionLost(
            f"no node of the Cluster at {self.url} serves the namespace {self.namespace!r}: {'; '.join(failures)}"
        )

    def _redirection(self, wire: Wire, host: tuple[str, int]) -> tuple[str, int] | None:
        try:
            wire.call("HGET", f"{self.prefix}meta", "schema")
        except hiredis.ReplyError as error:
            word, *rest = str(error).split(" ")
            if word == "MOVED" and len(rest) == 2:
                name, _, port = rest[1].rpartition(":")
                # A node that does not know its own name leaves it out.
                return name or host[0], int(port)
            wire.close()
            if word == "NOPERM":
                raise without_rights(wire.peer, self.namespace, str(error), cluster=True) from error
            raise ConnectionLost(f"{wire.peer} is not ready: {error}") from error
        return None

    def _open_master(self, deadline: float) -> Wire:
        """Connect to the master that the first Sentinel to know one names."""
        failures, reached = [], 0
        for host in self.address.hosts:
            try:
                name = self._ask_sentinel(host, deadline)
                reached += 1
                if name is None:
                    continue
                wire = self._connect(name, deadline)
                try:
                    if takes_writes(wire, self.namespace, self.timeout):
                        return wire
                except BaseException:
                    wire.close()
                    raise
                wire.close()
                failures.append(f"{wire.peer} was named as master but is read-only, a failover is under way")
            except ConnectionLost as error:
                failures.append(str(error))
        if reached and not failures:
            raise ServerRefused(
                f"no Sentinel at {self.url} knows a master named {self.address.service!r}; `SENTINEL MASTERS` lists them"
            )
        raise ConnectionLost(f"no master {self.address.service!r} by {self.url}: {'; '.join(failures)}")

    def _ask_sentinel(self, host: tuple[str, int], deadline: float) -> tuple[str, int] | None:
        sentinel = self._connect(host, deadline, sentinel=True)
        try:
            reply = sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.address.service)
        except hiredis.ReplyError as error:
            raise ServerRefused(
                f"{sentinel.peer} is no Sentinel, or does not let us ask it: {error}"
            ) from error
        finally:
            sentinel.close()
        return None if reply is None else (reply[0].decode(), int(reply[1]))

    # --- checking ---------------------------------------------------------------------------------------------------

    def check(self, wire: Wire) -> ServerInfo:
        """See whether the server behind `wire` is fit, and wait for one that is loading its data.

        Where INFO is forbidden, what it would tell is not checked; the log says so (``redist.store``, INFO).

        Raises
        ------
        ServerRefused
            If it is too old, evicts keys, is a read-only replica, a Sentinel or of a Cluster, or grants too few rights.
        SchemaMismatch
            If another version of redist wrote the namespace.
        """
        return check(wire, self.namespace, cluster=self.cluster, timeout=self.timeout)


# --- words for failures ---------------------------------------------------------------------------------------------


def _judge_greeting(peer: str, command: str, text: str) -> None:
    """Raise if an error reply to the handshake means that we are not let in."""
    word = text.partition(" ")[0]
    if command == "SELECT":
        raise ServerRefused(
            f"{peer} does not give the database asked for: {text}. Leave the number out to use database 0"
        )
    if word == "NOAUTH":
        raise ServerRefused(
            f"{peer} wants a password: put it in the address (redis://USER:PASSWORD@HOST:PORT) or in REDIST_PASSWORD"
        )
    if word == "WRONGPASS" or (command == "AUTH" and "invalid password" in text):
        raise ServerRefused(f"{peer} does not accept this user and password: {text}")
    if word == "DENIED":
        raise ServerRefused(
            f"{peer} is in protected mode and only serves its own host: give it a password (requirepass) or bind it to an "
            "address that only your hosts reach, then set protected-mode no"
        )
    if "max number of clients" in text:
        raise ServerRefused(
            f"{peer}: {text}. Raise maxclients on the server (each process of redist has two connections)"
        )
    # The rest (a password where none is set, no right to set a name or to PING, loading) does not keep us out.


def _unreachable(peer: str, host: tuple[str, int] | None, error: OSError, timeout: float) -> str:
    if isinstance(error, socket.gaierror):
        return f"{peer}: the host name {host[0] if host else ''!r} is not known ({error.strerror}); check the address"
    if isinstance(error, TimeoutError):
        return f"{peer} did not answer within {timeout:.3g} s; check the address, and that no firewall is between"
    reason = error.strerror or str(error)
    return (
        f"nothing answers at {peer} ({reason}); check the address, or start a server there (`redist server`)"
    )


def _is_tls_error(error: OSError) -> bool:
    # An end of file is a server that goes away, not one that disagrees.
    return type(error).__module__ == "ssl" and type(error).__name__ != "SSLEOFError"


def _keep_alive(sock: socket.socket) -> None:
    """Send at once, and notice a peer that is gone without a word within about half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 15),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
