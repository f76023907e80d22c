"""Pages that are damaged on the server's disk: the backup is kept, flagged with file and blocks, and never proof
(PostgreSQL decision 18)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from datamanager.repository.manifest import ChecksumFailure, Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works
from tests.servers import Server, hand_over

PAGE = 8192


def flip(path: Path, blocks: list[int]) -> None:
    """Change one byte in the middle of each block, as a bad disk does."""
    with path.open("r+b") as file:
        for block in blocks:
            file.seek(block * PAGE + 5000)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x40]))


def file_of(server: Server, table: str) -> str:
    return str(server.value(f"select pg_relation_filepath('{table}')"))


def damaged_server(server: Server) -> dict[str, list[int]]:
    """Three tables and their damage, by the path that the manifest will name; one table more stays whole."""
    place = server.folder / 'a "quoted name'
    place.mkdir(mode=0o700)
    hand_over(place)
    server.sql(f"create tablespace odd location '{place}'")
    for table, where in (("many", ""), ("few", ""), ("spaced", "tablespace odd"), ("whole", "")):
        server.sql(
            f"create table {table} {where} as select n, repeat(md5(n::text), 8) t from generate_series(1, 6000) n"
        )
    server.sql("checkpoint")
    damage = {
        file_of(server, "many"): [0, 3, 4, 31, 32, 33, 64, 90],
        file_of(server, "few"): [7],
        file_of(server, "spaced"): [1, 100],
    }
    server.stop()
    for path, blocks in damage.items():
        flip(server.data_directory / path, blocks)
    server.start()
    return damage


def by_path(failures: list[ChecksumFailure]) -> dict[str, list[int]]:
    return {one.path: one.blocks for one in failures}


def check_restored(
    works: Works, manifest: Manifest, server: Server, damage: dict[str, list[int]], version: str
) -> None:
    """Every byte is what the server had: the damaged pages too, for better copies do not exist."""
    target = works.restore(manifest)
    for path in damage:
        restored = (target / path).read_bytes()
        assert restored == (server.data_directory / path).read_bytes()
    with works.clone(target, manifest, version) as clone, psycopg.connect(clone.dsn, autocommit=True) as connection:
        assert connection.execute("select count(*) from whole").fetchone() == (6000,)
        with pytest.raises(psycopg.errors.DataCorrupted):
            connection.execute("select count(*) from few")
        connection.execute("set zero_damaged_pages = on")
        row = connection.execute("select count(*) from few").fetchone()
        assert row is not None
        assert 5900 < row[0] < 6000


@pytest.mark.pg("14,16,18")
@pytest.mark.decision(18)
def test_a_backup_of_damaged_pages_is_kept_and_names_every_file_and_block(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"autovacuum": "off"})
    damage = damaged_server(server)
    heard = Heard()
    result = works.back_up(server, heard=heard)
    manifest = result.manifest
    assert manifest.damaged
    assert by_path(manifest.checksum_failures) == damage
    for path, blocks in damage.items():
        (warning,) = [one for one in result.warnings if path in one and "flagged as damaged" in one]
        assert f"holds {len(blocks)} pages" in warning
        assert f"block {blocks[0]}" in warning
    assert manifest.warnings == result.warnings == heard.warnings
    assert works.reopened().manifest(manifest.backup) == manifest
    plan = works.plan(
        manifest, works.folder / "planned", {one.location: works.folder / "ts" for one in manifest.tablespaces}
    )
    assert any("damaged pages" in warning for warning in plan.warnings)
    check_restored(works, manifest, server, damage, pg_version)


@pytest.mark.decision(18)
def test_damage_is_named_again_by_the_next_backup_and_gone_once_the_page_is_right(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config={"autovacuum": "off"})
    damage = damaged_server(server)
    first = works.back_up(server).manifest
    second = works.back_up(server).manifest
    assert by_path(second.checksum_failures) == by_path(first.checksum_failures) == damage
    server.stop()
    for path, blocks in damage.items():
        flip(server.data_directory / path, blocks)
    server.start()
    third = works.back_up(server)
    assert not third.manifest.damaged
    assert third.warnings == []


@pytest.mark.decision(18)
def test_damage_in_later_segments_and_other_forks_is_counted_from_the_start_of_its_file(
    new_server: NewServer, works: Works
) -> None:
    """Without building gigabytes: a free space map, a visibility map, and an index get damaged."""
    server = new_server(config={"autovacuum": "off"})
    server.sql("create table t as select n, repeat(md5(n::text), 8) t from generate_series(1, 20000) n")
    server.sql("create index on t (n)")
    server.sql("vacuum t")
    server.sql("checkpoint")
    heap, index = file_of(server, "t"), file_of(server, "t_n_idx")
    damage = {f"{heap}_fsm": [2], f"{heap}_vm": [0], index: [1, 5]}
    server.stop()
    for path, blocks in damage.items():
        flip(server.data_directory / path, blocks)
    server.start()
    manifest = works.back_up(server).manifest
    found = by_path(manifest.checksum_failures)
    assert found == damage


@pytest.mark.decision(18)
@pytest.mark.pg("15-debian")
def test_damage_is_found_when_the_server_speaks_german(
    new_server: NewServer, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    localedef = shutil.which("localedef")
    if localedef is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("needs localedef and its sources (package locales) to make a German locale")
    subprocess.run([localedef, "-i", "de_DE", "-f", "UTF-8", str(works.folder / "de_DE.UTF-8")], check=True)
    hand_over(works.folder / "de_DE.UTF-8")
    monkeypatch.setenv("LOCPATH", str(works.folder))
    server = new_server(config={"autovacuum": "off", "lc_messages": "de_DE.UTF-8"})
    damage = damaged_server(server)
    result = works.back_up(server)
    assert any("Prüfsumme" in warning for warning in result.warnings)
    assert by_path(result.manifest.checksum_failures) == damage


@pytest.mark.pg("14,18")
def test_without_checksums_nothing_is_flagged_and_everything_comes_back(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"autovacuum": "off"}, initdb_args=("--no-data-checksums",))
    server.sql("create table t as select n, repeat(md5(n::text), 8) t from generate_series(1, 6000) n")
    server.sql("checkpoint")
    path = file_of(server, "t")
    server.stop()
    with (server.data_directory / path).open("r+b") as file:  # a hole: whole pages of zeros between others
        file.seek(40 * PAGE)
        file.write(bytes(5 * PAGE))
        file.seek(0, 2)
        file.write(bytes(64 * PAGE))
    server.start()
    result = works.back_up(server)
    assert (result.manifest.checksums, result.manifest.damaged, result.warnings) == (False, False, [])
    target = works.restore(result.manifest)
    assert (target / path).read_bytes() == (server.data_directory / path).read_bytes()
    assert (target / path).stat().st_blocks * 512 < (target / path).stat().st_size - 60 * PAGE
    with works.clone(target, result.manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (server.value("select count(*) from t"),)
