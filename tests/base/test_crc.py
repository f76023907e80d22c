"""CRC-32C of a whole from those of its parts."""

from __future__ import annotations

import numpy as np
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.crc import advance, advance_each, checksum, combine, of_zeros_each


@given(st.binary(max_size=500), st.binary(max_size=500))
def test_combining_gives_the_checksum_of_both_parts_joined(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_any_number_of_parts_can_be_folded(parts: list[bytes]) -> None:
    folded = 0
    for part in parts:
        folded = combine(folded, crc32c(part), len(part))
    assert folded == crc32c(b"".join(parts))


def zeros(*sizes: int) -> list[int]:
    return [int(value) for value in of_zeros_each(np.array(sizes, np.int64))]


@given(st.lists(st.integers(0, 5000), max_size=10))
def test_the_checksum_of_zeros_needs_no_zeros(sizes: list[int]) -> None:
    assert zeros(*sizes) == [crc32c(bytes(size)) for size in sizes]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**33), st.integers(0, 2**33))
def test_advancing_twice_is_advancing_by_the_sum(value: int, one: int, other: int) -> None:
    assert advance(advance(value, one), other) == advance(value, one + other)


def test_a_terabyte_of_zeros_is_no_work() -> None:
    half, whole = zeros(1 << 39, 1 << 40)
    assert combine(half, half, 1 << 39) == whole


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**40)), max_size=20))
def test_many_values_advance_as_each_does_alone(pairs: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in pairs], np.uint32)
    sizes = np.array([size for _, size in pairs], np.int64)
    assert advance_each(values, sizes).tolist() == [advance(value, size) for value, size in pairs]


@given(st.lists(st.tuples(st.integers(0, 500), st.binary(max_size=100)), max_size=10), st.integers(0, 300))
def test_pieces_in_any_order_add_up_to_the_checksum_of_the_file_with_zeros_between(
    pieces: list[tuple[int, bytes]], rest: int
) -> None:
    whole, places = b"", []
    for gap, data in pieces:
        places.append((len(whole) + gap, data))
        whole += bytes(gap) + data
    whole += bytes(rest)
    (crc,) = zeros(len(whole))
    for start, data in reversed(places):
        (nothing,) = zeros(len(data))
        crc ^= advance(checksum(data) ^ nothing, len(whole) - start - len(data))
    assert crc == crc32c(whole)
