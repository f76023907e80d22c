"""Joining CRC-32C values: the checksum of a whole from those of its parts, without reading it again.

Appending n bytes multiplies a CRC by x^(8n) modulo the Castagnoli polynomial; that is linear, so it becomes four table
look-ups for each length that recurs. Source: RFC 3720 appendix B.4; zlib's crc32_combine uses the same mathematics.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

_POLYNOMIAL = 0x82F63B78  # reflected
_KEEP_LOCK = 0

U32 = npt.NDArray[np.uint32]


def checksum(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The CRC-32C of what came ``before`` and then a piece of some 256 KiB.

    The interpreter's lock is kept: such a piece takes 10 us, less than giving the lock away and taking it back.
    """
    return int(crc32c(data, before, _KEEP_LOCK))


def combine(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32C of A followed by B, from those of A and B and the length of B in bytes."""
    return advance(first, second_bytes) ^ second


def advance(value: int, size: int) -> int:
    """``value`` multiplied by x^(8 size)."""
    if value == 0 or size == 0:
        return value
    tables = _shift_tables(size)
    return (
        tables[0][value & 0xFF] ^ tables[1][value >> 8 & 0xFF] ^ tables[2][value >> 16 & 0xFF] ^ tables[3][value >> 24]
    )


def advance_each(values: U32, sizes: npt.NDArray[np.int64]) -> U32:
    """``advance`` of each value by its own size: one pass for each bit that any size has."""
    result = values.copy()
    left = sizes
    bit = 0
    while left.any():
        chosen = np.flatnonzero(left & 1)
        if len(chosen):
            tables = _step_tables(bit)
            some = result[chosen]
            moved = tables[0][some & 0xFF]
            for number in range(1, 4):
                moved ^= tables[number][some >> np.uint32(8 * number) & np.uint32(0xFF)]
            result[chosen] = moved
        left = left >> 1
        bit += 1
    return result


def of_zeros_each(sizes: npt.NDArray[np.int64]) -> U32:
    """The CRC-32C of so many zero bytes, for each size. A CRC begins with all bits set and ends with all turned."""
    return ~advance_each(np.full(len(sizes), 0xFFFF_FFFF, np.uint32), sizes)


@lru_cache(maxsize=256)
def _shift_tables(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(table.tolist()) for table in _tables(_power(size)))


@cache
def _step_tables(bit: int) -> U32:
    """The tables that advance by 2^bit bytes; 4 KiB each, and no size has more than 64 bits."""
    return _tables(_power(1 << bit))


def _tables(operator: int) -> U32:
    """What ``operator`` makes of every value of each of the four bytes: the sum of what it makes of its bits."""
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(32):
        table, inside = divmod(bit, 8)
        half = 1 << inside
        tables[table, half : 2 * half] = tables[table, :half] ^ np.uint32(_multiply(operator, 1 << bit))
    return tables


def _power(size: int) -> int:
    """x^(8 size) modulo the polynomial, reflected: bit 31 stands for x^0."""
    result, square = 1 << 31, 1 << 23  # 1 and x^8
    while size:
        if size & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        size >>= 1
    return result


def _multiply(one: int, other: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return product
