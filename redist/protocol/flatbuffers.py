"""The little of flatbuffers that the headers of a stream need.

`FlatBuffer` writes in one pass, parents before children, for templates that are made once. The functions read any
flatbuffer; on a damaged one they raise `struct.error` or `IndexError`.
"""

from __future__ import annotations

import struct

__all__ = ["FlatBuffer", "Offset", "field", "follow", "string"]


_UINT = struct.Struct("<I")
_INT = struct.Struct("<i")
_USHORT = struct.Struct("<H")


class Offset:
    """A place in the buffer that will hold the distance to a child."""

    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position = position


class FlatBuffer:
    """Writes tables, vectors and strings; whoever writes a child says where its parent refers to it."""

    data: bytearray

    def __init__(self) -> None:
        self.data = bytearray(4)

    def root(self) -> Offset:
        """Return the reference to the root table."""
        return Offset(0)

    def table(self, parent: Offset, fields: list[tuple[str, int] | None]) -> tuple[list[Offset], int]:
        """Write a table and refer to it from `parent`.

        Parameters
        ----------
        parent : Offset
            Where the parent refers to it.
        fields : list
            A slot each: a `struct` format with a value; ``("offset", 0)`` for a child; None for a missing field.

        Returns
        -------
        offsets : list of Offset
            One for each child, in order.
        start : int
            Position of the table; fields with 8 bytes come first, in the order of their slots.
        """
        order = sorted(
            (slot for slot, field in enumerate(fields) if field is not None),
            key=lambda slot: -_size(fields[slot]),
        )
        places: dict[int, int] = {}
        end = 4
        wide = any(_size(fields[slot]) == 8 for slot in order)
        if wide:
            end = 8
        for slot in order:
            places[slot] = end
            end += _size(fields[slot])
        self._align(2)
        vtable = len(self.data)
        self.data += struct.pack("<HH", 4 + 2 * len(fields), end)
        self.data += struct.pack(f"<{len(fields)}H", *[places.get(slot, 0) for slot in range(len(fields))])
        self._align(8 if wide else 4)
        start = len(self.data)
        self._refer(parent)
        self.data += struct.pack("<i", start - vtable) + bytes(end - 4)
        offsets: list[Offset] = []
        for slot, field in enumerate(fields):
            if field is None:
                continue
            form, value = field
            if form == "offset":
                offsets.append(Offset(start + places[slot]))
            else:
                struct.pack_into("<" + form, self.data, start + places[slot], value)
        return offsets, start

    def offsets(self, parent: Offset, count: int) -> list[Offset]:
        """Write a vector of `count` references to children."""
        self._align(4)
        self._refer(parent)
        self.data += struct.pack("<I", count)
        start = len(self.data)
        self.data += bytes(4 * count)
        return [Offset(start + 4 * i) for i in range(count)]

    def longs(self, parent: Offset, count: int, values: list[int]) -> int:
        """Write a vector of `count` structs made of 64-bit integers; return where the integers begin."""
        while (len(self.data) + 4) % 8:
            self.data.append(0)
        self._refer(parent)
        self.data += struct.pack("<I", count)
        start = len(self.data)
        self.data += struct.pack(f"<{len(values)}q", *values)
        return start

    def string(self, parent: Offset, text: bytes) -> int:
        """Write a string; return where its bytes begin."""
        self._align(4)
        self._refer(parent)
        self.data += struct.pack("<I", len(text))
        start = len(self.data)
        self.data += text + b"\0"
        return start

    def _refer(self, parent: Offset) -> None:
        struct.pack_into("<I", self.data, parent.position, len(self.data) - parent.position)

    def _align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)


def _size(field: tuple[str, int] | None) -> int:
    assert field is not None
    return 4 if field[0] == "offset" else struct.calcsize("<" + field[0])


def follow(flat: memoryview, position: int) -> int:
    """Return the position of what the reference at `position` refers to."""
    return position + int(_UINT.unpack_from(flat, position)[0])


def field(flat: memoryview, table: int, slot: int) -> int:
    """Return the position of a field of the table at `table`, 0 if it is missing."""
    vtable = table - _INT.unpack_from(flat, table)[0]
    if vtable < 0:
        raise IndexError(vtable)
    if 4 + 2 * slot >= _USHORT.unpack_from(flat, vtable)[0]:
        return 0
    place = int(_USHORT.unpack_from(flat, vtable + 4 + 2 * slot)[0])
    return table + place if place else 0


def string(flat: memoryview, reference: int) -> bytes:
    """Return the string that the reference at `reference` refers to; nothing for a missing field."""
    if not reference:
        return b""
    start = follow(flat, reference)
    return bytes(flat[start + 4 : start + 4 + _UINT.unpack_from(flat, start)[0]])
