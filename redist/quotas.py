"""What a client or a namespace may hold, as those who register tell the server."""

from __future__ import annotations

from redist import config
from redist.memory.amounts import parse_bytes

__all__ = ["quotas"]


def quotas(client: int | str | None = None, *, own: bool = True) -> dict[str, str]:
    """Return the fields that a registration tells.

    Parameters
    ----------
    client : int or str, optional
        A client's own quota; default: the setting ``quota.client``. 0 for none.
    own : bool
        Whether it is a client that registers, not a worker.

    Raises
    ------
    TypeError, ValueError
        If one is no amount of memory.
    """
    fields = {}
    if own:
        mine = _amount("quota", config.get("quota.client") if client is None else client)
        if mine:
            fields["quota"] = str(mine)
    everybody = _amount("quota.namespace", config.get("quota.namespace"))
    if everybody is not None:
        fields["namespace_quota"] = str(everybody)
    return fields


def _amount(what: str, amount: object) -> int | None:
    if amount is None:
        return None
    if isinstance(amount, bool) or not isinstance(amount, int | float | str):
        raise TypeError(f"{what} is a number of bytes or text such as '4GiB', not {amount!r:.80}")
    number = amount if isinstance(amount, int) else parse_bytes(str(amount))
    if not 0 <= number < 2**53:
        raise ValueError(f"{what}={amount!r} is no amount of memory")
    return number
