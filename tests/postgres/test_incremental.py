"""What a server's increment sends: every way to cut it into pieces gives the same pages, and nonsense is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import IncrementRefused
from datamanager.base.units import Lsn
from datamanager.postgres.incremental import MAGIC, StubParser, is_visibility_map, without_parent

PAGE = 8192
NAME = b"base/5/INCREMENTAL.16384.1"


def stub(blocks: dict[int, bytes], length: int, *, magic: int = MAGIC, count: int | None = None) -> bytes:
    numbers = list(blocks)
    head = struct.pack(f"=III{len(numbers)}I", magic, len(numbers) if count is None else count, length, *numbers)
    return head + (bytes(-len(head) % PAGE) if numbers else b"") + b"".join(blocks.values())


def parse(data: bytes, sizes: list[int], parent_pages: int | None = 100) -> tuple[dict[int, bytes], tuple[int, int]]:
    pages: dict[int, bytes] = {}
    parser = StubParser(NAME, parent_pages, PAGE, lambda number, page: pages.update({number: bytes(page)}))
    position = 0
    while position < len(data):
        size = sizes.pop() if sizes else len(data)
        parser.feed(memoryview(data)[position : position + size])
        position += size
    end = parser.finish()
    assert (parser.bytes, parser.blocks) == (len(data), len(pages))
    return pages, end


def page(number: int) -> bytes:
    return bytes([number % 251]) * PAGE


@given(
    st.sets(st.integers(0, 3000), max_size=12),
    st.integers(0, 3000),
    st.lists(st.integers(1, 20_000), max_size=40),
)
def test_however_it_is_cut_the_same_pages_come_out(numbers: set[int], length: int, sizes: list[int]) -> None:
    blocks = {number: page(number) for number in sorted(numbers)}
    found, (size, kept) = parse(stub(blocks, length), sizes)
    assert found == blocks
    assert size == max(length, max(numbers, default=-1) + 1) * PAGE
    assert kept == min(length, 100)


@pytest.mark.parametrize(
    "data",
    [
        stub({}, 5, magic=1),
        stub({}, 200_000),
        stub({}, 5, count=200_000),
        stub({}, 5) + b"x",
        stub({1: page(1)}, 5) + b"x",
        stub({1: page(1)}, 5)[:-1],
        stub({}, 5)[:-1],
        stub({}, 5, count=1),
        stub({2: page(2), 1: page(1)}, 5),
        stub({131_072: page(1)}, 5),
        b"",
    ],
)
def test_what_no_server_sends_is_refused(data: bytes) -> None:
    with pytest.raises(IncrementRefused):
        parse(data, [])


@pytest.mark.decision(7)
def test_changes_of_a_file_that_the_parent_lacks_are_refused() -> None:
    with pytest.raises(IncrementRefused, match="no such file"):
        parse(stub({}, 5), [], parent_pages=None)


def test_only_members_named_so_are_increments() -> None:
    assert StubParser.target(b"base/5/INCREMENTAL.16384") == b"base/5/16384"
    assert StubParser.target(b"INCREMENTAL.x") == b"x"
    assert StubParser.target(b"base/INCREMENTAL.5/16384") is None


def test_visibility_maps_are_known_by_their_names() -> None:
    assert [is_visibility_map(b"base/5/%b" % name) for name in (b"1_vm", b"1_vm.2", b"1_fsm", b"1", b"vm")] == [
        True,
        True,
        False,
        False,
        False,
    ]


LABEL = (
    b"START WAL LOCATION: 0/5000028 (file 000000010000000000000005)\nCHECKPOINT LOCATION: 0/5000080\n"
    b"LABEL: INCREMENTAL FROM nowhere\nSTART TIMELINE: 1\n"
)
LINES = b"INCREMENTAL FROM LSN: 0/4000028\nINCREMENTAL FROM TLI: 1\n"


@pytest.mark.decision(8)
def test_the_label_loses_the_lines_that_name_its_parent() -> None:
    assert without_parent(LABEL + LINES, Lsn.parse("0/4000028"), 1) == LABEL


@pytest.mark.decision(7)
@pytest.mark.parametrize(("lsn", "timeline"), [("0/4000030", 1), ("0/4000028", 2)])
def test_a_label_that_names_another_parent_is_refused(lsn: str, timeline: int) -> None:
    with pytest.raises(IncrementRefused):
        without_parent(LABEL + LINES, Lsn.parse(lsn), timeline)
    with pytest.raises(IncrementRefused):
        without_parent(LABEL, Lsn.parse("0/4000028"), 1)
