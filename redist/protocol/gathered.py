"""Arrays that are not contiguous, on their way into a payload: gathered straight into it, never copied as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Gathered"]

_PIECE = 1 << 20
_SAME_SIZE = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


class Gathered:
    """The items of an array in C order, one after the other.

    Parameters
    ----------
    array : numpy.ndarray
        Without objects; must not be written to until it was written out.
    """

    nbytes: int

    __slots__ = ("_items", "nbytes")

    def __init__(self, array: Any) -> None:
        # The bytes as they are, padding of structures included; numbers of the same size are copied fastest.
        size = array.dtype.itemsize
        self._items: Any = array.view(_SAME_SIZE.get(size, f"V{size}"))
        self.nbytes = array.nbytes

    def __len__(self) -> int:
        return self.nbytes

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of a megabyte."""
        import numpy as np

        items = self._items
        many = max(1, _PIECE // items.itemsize)
        for piece in np.nditer(items, ["external_loop", "buffered"], order="C", buffersize=many):
            yield piece.tobytes()  # type: ignore[attr-defined]

    def write_into(self, target: memoryview) -> None:
        """Write the bytes to `target`, which has as many."""
        import numpy as np

        items = self._items
        np.copyto(np.ndarray(items.shape, items.dtype, target), items)
