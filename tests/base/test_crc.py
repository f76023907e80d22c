"""CRC-32C of a whole from those of its parts."""

from __future__ import annotations

from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.crc import advance, append_zeros, combine


@given(st.binary(max_size=500), st.binary(max_size=500))
def test_combining_gives_the_checksum_of_both_parts_joined(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_any_number_of_parts_can_be_folded(parts: list[bytes]) -> None:
    folded = 0
    for part in parts:
        folded = combine(folded, crc32c(part), len(part))
    assert folded == crc32c(b"".join(parts))


@given(st.binary(max_size=100), st.integers(0, 5000))
def test_appending_zeros_needs_no_zeros(data: bytes, size: int) -> None:
    assert append_zeros(crc32c(data), size) == crc32c(data + bytes(size))


def test_appending_many_zeros_at_the_edges_of_the_block_that_is_hashed() -> None:
    start = crc32c(b"abc")
    for size in ((1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7):
        assert append_zeros(start, size) == crc32c(bytes(size), start)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**33), st.integers(0, 2**33))
def test_advancing_twice_is_advancing_by_the_sum(value: int, one: int, other: int) -> None:
    assert advance(advance(value, one), other) == advance(value, one + other)


def test_a_terabyte_of_zeros_is_no_work() -> None:
    assert append_zeros(append_zeros(5, 1 << 39), 1 << 39) == append_zeros(5, 1 << 40)
