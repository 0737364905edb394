"""The rights that redist needs, as the ``ACL SETUSER`` line that grants exactly them."""

from __future__ import annotations

import re

from redist.store.keys import prefix_of
from redist.store.scripts import load, names

__all__ = ["acl_line", "commands"]

#: Commands of the connections themselves; what scripts call is read from the scripts.
_CONNECTIONS = (
    "client|setname",
    "eval",
    "evalsha",
    "hget",
    "ping",
    "select",
    "srem",
    "subscribe",
    "unsubscribe",
)
#: What `redist doctor` and `redist why` read.
_DIAGNOSIS = ("get", "hgetall", "hscan", "lrange", "scard", "smembers", "sscan", "zrange", "zscan")
_CALLED = re.compile(r"\b(?:call|many|pcall)\(\s*'([A-Z]+)'")
_USER = re.compile(r"[^\s\x00]+")


def commands(*, cluster: bool = False) -> list[str]:
    """Return the commands that redist uses, sorted; in a Cluster pub/sub is the sharded one."""
    used = {*_CONNECTIONS, *_DIAGNOSIS}
    for name in names():
        used |= {command.lower() for command in _CALLED.findall(load(name).text)}
    if cluster:
        used -= {"publish", "subscribe", "unsubscribe"}
        used |= {"spublish", "ssubscribe", "sunsubscribe"}
    return sorted(used)


def acl_line(user: str, namespace: str = "default", *, password: str, cluster: bool = False) -> str:
    """Return the command that makes `user` one who can use redist in `namespace`, and nothing else.

    Parameters
    ----------
    user : str
        Name of the ACL user.
    namespace : str
        The user is fenced into its keys and channels.
    password : str
        The user's password.
    cluster : bool
        For a Redis Cluster; the line goes to every node.

    Raises
    ------
    ValueError
        If the user's name or the password is empty or has spaces.
    """
    for what, text in (("the user's name", user), ("the password", password)):
        if not _USER.fullmatch(text):
            raise ValueError(f"{what} is empty or has spaces: {text!r}")
    prefix = prefix_of(namespace)
    rights = " ".join(f"+{command}" for command in commands(cluster=cluster))
    return f"ACL SETUSER {user} reset on >{password} ~{prefix}* &{prefix}* {rights}"
