"""Resources of workers as users write them: ``GPU=1,MEM=2.5``."""

from __future__ import annotations

import re

__all__ = ["parse_resources"]

_RESOURCE = re.compile(r"([A-Za-z_][\w.\-]*)=([0-9]+(?:\.[0-9]+)?)")


def parse_resources(text: str) -> str:
    """Check and return resources, ``GPU=1,MEM=2.5``; blanks are dropped.

    Raises
    ------
    ValueError
        If an item is not ``NAME=NUMBER``.
    """
    items = [item.strip().replace(" ", "") for item in text.replace(" ", ",").split(",") if item.strip()]
    for item in items:
        if not _RESOURCE.fullmatch(item):
            raise ValueError(f"{item!r} is no resource: write NAME=NUMBER, for example GPU=1,MEM=2.5")
    return ",".join(items)
