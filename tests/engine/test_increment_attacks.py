"""Increments under attack: whatever happens to files, pages and stubs, no wrong page shows."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import IncrementRefused
from datamanager.engine.backup.defragment import Scatter
from datamanager.postgres.incremental import MAGIC, StubParser
from datamanager.repository.format import ZERO_PACK
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from tests.engine.synthetic_increment import PAGE, SyntheticServer
from tests.engine.synthetic_source import SyntheticCluster, make_cluster
from tests.engine.test_increments import back_up, restored
from tests.repository.parts import backup, new_repository, reopen, verify

TABLE = b"base/5/16386"  # not in the slice that a first increment has sent whole


def one_table(pages: int, seed: int = 1) -> SyntheticCluster:
    content = random.Random(seed).randbytes(PAGE * pages)
    return SyntheticCluster(PAGE, {TABLE: content, b"PG_VERSION": b"18\n"}, (b"base", b"base/5"))


def with_page(cluster: SyntheticCluster, page: int, data: bytes, path: bytes = TABLE) -> SyntheticCluster:
    content = bytearray(cluster.files[path])
    content[page * PAGE : (page + 1) * PAGE] = data
    return cluster.with_files({path: bytes(content)})


def assert_comes_back(repository: Repository, manifest: Manifest, cluster: SyntheticCluster, target: Path) -> None:
    assert restored(reopen(repository), manifest, target) == cluster.files


# -- wrong pages ------------------------------------------------------------------------------------------------------


def test_a_page_that_turned_back_shows_as_it_is_now(tmp_path: Path) -> None:
    """The chunk stored first is the right one again; the page stored since must not show."""
    repository, first = new_repository(), one_table(40)
    server = SyntheticServer(first, rewritten=0)
    back_up(repository, server)
    server.moved(with_page(first, 5, b"x" * PAGE))
    assert back_up(repository, server).manifest.method == "native"
    server.moved(first)
    manifest = back_up(repository, server, full=True).manifest
    assert manifest.method == "compared"
    assert_comes_back(repository, manifest, first, tmp_path / "r")


def test_a_free_space_map_that_turned_back_shows_as_it_is_now(tmp_path: Path) -> None:
    fork = TABLE + b"_fsm"
    first = one_table(3).with_files({fork: random.Random(2).randbytes(PAGE * 3)})
    repository, server = new_repository(), SyntheticServer(first, rewritten=0)
    for cluster in (first, with_page(first, 2, b"x" * PAGE, fork), first):
        server.moved(cluster)
        manifest = back_up(repository, server).manifest
    assert manifest.method == "native"
    assert_comes_back(repository, manifest, first, tmp_path / "r")


@pytest.mark.parametrize("between", [5, 31, 32, 33])
def test_a_file_cut_and_grown_to_what_it_was_shows_all_of_it(between: int, tmp_path: Path) -> None:
    repository, first = new_repository(), one_table(64)
    server = SyntheticServer(first, rewritten=0)
    for number, cluster in enumerate((first, first.with_files({TABLE: first.files[TABLE][: between * PAGE]}), first)):
        server.moved(cluster)
        manifest = back_up(repository, server, full=number == 2).manifest
    assert manifest.method == "compared"
    assert_comes_back(repository, manifest, first, tmp_path / "r")


def test_a_file_whose_last_page_was_short_in_the_parent_is_sent_whole(tmp_path: Path) -> None:
    """The server believes that nothing changed below the new length; the parent has half of a page there."""
    repository, whole = new_repository(), one_table(11)
    content = whole.files[TABLE][: 10 * PAGE] + b"y" * 4000
    server = SyntheticServer(whole.with_files({TABLE: content}), rewritten=0, silent=(TABLE,))
    back_up(repository, server)
    server.moved(whole.with_files({TABLE: content + bytes(PAGE - 4000)}))
    manifest = back_up(repository, server).manifest
    assert manifest.method == "native"
    assert_comes_back(repository, manifest, server.cluster, tmp_path / "r")


@pytest.mark.parametrize("page_size", [1024, 2048, 4096, 16384, 32768])
def test_pages_of_every_size_are_compared(page_size: int, tmp_path: Path) -> None:
    chance = random.Random(page_size)
    repository, cluster = new_repository(), make_cluster(3, page_size, pages=60)
    taken = []
    for _ in range(5):
        taken.append((backup(repository, cluster).manifest, cluster))
        files = dict(cluster.files)
        for path in [one for one in files if one.startswith(b"base/")]:
            data = bytearray(files[path])
            for _ in range(chance.randrange(3)):
                page = chance.randrange(len(data) // page_size + 1)
                end = min(len(data), (page + 1) * page_size)
                data[page * page_size : end] = chance.choice((chance.randbytes, bytes))(end - page * page_size)
            what = chance.randrange(8)
            if what == 0:
                del data[chance.randrange(len(data) + 1) :]
            elif what == 1:
                data += chance.choice((chance.randbytes, bytes))(chance.randrange(40 * page_size))
            elif what == 2 and chance.random() < 0.5:
                del files[path]
                continue
            files[path] = chance.choice((bytes(data), bytes(data), cluster.files[path], taken[0][1].files[path]))
        cluster = replace(cluster, files=files)
    assert [one.method for one, _ in taken] == ["full"] + ["compared"] * 4
    for manifest, expected in taken:
        assert_comes_back(repository, manifest, expected, tmp_path / manifest.backup)


@pytest.mark.parametrize("seed", range(4))
def test_pages_that_come_and_go_and_come_back_show_as_they_are(seed: int, tmp_path: Path) -> None:
    """Few different pages, so that chunks, pages and whole files are met again and again."""
    chance = random.Random(f"few {seed}")
    pages = [bytes(PAGE), b"a" * PAGE, b"b" * PAGE, random.Random(9).randbytes(PAGE)]

    def content() -> bytes:
        size, base = chance.randrange(70), chance.choice(pages)
        return b"".join(base if chance.random() < 0.9 else chance.choice(pages) for _ in range(size))

    paths = [b"base/5/%d" % (16384 + n) for n in range(4)] + [TABLE + b"_fsm", TABLE + b"_vm", b"pg_xact/0000"]
    repository, server = new_repository(), SyntheticServer(one_table(3), rewritten=0)
    taken: list[tuple[Manifest, SyntheticCluster]] = []
    seen: list[bytes] = [b""]
    for number in range(16):
        files = dict(server.cluster.files)
        for path in paths:
            what = chance.random()
            if what < 0.4:
                seen.append(content())
                files[path] = chance.choice(seen)
            elif what < 0.5:
                files.pop(path, None)
            elif what < 0.6 and path in files:
                files[path] = files[path][: PAGE * chance.randrange(len(files[path]) // PAGE + 1)]
        server.moved(replace(server.cluster, files=files))
        full = chance.random() < 0.3
        manifest = back_up(repository, server, full=full, seed=number).manifest
        assert manifest.method == ("full" if number == 0 else "compared" if full else "native"), manifest.warnings
        taken.append((manifest, server.cluster))
    for manifest, expected in taken:
        assert_comes_back(repository, manifest, expected, tmp_path / manifest.backup)


def test_what_is_scattered_is_stored_anew_below_files_cut_and_dropped_in_the_same_backup(tmp_path: Path) -> None:
    repository, first = new_repository(), one_table(64)
    other, third = b"base/5/16400", b"base/5/16401"
    first = first.with_files({other: first.files[TABLE], third: first.files[TABLE][::-1]})
    server = SyntheticServer(first, rewritten=0)
    back_up(repository, server)
    cluster = first
    for number in range(8):
        for path in (TABLE, other, third):
            cluster = with_page(cluster, number * 7, random.Random(number).randbytes(PAGE), path)
        server.moved(cluster)
        back_up(repository, server)
    files = cluster.files | {other: cluster.files[other][: 20 * PAGE], third: cluster.files[third] + bytes(PAGE * 40)}
    del files[TABLE]
    server.moved(replace(cluster, files=files))
    scatter = Scatter(region_bytes=32 * PAGE, packs=2, share=10.0)
    result = back_up(repository, server, scatter=scatter)
    assert result.manifest.method == "native"
    assert result.stored > 0
    assert_comes_back(repository, result.manifest, server.cluster, tmp_path / "r")
    assert verify(repository).ok


def test_zeros_that_are_stored_anew_are_told_and_not_stored(tmp_path: Path) -> None:
    repository, cluster = new_repository(), one_table(64)
    server = SyntheticServer(cluster, rewritten=0)
    back_up(repository, server)
    for page in range(32):
        cluster = with_page(cluster, page, bytes(PAGE))
        if page % 8 == 7:
            server.moved(cluster)
            back_up(repository, server)
    server.moved(cluster)
    scatter = Scatter(region_bytes=32 * PAGE, packs=2, share=10.0)
    result = back_up(repository, server, scatter=scatter)
    entry = repository.contents(result.manifest).find(TABLE)
    assert entry is not None
    assert int(entry.rows.first[entry.rows.pack != ZERO_PACK].min()) == 32
    assert_comes_back(repository, result.manifest, cluster, tmp_path / "r")


def test_kinds_and_modes_change(tmp_path: Path) -> None:
    repository, first = new_repository(), one_table(3)
    first = first.with_files({b"base/5/thing": b"content", b"base/5/empty": b""})
    server = SyntheticServer(first, rewritten=0)
    back_up(repository, server)
    files = {path: content for path, content in first.files.items() if path != b"base/5/thing"}
    as_directory = replace(
        first, files=files | {b"base/5/thing/inner": b"x"}, directories=(*first.directories, b"base/5/thing")
    )
    server.moved(as_directory)
    manifest = back_up(repository, server).manifest
    assert_comes_back(repository, manifest, as_directory, tmp_path / "directory")
    server.moved(first)
    manifest = back_up(repository, server).manifest
    assert_comes_back(repository, manifest, first, tmp_path / "file")
    with_modes = replace(first, modes={TABLE: 0o640, b"base/5/empty": 0o400})
    compared = backup(repository, with_modes).manifest
    modes = {entry.path: entry.mode for entry in repository.contents(compared).files()}
    assert (modes[TABLE], modes[b"base/5/empty"]) == (0o640, 0o400)


# -- stubs -----------------------------------------------------------------------------------------------------------


def stub(numbers: list[int], length: int, pages: bytes = b"") -> bytes:
    head = struct.pack(f"=III{len(numbers)}I", MAGIC, len(numbers), length, *numbers)
    return head + (bytes(-len(head) % PAGE) if numbers else b"") + pages


def parse(data: bytes, piece_bytes: int) -> tuple[int, int]:
    parser = StubParser(b"base/5/INCREMENTAL.1", 10, PAGE, lambda number, page: None)
    for start in range(0, len(data), piece_bytes):
        parser.feed(memoryview(data)[start : start + piece_bytes])
    return parser.finish()


def test_a_stub_of_a_whole_segment_is_taken_with_little_memory() -> None:
    count = 131_072
    seen = []
    parser = StubParser(b"base/5/INCREMENTAL.1", count, PAGE, lambda number, page: seen.append(number))
    parser.feed(memoryview(stub(list(range(count)), count)))
    page = memoryview(bytes(PAGE))
    for _ in range(count):
        parser.feed(page)
    assert parser.finish() == (1 << 30, count)
    assert seen == list(range(count))


@pytest.mark.parametrize(
    "data",
    [
        stub([131_072], 5, bytes(PAGE)),
        stub([3, 3], 5, bytes(2 * PAGE)),
        stub([4, 3], 5, bytes(2 * PAGE)),
        stub([], 131_073),
        stub([1], 5),
        stub([1], 5, bytes(PAGE + 1)),
        stub([], 5, b"x"),
        stub([1], 5, bytes(PAGE))[:9],
        b"",
        b"text" * 10,
    ],
)
def test_a_stub_that_makes_no_sense_is_refused_however_it_is_cut(data: bytes) -> None:
    for size in (1, 11, 4096, 100_000):
        with pytest.raises(IncrementRefused):
            parse(data, size)
