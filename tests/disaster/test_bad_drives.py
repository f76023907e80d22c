"""What bad looks like, on the drive's side: full, read-only, pulled, FAT, and the server's own volume."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import NewServer
from tests.disaster.command import CommandLine, check_error
from tests.disaster.conftest import Scene
from tests.disaster.desk import Desk
from tests.disaster.scene import assert_server_is_free, content_of, fill, objects_below, temporaries
from tests.servers import create
from tests.storage import mounts
from tests.storage.mounts import MIB, Volume

# Making the folders of a repository through fusefat takes ten seconds.
SLOW_FAT32 = pytest.param("fat32", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def small_scene(scene_18: Scene) -> Iterator[Scene]:
    """A server whose backup takes 5 MB: drives over FUSE are slow."""
    server = create(18)
    server.sql("create table ledger as select i as id, 'entry ' || i as entry from generate_series(1, 20000) i")
    fill(server, "scans", 2)
    place = server.tablespace("far away")
    server.sql("checkpoint")
    yield replace(scene_18, server=server, tablespace=place)
    server.destroy()


@pytest.fixture
def on_volume(command: CommandLine, small_scene: Scene) -> Callable[[Volume], Desk]:
    """Make a repository on a volume, with ``office`` to be backed up there."""

    def make(volume: Volume) -> Desk:
        command.repository("usb", volume.folder / "datamanager")
        command.cluster("office", small_scene.server.dsn, "--repo", "usb")
        return Desk(command, volume.folder / "datamanager", "", small_scene)

    return make


@pytest.mark.mounts
@pytest.mark.parametrize("kind", ["exfat", "fat32"])
def test_a_whole_round_trip_on_a_drive_as_it_is_bought(
    kind: str,
    tmp_path: Path,
    open_folder: Path,
    on_volume: Callable[[Volume], Desk],
    new_server: NewServer,
) -> None:
    with mounts.KINDS[kind](tmp_path / kind, 64 * MIB) as volume:
        desk = on_volume(volume)
        desk.scene.server.sql("vacuum (analyze)")  # a slow drive leaves autovacuum the time to change pages in between
        desk.command.ok("backup", "run", "office")
        second = desk.command.ok("backup", "run", "office")
        assert second["bytes_stored"] < 1 << 20
        volume.remount()
        desk.command.verified("usb")
        done = desk.command.ok(*desk.restore(open_folder))
        assert done["backup_id"] == second["backup_id"]
        assert temporaries(desk.drive) == []
    restored = new_server.adopt(open_folder / "new", start=False)
    restored.run("pg_verifybackup", open_folder / "new")
    with restored.start().connect() as connection, desk.scene.server.connect() as original:
        assert content_of(connection) == content_of(original)


@pytest.mark.mounts
@pytest.mark.parametrize("kind", ["ext4", "exfat", SLOW_FAT32])
def test_a_drive_pulled_midway_fails_the_backup_and_nothing_is_written_into_its_place(
    kind: str, tmp_path: Path, on_volume: Callable[[Volume], Desk]
) -> None:
    with mounts.KINDS[kind](tmp_path / kind, 64 * MIB) as volume:
        desk = on_volume(volume)
        running = desk.command.start("backup", "run", "office", "--max-rate", "12MB", "--json")
        running.until('"copying"')
        time.sleep(0.5)
        volume.yank()
        done = running.wait()
        assert done.code == 31, done.out + done.err
        check_error(
            done.last["message"], done.last["hint"], [str(volume.folder), "is not there"], ["Plug the drive in"]
        )
        assert [*volume.folder.iterdir()] == []
        assert_server_is_free(desk.scene.server)
        desk.command.refused(31, "backup", "run", "office", says=["is not there"], advises=["Plug the drive in"])
        assert [*volume.folder.iterdir()] == []


@pytest.mark.mounts
def test_after_a_pulled_drive_is_back_the_repository_is_clean_and_the_backup_goes_on(
    tmp_path: Path, on_volume: Callable[[Volume], Desk]
) -> None:
    with mounts.ext4(tmp_path / "ext4", 64 * MIB) as volume:
        desk = on_volume(volume)
        first = desk.command.ok("backup", "run", "office")["backup_id"]
        running = desk.command.start("backup", "run", "office", "--max-rate", "12MB", "--json")
        running.until('"copying"')
        volume.yank()
        assert running.wait().code == 31
        volume.mount()
        assert desk.command.backups("usb") == [first]
        desk.command.verified("usb")
        desk.command.ok("backup", "run", "office")
        desk.command.verified("usb")


def fill_volume(path: Path, *, leave: int) -> None:
    """Grow a file until the volume is full but for ``leave`` bytes; not every file system says truly what is free."""
    with open(path, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(MIB)) == MIB:
                pass
        file.truncate(max(0, file.tell() - leave))


@pytest.mark.mounts
@pytest.mark.parametrize("kind", ["ext4", "exfat", "tmpfs", SLOW_FAT32])
def test_a_full_drive_fails_the_backup_with_the_remedy_and_keeps_the_earlier_ones(
    kind: str, tmp_path: Path, on_volume: Callable[[Volume], Desk]
) -> None:
    make = mounts.tmpfs if kind == "tmpfs" else mounts.KINDS[kind]
    with make(tmp_path / kind, 64 * MIB) as volume:
        desk = on_volume(volume)
        ballast = volume.folder / "holiday.mov"
        fill_volume(ballast, leave=2 * MIB)
        done = desk.command.run("backup", "run", "office", "--json")
        assert done.code == 32, done.out + done.err
        check_error(done.last["message"], done.last["hint"], ["no space left"], ["Free room"])
        assert temporaries(desk.drive) == []
        assert desk.command.backups("usb") == []
        ballast.unlink()
        desk.command.ok("backup", "run", "office")
        desk.command.verified("usb")
        assert_server_is_free(desk.scene.server)


@pytest.mark.mounts
def test_a_read_only_drive_refuses_backups_and_still_restores(
    tmp_path: Path, open_folder: Path, on_volume: Callable[[Volume], Desk], new_server: NewServer
) -> None:
    with mounts.ext4(tmp_path / "ext4", 64 * MIB) as volume:
        desk = on_volume(volume)
        desk.command.ok("backup", "run", "office")
        mounts.run("mount", "-o", "remount,ro", str(volume.folder))
        desk.command.refused(33, "backup", "run", "office", says=["read-only"], advises=["right to write"])
        assert desk.command.run("repo", "verify", "usb").code == 3  # nobody could be told, and no mark be left
        done = desk.command.run(*desk.restore(open_folder), "--json")
        assert done.code == 3, done.out
        with new_server.adopt(open_folder / "new").connect() as connection:
            assert connection.execute("select count(*) from ledger").fetchone() == (20000,)


@pytest.mark.mounts
def test_a_drive_that_turns_read_only_midway_fails_the_backup(
    tmp_path: Path, on_volume: Callable[[Volume], Desk]
) -> None:
    with mounts.ext4(tmp_path / "ext4", 64 * MIB) as volume:
        desk = on_volume(volume)
        running = desk.command.start("backup", "run", "office", "--max-rate", "12MB", "--json")
        running.until('"copying"')
        mounts.run("mount", "-o", "remount,ro", str(volume.folder))
        done = running.wait()
        assert done.code == 33, done.out
        check_error(done.last["message"], done.last["hint"], ["read-only"], ["right to write"])
        mounts.run("mount", "-o", "remount,rw", str(volume.folder))
        desk.command.verified("usb")
        assert desk.command.backups("usb") == []


@pytest.mark.mounts
def test_a_repository_on_the_data_directorys_own_volume_stops_before_the_server_runs_out(
    open_folder: Path, command: CommandLine, new_server: NewServer
) -> None:
    server = new_server(start=False)
    with mounts.ext4(open_folder / "shared", 200 * MIB) as volume:
        volume.folder.chmod(0o755)
        shutil.copytree(server.data_directory, volume.folder / "data", symlinks=True)
        live = new_server.adopt(volume.folder / "data")
        command.repository("beside", volume.folder / "datamanager")
        command.repository("inside", volume.folder / "data" / "datamanager")
        command.cluster("office", live.dsn)
        before = objects_below(volume.folder / "datamanager")
        words = ["backup", "run", "office", "--repo"]
        said = ["the database server's own volume", "stay reserved"]
        command.refused(32, *words, "beside", says=said, advises=["Free", "on another volume"])
        command.refused(10, *words, "inside", says=["lies inside the data directory"], advises=["outside the cluster"])
        assert objects_below(volume.folder / "datamanager") == before
        live.stop()
