"""The witness of restored files: a backup_manifest that PostgreSQL's own program accepts, and every page's checksum."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.engine.restore.page_check import PageRules
from datamanager.postgres.page import checksums
from datamanager.postgres.server_manifest import check_manifest, manifest_files, wal_ranges
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry, FileFlag, FileKind
from datamanager.repository.manifest import ChecksumFailure, Manifest
from datamanager.rescue import rescue_script
from tests.conftest import NewServer
from tests.engine.conftest import SECRET, Works, outside, owner, pg, programs_of
from tests.rescue.build import Change, Maker
from tests.servers import ProgramFailed

PAGE = 8192
SEGMENT_PAGES = 8  # of the small segments here
RELATION = b"base/5/16384.1"  # so its first block is number 8


# -- backup_manifest ------------------------------------------------------------------------------------------------


@pytest.mark.pg("14-18")
@pytest.mark.decision(8)
def test_the_manifest_that_we_write_is_accepted_of_a_restored_directory_and_of_an_export(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    server.tablespace("one")
    server.sql("create table there tablespace one as select generate_series(1, 5000) n")
    (server.data_directory / 'odd "name" ä').write_bytes(b"content")
    taken = works.back_up(server).manifest
    programs = programs_of(pg_version, server.major)
    as_increment = replace(taken, method="native")
    exported = works.export(as_increment).target
    ours = (exported / "backup_manifest").read_bytes()
    check_manifest(ours)
    (needed,) = wal_ranges(ours)
    assert (needed.timeline, str(needed.start), str(needed.end)) == (taken.timeline, taken.start_lsn, taken.stop_lsn)
    assert b"Last-Modified" not in ours
    for root in (exported, works.restore(as_increment)):
        assert "successfully verified" in pg(programs, "pg_verifybackup", root)
    theirs = manifest_files((works.restore(taken, "by-the-server") / "backup_manifest").read_bytes())
    wanted = {one for one in theirs if not one.path.startswith(b"pg_wal/")}
    assert set(manifest_files(ours)) == wanted
    (space,) = outside(taken)
    (file,) = [one for one in (exported / "pg_tblspc" / str(space.oid)).rglob("*") if one.is_file()]
    file.write_bytes(b"X" + file.read_bytes()[1:])
    with pytest.raises(ProgramFailed, match="checksum mismatch"):
        pg(programs, "pg_verifybackup", exported)


@pytest.mark.pg("17-18")
@pytest.mark.decision(8)
def test_increments_come_back_with_a_manifest_that_is_accepted_by_us_and_by_rescue_py(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"summarize_wal": "on"})
    server.tablespace("one")
    for name, place in (("here", ""), ("there", "tablespace one")):
        server.sql(f"create table {name} {place} as select n, md5(n::text) m from generate_series(1, 30000) n")
    server.sql("vacuum freeze")
    works.back_up(server)
    programs = programs_of(pg_version, server.major)
    for turn in range(2):
        server.sql(f"update here set m = 'changed' where n between {turn * 500} and {turn * 500 + 9}")
        server.sql(f"update there set m = 'changed' where n between {turn * 500} and {turn * 500 + 9}")
        manifest = works.back_up(server).manifest
        assert manifest.method == "native"
        for root in (works.export(manifest, f"exported-{turn}").target, works.restore(manifest, f"restored-{turn}")):
            assert "successfully verified" in pg(programs, "pg_verifybackup", root)
    composed = [one.path for one in works.repository.contents(manifest).files() if one.flags & FileFlag.COMPOSED]
    assert server.value("select pg_relation_filepath('here')").encode() in composed
    rescued = rescue(works, manifest)
    assert "successfully verified" in pg(programs, "pg_verifybackup", rescued)
    assert b"SHA256" in (rescued / "backup_manifest").read_bytes()


def rescue(works: Works, manifest: Manifest) -> Path:
    """Restore by rescue.py; returns the data directory."""
    script, target = works.folder / "repository" / "rescue.py", works.folder / "rescued"
    script.write_bytes(rescue_script([]))
    words = [] if owner() is None else ["--owner", "postgres"]
    done = subprocess.run(
        [sys.executable, "-I", "-B", str(script), "restore", *words, manifest.backup, str(target)],
        input=SECRET.secret.reveal().decode() + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


# -- page checksums -------------------------------------------------------------------------------------------------


def page(block: int, fill: int, lsn: int = 5) -> bytes:
    """A page with bounds, an LSN and the checksum for its block."""
    data = np.full(PAGE, fill, np.uint8)
    data[:8].view("<u4")[:] = (lsn >> 32, lsn & 0xFFFFFFFF)
    heads = data.view("<u2")
    heads[7] = 8000
    heads[4] = checksums(data.reshape(1, PAGE), block)[0]
    return data.tobytes()


class Composed:
    """A backup whose files count as put together from increments, except those named in ``whole``."""

    def __init__(self, contents: Contents, whole: frozenset[bytes] = frozenset()) -> None:
        self._contents = contents
        self._whole = whole
        self.packs = contents.packs
        self.layers = contents.layers
        self.page_size = contents.page_size

    def files(self) -> Iterator[FileEntry]:
        for entry in self._contents.files():
            if entry.kind is FileKind.REGULAR and entry.path not in self._whole:
                entry = replace(entry, flags=entry.flags | FileFlag.COMPOSED, crc32c=0)
            yield entry


def materialize(
    maker: Maker, manifest: Manifest, target: Path, *, whole: frozenset[bytes] = frozenset()
) -> dict[bytes, tuple[int, int]]:
    """Write a backup with all rules in force; returns size and CRC-32C of each file as they were written."""
    target.mkdir()
    contents = Composed(maker.repository.contents(manifest), whole)
    with StopToken() as stop:
        writing = Materializer(
            maker.repository,
            contents,  # type: ignore[arg-type]
            Destination(target, {}, {}, None),
            2,
            lambda size: None,
            PageRules(manifest),
        )
        writing.run(stop)
    return {path: (size, crc) for path, size, crc in writing.written()}


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "repository", open_slot=True)


def relation(maker: Maker, pages: dict[int, bytes], **alter: object) -> Manifest:
    """A full backup of one segment and a layer with these pages on it."""
    first = maker.backup({b"base/5": None, RELATION: b"".join(page(SEGMENT_PAGES + n, n + 1) for n in range(6))})
    # The synthetic manifests have the format's usual segments; these are small enough to write.
    second = maker.increment(first, {RELATION: Change(6 * PAGE, 6, pages)})
    return replace(second, segment_size=SEGMENT_PAGES * PAGE, **alter)  # type: ignore[arg-type]


@pytest.mark.decision(17)
def test_a_composed_file_whose_pages_are_right_is_restored_and_its_checksum_is_known(
    maker: Maker, tmp_path: Path
) -> None:
    manifest = relation(maker, {2: page(10, 77), 5: bytes(PAGE)})
    found = materialize(maker, manifest, tmp_path / "data")
    content = (tmp_path / "data" / os.fsdecode(RELATION)).read_bytes()
    assert content[2 * PAGE : 3 * PAGE] == page(10, 77)
    assert content[5 * PAGE :] == bytes(PAGE)
    assert found[RELATION] == (len(content), crc32c(content))


@pytest.mark.decision(17)
@pytest.mark.parametrize(
    "wrong",
    [page(11, 77), page(10, 77)[:4000] + b"!" + page(10, 77)[4001:]],
    ids=["the page of another block", "a changed byte"],
)
def test_a_composed_file_with_a_wrong_page_is_refused_by_name_and_block(
    maker: Maker, tmp_path: Path, wrong: bytes
) -> None:
    manifest = relation(maker, {2: wrong})
    with pytest.raises(IntegrityError, match=r"restore base/5/16384\.1: block 10 has a wrong page checksum"):
        materialize(maker, manifest, tmp_path / "data")


@pytest.mark.decision(17)
def test_what_cannot_be_judged_by_its_page_checksum_is_restored_as_it_was(maker: Maker, tmp_path: Path) -> None:
    torn = page(10, 77, lsn=int(Lsn.parse("0/2000028")))
    torn = torn[:4096] + bytes(4096)
    written_later = relation(maker, {2: torn})
    materialize(maker, written_later, tmp_path / "torn")
    bad = torn[:4] + bytes(4) + torn[8:]  # now it is older than the backup
    older = relation(maker, {2: bad})
    with pytest.raises(IntegrityError, match="block 10"):
        materialize(maker, older, tmp_path / "older")
    known = replace(older, checksum_failures=[ChecksumFailure("base/5/16384.1", [2])])
    materialize(maker, known, tmp_path / "known")
    materialize(maker, replace(older, checksums=False), tmp_path / "off")
    assert (tmp_path / "known" / os.fsdecode(RELATION)).read_bytes()[2 * PAGE : 3 * PAGE] == bad


def test_a_file_that_was_sent_whole_is_held_against_its_crc_alone(maker: Maker, tmp_path: Path) -> None:
    manifest = relation(maker, {2: page(99, 1)})
    materialize(maker, manifest, tmp_path / "data", whole=frozenset({RELATION}))


@pytest.mark.parametrize("page_size", [1024, 8192])
def test_scattered_pages_of_many_layers_come_back_in_every_file(maker: Maker, tmp_path: Path, page_size: int) -> None:
    chance = random.Random(page_size)
    maker = Maker(tmp_path / "scattered", page=page_size, open_slot=True)
    names = [b"base/5/%d" % number for number in range(5)]
    tree: dict[bytes, bytes | None] = {name: chance.randbytes(page_size * chance.randrange(90)) for name in names}
    tree |= {b"base": None, b"odd": chance.randbytes(3 * page_size + 17), b"pg_wal/x": bytes(5 * page_size)}
    manifest = maker.backup(tree)
    for _ in range(7):
        changes: dict[bytes, Change | bytes | None] = {}
        for name in names:
            pages = chance.randrange(1, 90)
            sent = {number: chance.randbytes(page_size) for number in range(pages) if chance.random() < 0.2}
            changes[name] = Change(pages * page_size, chance.randrange(pages + 1), sent)
        manifest = maker.increment(manifest, changes)
    without = replace(manifest, checksums=False)
    found = materialize(maker, without, tmp_path / "data", whole=frozenset(names[:3]))
    wanted = maker.expected[manifest.backup]
    for name, content in wanted.items():
        if content is not None:
            assert (tmp_path / "data" / os.fsdecode(name)).read_bytes() == content, name
            assert found[name] == (len(content), crc32c(content)), name
