"""A restore beside a running cluster never touches that cluster's tablespaces (PostgreSQL decision 1)."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from datamanager.base.errors import TargetUnfit
from datamanager.engine.restore.run import apply_restore
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, account, outside
from tests.servers import Server, hand_over

Picture = dict[str, tuple[int, int, int, int, bytes]]


def picture(*folders: Path) -> Picture:
    """Device, inode, modification time, size and content of everything below the folders."""
    seen: Picture = {}
    for folder in folders:
        for parent, names, files in os.walk(folder):
            for path in (Path(parent) / name for name in (*names, *files, ".")):
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else b""
                seen[str(path)] = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, content)
    return seen


def with_tablespaces(new_server: NewServer) -> tuple[Server, list[Path]]:
    """A server with two tablespaces in use, quiet, so that nothing but a mistake writes to them."""
    server = new_server(config={"autovacuum": "off"})
    places = [server.tablespace("one"), server.tablespace("two")]
    server.sql("create table first tablespace one as select n, md5(n::text) a from generate_series(1, 20000) n")
    server.sql("create database elsewhere tablespace two")
    server.sql("create table second as select generate_series(1, 1000) n", database="elsewhere")
    server.sql("checkpoint")
    return server, places


def write_a_lot(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("select count(*) from first").fetchone() == (20000,)
        connection.execute("update first set a = 'of the clone'")
        connection.execute("vacuum full first")
        connection.execute("create table third tablespace two as select generate_series(1, 5000) n")
        connection.execute("checkpoint")
    with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname="elsewhere"), autocommit=True) as connection:
        connection.execute("truncate second")
        connection.execute("checkpoint")


@pytest.mark.pg("14-18")
@pytest.mark.decision(1)
def test_live_tablespaces_stay_untouched_while_a_clone_beside_them_starts_writes_and_stops(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server, places = with_tablespaces(new_server)
    manifest = works.back_up(server).manifest
    assert {one.location for one in manifest.tablespaces} == {str(place) for place in places}
    # A hint bit or the statistics could still be on their way to the disk; after this nothing is.
    server.sql("select count(*) from first")
    server.sql("checkpoint")
    before = picture(*places)
    target = works.restore(manifest)
    assert not os.path.lexists(target / "tablespace_map")
    links = {one.name: one.resolve() for one in (target / "pg_tblspc").iterdir()}
    assert links == {str(one.oid): Path(f"{target}.ts-{one.oid}") for one in manifest.tablespaces}
    restored = picture(*links.values())
    assert not {(device, inode) for device, inode, *_ in restored.values()} & {
        (device, inode) for device, inode, *_ in before.values()
    }
    with works.clone(target, manifest, pg_version) as clone:
        write_a_lot(clone.dsn)
        found = {one.name: one.resolve() for one in (target / "pg_tblspc").iterdir()}
        assert found == links
    assert picture(*places) == before
    assert server.value("select count(*) from first where a <> 'of the clone'") == 20000


@pytest.mark.pg("14,18")
@pytest.mark.decision(1)
def test_a_tablespace_in_use_is_refused_as_a_place_and_nothing_is_written(new_server: NewServer, works: Works) -> None:
    server, places = with_tablespaces(new_server)
    manifest = works.back_up(server).manifest
    before = picture(*places)
    target = works.folder / "restored"
    identity = {one.location: Path(one.location) for one in manifest.tablespaces}
    for mapping in ({}, identity):
        with pytest.raises(TargetUnfit, match="is not empty; it holds a tablespace") as refused:
            works.plan(manifest, target, mapping)
        assert "--tablespace-map" in refused.value.hint
    assert not target.exists()
    assert picture(*places) == before


@pytest.mark.decision(1)
def test_places_inside_a_cluster_or_each_other_are_refused(new_server: NewServer, works: Works) -> None:
    server, places = with_tablespaces(new_server)
    manifest = works.back_up(server).manifest
    one, two = manifest.tablespaces
    good = {one.location: works.folder / "one", two.location: works.folder / "two"}
    link = works.folder / "innocent"
    link.symlink_to(server.data_directory)
    works.plan(manifest, works.folder / "restored", good)
    for target in (server.data_directory / "new", server.data_directory / "base" / "new", link / "new"):
        with pytest.raises(TargetUnfit, match="belongs to a cluster"):
            works.plan(manifest, target, good)
    for inside in (places[0] / "new", next(places[0].iterdir()) / "new"):
        with pytest.raises(TargetUnfit, match="belongs to a cluster"):
            works.plan(manifest, works.folder / "restored", good | {one.location: inside})
    for overlapping in (works.folder / "two" / "below", works.folder / "restored" / "pg_tblspc", works.folder / "two"):
        with pytest.raises(TargetUnfit, match="lie in each other"):
            works.plan(manifest, works.folder / "restored", good | {one.location: overlapping})


@pytest.mark.decision(1)
def test_a_directory_that_leads_into_a_running_cluster_never_gets_its_control_file(
    new_server: NewServer, works: Works
) -> None:
    """A folder that turns into a link to the live tablespace between plan and restore is caught before any start."""
    server, places = with_tablespaces(new_server)
    manifest = works.back_up(server).manifest
    target = works.folder / "restored"
    wanted = {one.location: works.folder / f"ts-{one.oid}" for one in manifest.tablespaces}
    plan = works.plan(manifest, target, wanted)
    inside = places[0] / "swapped"
    inside.mkdir()
    hand_over(inside)
    wanted[str(places[0])].symlink_to(inside)
    with pytest.raises(TargetUnfit, match="overlap, and a cluster runs on one"):
        apply_restore(works.reopened(), plan, works.stop, Heard())
    assert not (target / "global" / "pg_control").exists()


@pytest.mark.decision(1)
def test_a_restored_directory_holds_no_link_but_those_of_the_plan(new_server: NewServer, works: Works) -> None:
    server, _ = with_tablespaces(new_server)
    (server.data_directory / "backup_notes").symlink_to(server.folder)
    result = works.back_up(server)
    target = works.restore(result.manifest)
    links = [Path(folder) / name for folder, names, files in os.walk(target) for name in (*names, *files)]
    assert {path.parent.name for path in links if path.is_symlink()} == {"pg_tblspc"}
    assert any("skipping special file" in warning and "backup_notes" in warning for warning in result.warnings)
    assert result.manifest.warnings == result.warnings


@pytest.mark.pg("15,16,17,18")
@pytest.mark.decision(1)
def test_in_place_tablespaces_come_back_inside_the_data_directory(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"allow_in_place_tablespaces": "on", "autovacuum": "off"})
    server.sql("create tablespace inner_one location ''")
    server.sql("create table there tablespace inner_one as select generate_series(1, 3000) n")
    server.sql("checkpoint")
    manifest = works.back_up(server).manifest
    assert outside(manifest) == []
    before = picture(server.data_directory / "pg_tblspc")
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("select count(*) from there").fetchone() == (3000,)
        connection.execute("update there set n = -n")
    (folder,) = (target / "pg_tblspc").iterdir()
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert picture(server.data_directory / "pg_tblspc") == before


def restored_modes(target: Path, manifest: Manifest) -> set[int]:
    roots = [target, *(Path(f"{target}.ts-{one.oid}") for one in outside(manifest))]
    return {
        path.stat().st_mode & 0o777
        for root in roots
        for folder, names, _ in os.walk(root)
        for path in (Path(folder), *(Path(folder) / name for name in names))
    }


@pytest.mark.pg("14,18")
def test_a_cluster_with_group_access_comes_back_with_it(new_server: NewServer, works: Works, pg_version: str) -> None:
    server = new_server(initdb_args=("--data-checksums", "--allow-group-access"))
    server.tablespace("one")
    server.sql("create table there tablespace one as select generate_series(1, 1000) n")
    manifest = works.back_up(server).manifest
    target = works.restore(manifest)
    assert restored_modes(target, manifest) == {0o750}
    assert (target / "PG_VERSION").stat().st_mode & 0o777 == 0o640
    with works.clone(target, manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("show data_directory_mode").fetchone() == ("0750",)


@pytest.mark.root
def test_restored_files_belong_to_the_account_that_was_named(new_server: NewServer, works: Works) -> None:
    server, _ = with_tablespaces(new_server)
    manifest = works.back_up(server).manifest
    target = works.restore(manifest)
    roots = [target, *(Path(f"{target}.ts-{one.oid}") for one in manifest.tablespaces)]
    owners = {
        (path.lstat().st_uid, path.lstat().st_gid)
        for root in roots
        for folder, names, files in os.walk(root)
        for path in (Path(folder), *(Path(folder) / name for name in (*names, *files)))
    }
    options = account().process_options()
    assert owners == {(options["user"], options["group"])}
