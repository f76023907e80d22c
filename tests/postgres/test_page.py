"""Page checksums against those that real servers wrote."""

from __future__ import annotations

import numpy as np
import pytest

from datamanager.base.units import Lsn
from datamanager.postgres.page import checksums, relation_segment, wrong_blocks, wrong_pages
from tests.conftest import NewServer

PAGE = 8192
LATER = Lsn.parse("FFFFFFFF/FFFFFFFF")


@pytest.mark.pg("14-18")
@pytest.mark.decision(18)
def test_every_page_of_a_real_cluster_has_the_checksum_that_we_compute(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create table t as select n, repeat(md5(n::text), 5) a from generate_series(1, 30000) n")
    server.sql("create index on t using gin (to_tsvector('simple', a))")
    server.sql("vacuum t")
    server.stop()
    judged = 0
    for path in server.data_directory.rglob("*"):
        name = bytes(path.relative_to(server.data_directory))
        segment = relation_segment(name) if path.is_file() else None
        if segment is None:
            continue
        data = path.read_bytes()
        assert wrong_blocks(data, PAGE, segment * 131072, LATER) == [], name
        judged += len(data) // PAGE
    assert judged > 3000


def real_page(block: int, fill: int = 7, lsn: int = 5) -> bytes:
    """A page with bounds, an LSN and a right checksum."""
    page = np.full(PAGE, fill, np.uint8)
    heads = page.view("<u2")
    page[:8].view("<u4")[:] = (lsn >> 32, lsn & 0xFFFFFFFF)
    heads[7] = 8000
    heads[4] = checksums(page.reshape(1, PAGE), block)[0]
    return page.tobytes()


@pytest.mark.decision(18)
def test_wrong_pages_are_named_from_the_start_of_the_relation_and_others_are_not() -> None:
    first = 131072
    pages = [bytearray(real_page(first + number)) for number in range(6)]
    pages[1][6000] ^= 1
    pages[4][100] ^= 128
    pages[5] = bytearray(PAGE)  # new
    data = b"".join(pages)
    assert wrong_blocks(data, PAGE, first, LATER) == [first + 1, first + 4]
    assert wrong_blocks(data, PAGE, first + 1, LATER) == [first + 1 + number for number in range(5)]
    assert wrong_blocks(data + b"part of a page", PAGE, first, LATER) == [first + 1, first + 4]
    assert wrong_blocks(b"short", PAGE, 0, LATER) == []


def test_a_page_written_after_the_start_is_left_to_replay() -> None:
    page = bytearray(real_page(3, lsn=Lsn.parse("2/10")))
    page[5000] ^= 1
    assert wrong_blocks(bytes(page), PAGE, 3, Lsn.parse("2/11")) == [3]
    assert wrong_blocks(bytes(page), PAGE, 3, Lsn.parse("2/10")) == []
    assert wrong_blocks(bytes(page), PAGE, 3, Lsn.parse("1/FFFFFFFF")) == []


def test_checksums_are_never_zero_and_depend_on_the_block() -> None:
    pages = np.random.default_rng(1).integers(0, 256, (500, PAGE), np.uint8)
    found = checksums(pages, 0)
    assert found.min() > 0
    assert len(set(found.tolist())) > 450
    assert (checksums(pages, 1) != found).all()
    assert [int(checksums(pages[n : n + 1], n)[0]) for n in range(0, 500, 99)] == found[::99].tolist()


def test_pages_of_several_batches_and_in_any_order_have_the_checksums_they_have_alone() -> None:
    chance = np.random.default_rng(2)
    pages = chance.integers(0, 256, (1100, PAGE), np.uint8)
    blocks = chance.permutation(np.arange(131072 * 3, 131072 * 3 + len(pages)))
    found = checksums(pages, blocks)
    for place in [*range(0, 1100, 199), 511, 512, 1023, 1024]:
        assert checksums(pages[place : place + 1], int(blocks[place]))[0] == found[place]
    stamped = pages.copy()
    stamped[:, 15] |= 1  # an upper bound, which every page but a new one has
    stamped.view("<u2")[:, 4] = checksums(stamped, blocks)
    stamped[700, 3000] ^= 4
    assert np.flatnonzero(wrong_pages(stamped, blocks, LATER)).tolist() == [700]


@pytest.mark.parametrize(
    ("path", "segment"),
    [
        (b"base/5/16384", 0),
        (b"base/5/16384.3", 3),
        (b"base/5/16384_fsm", 0),
        (b"base/5/16384_vm.1", 1),
        (b"base/5/16384_init", 0),
        (b"global/1262", 0),
        (b"pg_tblspc/16385/PG_18_202506291/5/16400.12", 12),
        (b"base/5/PG_VERSION", None),
        (b"base/5/pg_filenode.map", None),
        (b"base/5/t3_16384", None),
        (b"global/pg_control", None),
        (b"pg_xact/0000", None),
        (b"pg_wal/000000010000000000000001", None),
        (b"pg_tblspc/16385/other/5/16400", None),
        (b"base/5/16384.3\n", None),
        (b"x/base/5/16384", None),
    ],
)
def test_files_of_pages_are_told_from_others(path: bytes, segment: int | None) -> None:
    assert relation_segment(path) == segment
