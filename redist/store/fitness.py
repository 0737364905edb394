"""Whether a server is fit for redist: version, eviction policy, role, rights and schema.

Every refusal is an error that names the mend. What INFO would tell is not checked where it is forbidden.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import hiredis

from redist.errors import ConnectionLost, SchemaMismatch, ServerRefused
from redist.store.keys import SCHEMA, prefix_of
from redist.store.wire import Wire

__all__ = ["OLDEST", "OLDEST_CLUSTER", "ServerInfo", "check", "takes_writes", "without_rights"]

logger = logging.getLogger("redist.store")

OLDEST = (6, 2)
OLDEST_CLUSTER = (7, 0)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `check` learned.

    Attributes
    ----------
    product : {'redis', 'valkey', ''}
        Which server it is; empty where INFO is forbidden.
    version : tuple of int
        Its own version, or ``()``.
    policy : str
        ``maxmemory-policy``, or empty.
    maxmemory : int
        Bytes; 0 for no limit, or unknown.
    appendonly : bool
        Whether it keeps an append-only file.
    schema : int or None
        The namespace's schema; None for a namespace that nobody has used yet.
    """

    product: str = ""
    version: tuple[int, ...] = ()
    policy: str = ""
    maxmemory: int = 0
    appendonly: bool = False
    schema: int | None = None

    def __str__(self) -> str:
        return f"{self.product} {_dotted(self.version)}" if self.product else "server of unknown version"


def check(wire: Wire, namespace: str, *, cluster: bool, timeout: float) -> ServerInfo:
    """See whether the server behind `wire` is fit, and wait for one that is loading its data.

    Raises
    ------
    ServerRefused
        If it is not.
    SchemaMismatch
        If another version of redist wrote the namespace.
    ConnectionLost
        If the connection breaks, or the server is not ready within `timeout` seconds.
    """
    facts: dict[str, str] = {}
    info = ServerInfo()
    try:
        facts = _facts(wire.call("INFO"))
        info = _judge(wire.peer, facts, cluster)
    except hiredis.ReplyError as error:
        logger.info(
            "%s does not allow INFO (%s), so its version and eviction policy are not checked: redist needs "
            "Redis %s or later with maxmemory-policy noeviction or volatile-*",
            wire.peer,
            error,
            _dotted(OLDEST),
        )
    deadline = time.monotonic() + timeout
    while not takes_writes(wire, namespace, timeout, cluster=cluster):
        if facts.get("role") == "slave" or time.monotonic() > deadline:
            master = facts.get("master_host", "")
            raise ServerRefused(
                f"{wire.peer} is a read-only replica{f' of {master}' if master else ''}. Connect to the master, or let "
                "Sentinels name it: redis+sentinel://HOST:PORT/SERVICE"
            )
        time.sleep(_LONGEST_PAUSE)
    field = _call(wire, namespace, timeout, cluster, "HGET", f"{prefix_of(namespace)}meta", "schema")
    if field is None:
        return info
    schema = field.decode(errors="replace")
    if schema != str(SCHEMA):
        raise SchemaMismatch(
            f"the namespace {namespace!r} at {wire.peer} has schema {schema}, and this version of redist writes schema "
            f"{SCHEMA}. Use the version that wrote it, or another namespace (?namespace=NAME)"
        )
    return replace(info, schema=SCHEMA)


def takes_writes(wire: Wire, namespace: str, timeout: float, *, cluster: bool = False) -> bool:
    """Return whether the server takes writes, by one that changes nothing and that a full server takes too.

    Raises
    ------
    ServerRefused
        If it forbids them to this user, or cannot save them.
    """
    try:
        _call(wire, namespace, timeout, cluster, "SREM", f"{prefix_of(namespace)}void", "")
    except hiredis.ReplyError as error:
        if str(error).startswith(("READONLY", "MASTERDOWN")):
            return False
        raise ServerRefused(f"{wire.peer} takes no writes: {error}") from error
    return True


def without_rights(peer: str, namespace: str, text: str, *, cluster: bool) -> ServerRefused:
    """Return the error for a user that lacks rights."""
    command = f"redist acl USER --namespace {namespace}{' --cluster' if cluster else ''}"
    return ServerRefused(
        f"the user lacks rights at {peer}: {text}. `{command}` prints the line that grants what redist needs;"
        " or, if the user was made for another namespace, add ?namespace=NAME to the address"
    )


def _judge(peer: str, facts: dict[str, str], cluster: bool) -> ServerInfo:
    mode = facts.get("redis_mode", facts.get("server_mode", ""))
    if mode == "sentinel":
        raise ServerRefused(f"{peer} is a Sentinel; use redis+sentinel://HOST:PORT/SERVICE")
    if mode == "cluster" and not cluster:
        raise ServerRefused(f"{peer} is a node of a Redis Cluster; use redis+cluster://HOST:PORT")
    # Valkey calls itself Redis 7.2.4; its own version has a field of its own.
    product = "valkey" if "valkey_version" in facts else "redis"
    version = _version(facts.get(f"{product}_version", ""))
    compatible = _version(facts.get("redis_version", "")) or version
    oldest = OLDEST_CLUSTER if cluster else OLDEST
    if compatible and compatible < oldest:
        raise ServerRefused(
            f"{peer} is Redis {_dotted(compatible)}, and redist needs {_dotted(oldest)} or later"
            f"{' in a Cluster, for sharded pub/sub' if cluster else ''}. Upgrade it, or start one with `redist server`"
        )
    policy = facts.get("maxmemory_policy", "")
    if policy.startswith("allkeys"):
        raise ServerRefused(
            f"{peer} has maxmemory-policy {policy}, which evicts state that is needed. Change it there, as with `redis-cli "
            "CONFIG SET maxmemory-policy noeviction`; volatile-* is fine too, since no key of redist expires"
        )
    maxmemory = facts.get("maxmemory", "")
    return ServerInfo(
        product,
        version,
        policy,
        int(maxmemory) if maxmemory.isdecimal() else 0,
        facts.get("aof_enabled") == "1",
    )


def _call(wire: Wire, namespace: str, timeout: float, cluster: bool, *args: str) -> Any:
    """Call, and wait while the server loads its data or runs a long script."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        try:
            return wire.call(*args)
        except hiredis.ReplyError as error:
            text = str(error)
            if text.startswith("NOPERM"):
                raise without_rights(wire.peer, namespace, text, cluster=cluster) from error
            if not text.startswith(("LOADING", "BUSY ")):
                raise
            if time.monotonic() + pause > deadline:
                raise ConnectionLost(f"{wire.peer} was not ready within {timeout:g} s: {text}") from error
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _facts(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _version(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
