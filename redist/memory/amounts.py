"""Amounts of memory as users write them."""

from __future__ import annotations

import re

from redist.memory.machine import memory_of_machine

__all__ = ["parse_bytes"]

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return a number of bytes from ``4GiB``, ``500 MB``, ``0``, or a fraction of the memory like ``0.5``.

    The memory is the machine's, or what the control group of this process may use (`memory_of_machine`).

    Raises
    ------
    ValueError
        If it is none of these.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no amount of memory: write 4GiB, 500MB or a fraction of the memory like 0.5"
        )
    number, unit = float(match[1]), match[2].lower()
    if unit == "i":
        raise ValueError(
            f"{text!r} is no amount of memory: write 4GiB, 500MB or a fraction of the memory like 0.5"
        )
    if not unit and 0 < number <= 1 and "." in match[1]:
        return int(number * memory_of_machine())
    return int(number * _UNITS[unit])
