"""Joining CRC-32C values: the checksum of a whole from those of its parts, without reading it again.

Appending n bytes multiplies a CRC by x^(8n) modulo the Castagnoli polynomial; that is linear, so it becomes four table
look-ups for each length that recurs. Source: RFC 3720 appendix B.4; zlib's crc32_combine uses the same mathematics.
"""

from __future__ import annotations

from functools import lru_cache

from crc32c import crc32c

_POLYNOMIAL = 0x82F63B78  # reflected
_ZEROS = bytes(1 << 20)


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


def append_zeros(value: int, size: int) -> int:
    """The CRC-32C after ``size`` more zero bytes."""
    return combine(value, _of_zeros(size), size)


@lru_cache(maxsize=256)
def _of_zeros(size: int) -> int:
    value, done = 0, 0
    while done < size and size - done <= len(_ZEROS):
        value, done = crc32c(_ZEROS[: size - done], value), size
    if done < size:
        half = size // 2
        value = combine(_of_zeros(half), _of_zeros(size - half), size - half)
    return int(value)


@lru_cache(maxsize=256)
def _shift_tables(size: int) -> tuple[tuple[int, ...], ...]:
    operator = _power(size)
    return tuple(tuple(_multiply(operator, byte << shift) for byte in range(256)) for shift in (0, 8, 16, 24))


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
