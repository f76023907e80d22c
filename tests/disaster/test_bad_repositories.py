"""What bad looks like, on the repository's side: damage, newer formats, full, read-only and vanished drives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import NewServer
from tests.disaster.command import CommandLine, check_error
from tests.disaster.conftest import Scene
from tests.disaster.scene import (
    assert_cannot_start,
    assert_server_is_free,
    content_of,
    fill,
    objects_below,
    temporaries,
)
from tests.servers import create, make_folder, remove_folder
from tests.storage import mounts
from tests.storage.mounts import MIB, Volume


@dataclass(frozen=True)
class Desk:
    """A command line whose repository ``usb`` in ``drive`` holds one backup of ``office``."""

    command: CommandLine
    drive: Path
    backup: str
    scene: Scene

    def restore(self, folder: Path) -> list[str | Path]:
        """The words that restore the newest backup into ``folder``."""
        mapped = f"{self.scene.tablespace}={folder / 'space'}"
        return ["restore", "latest", "--repo", "usb", "--target", folder / "new", "--tablespace-map", mapped]


@pytest.fixture(scope="module")
def made(scene_18: Scene) -> Iterator[Desk]:
    folder = make_folder("desk")
    command = CommandLine(folder / "home")
    command.repository("usb", folder / "usb")
    command.cluster("office", scene_18.server.dsn, "--repo", "usb")
    backup = str(command.ok("backup", "run", "office")["backup_id"])
    yield Desk(command, folder / "usb", backup, scene_18)
    remove_folder(folder)


@pytest.fixture
def desk(made: Desk, tmp_path: Path) -> Desk:
    """The same, free to be spoilt."""
    shutil.copytree(made.drive, tmp_path / "usb")
    shutil.copytree(made.command.home, tmp_path / "home")
    command = CommandLine(tmp_path / "home")
    command.ok("config", "set", "repositories.usb.url", str(tmp_path / "usb"))
    command.ok("config", "set", "repositories.usb.key_file", str(tmp_path / "home" / "keys" / "usb.key"))
    return Desk(command, tmp_path / "usb", made.backup, made.scene)


# -- keys and formats -----------------------------------------------------------------------------------------------


def test_a_wrong_passphrase_code_or_key_opens_nothing(desk: Desk, tmp_path: Path, open_folder: Path) -> None:
    wrong = tmp_path / "wrong"
    for content, option in (
        ("not the passphrase\n", "--passphrase-file"),
        ("0000-0000\n", "--recovery-code-file"),
        (f"datamanager-key-1\n{'0' * 64}\n", "--key-file"),
    ):
        wrong.write_text(content)
        wrong.chmod(0o600)
        desk.command.refused(42, *desk.restore(open_folder), option, wrong, advises=["Check"])
    wrong.chmod(0o644)
    desk.command.refused(10, *desk.restore(open_folder), "--key-file", wrong, says=["other accounts"], advises=["600"])
    assert [*open_folder.iterdir()] == []


def test_a_repository_of_a_newer_format_is_left_alone(desk: Desk) -> None:
    config = json.loads((desk.drive / "config").read_text())
    before = objects_below(desk.drive)
    for change in ({"format": 2}, {"incompat": ["quantum"]}):
        (desk.drive / "config").write_text(json.dumps(config | change))
        for words in (["backup", "run", "office"], ["repo", "verify", "usb"]):
            desk.command.refused(41, *words, says=["newer than this program"], advises=["Install a newer release"])
    assert objects_below(desk.drive) == before


def test_a_folder_that_is_no_repository_is_told_from_a_drive_that_is_not_there(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "pictures").mkdir()
    desk.command.refused(43, "backup", "list", "--repo", str(other), advises=["repo init"])
    desk.command.refused(31, "backup", "list", "--repo", str(tmp_path / "none"), says=["is not there"], advises=["Plug"])


# -- damage ---------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


SPOILS: dict[str, Callable[[Path], None]] = {"flipped": _flip, "truncated": _truncate, "missing": Path.unlink}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoilt_pack_is_named_and_never_restored_silently(desk: Desk, open_folder: Path, spoil: str) -> None:
    pack = max((desk.drive / "packs").rglob("?" * 32), key=lambda path: path.stat().st_size)
    key = pack.relative_to(desk.drive).as_posix()
    SPOILS[spoil](pack)
    damaged = desk.command.run("repo", "verify", "usb", "--json")
    assert damaged.code == 40
    assert key in damaged.out
    assert desk.backup in damaged.out
    code = 35 if spoil == "missing" else 40
    done = desk.command.run(*desk.restore(open_folder), "--json")
    assert done.code == code, done.out
    check_error(done.last["message"], done.last["hint"], [pack.name], ["repo verify"])
    assert_cannot_start(desk.scene.server, open_folder / "new")
    if spoil != "flipped":  # a flipped bit in a chunk is known to verify alone, until damaged lists come
        assert_healed_by_the_next_backup(desk)


def assert_healed_by_the_next_backup(desk: Desk) -> None:
    """A new backup stores anew what is damaged, and is whole itself."""
    done = desk.command.run("backup", "run", "office", "--json")
    assert done.code in (0, 3), done.out
    newest = done.last["backup_id"]
    verified = desk.command.run("repo", "verify", "usb", "--backup", newest, "--json")
    assert verified.code == 0, verified.out


SMALL = ["keys", "ring", "manifests", "manifests-b", "meta", "meta-b"]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("folder", SMALL)
def test_one_spoilt_copy_of_a_small_object_is_named_and_loses_nothing(desk: Desk, folder: str, spoil: str) -> None:
    path = min(path for path in (desk.drive / folder).rglob("*") if path.is_file())
    SPOILS[spoil](path)
    key = path.relative_to(desk.drive).as_posix()
    done = desk.command.run("repo", "verify", "usb", "--present", "--json")
    assert done.code in (3, 40), done.out
    assert key in done.out
    assert desk.command.backups("usb") == [desk.backup]


def test_with_every_first_copy_spoilt_the_backup_restores_and_says_so(
    desk: Desk, open_folder: Path, new_server: NewServer
) -> None:
    for folder in ("manifests", "meta"):
        for path in (desk.drive / folder).rglob("*"):
            if path.is_file():
                _flip(path)
    for path in [*(desk.drive / "keys").glob("*-a"), *(desk.drive / "ring").glob("*-a")]:
        _flip(path)
    done = desk.command.run(*desk.restore(open_folder), "--json")
    assert done.code == 3, done.out
    assert any("its second copy was used" in warning for warning in done.last["warnings"])
    with new_server.adopt(open_folder / "new").connect() as connection, desk.scene.server.connect() as original:
        assert content_of(connection) == content_of(original)


def test_with_both_copies_of_its_manifest_spoilt_a_backup_is_named_and_not_restored(
    desk: Desk, open_folder: Path
) -> None:
    for folder in ("manifests", "manifests-b"):
        _flip(desk.drive / folder / desk.backup)
    done = desk.command.run(*desk.restore(open_folder), "--json")
    assert done.code == 40, done.out
    assert desk.backup in done.last["message"]
    assert not (open_folder / "new").exists()


def test_a_key_ring_lost_in_both_copies_is_told(desk: Desk) -> None:
    for path in (desk.drive / "ring").iterdir():
        _truncate(path)
    desk.command.refused(40, "backup", "list", "--repo", "usb", says=["ring/"], advises=["another copy"])


# -- the target -----------------------------------------------------------------------------------------------------


def test_a_target_that_holds_anything_is_refused_and_stays_as_it_is(desk: Desk, open_folder: Path) -> None:
    (open_folder / "new").mkdir()
    (open_folder / "new" / "thesis.odt").write_text("mine")
    desk.command.refused(50, *desk.restore(open_folder), says=["is not empty"], advises=["nothing is ever overwritten"])
    assert (open_folder / "new" / "thesis.odt").read_text() == "mine"
    assert not (open_folder / "space").exists()


def test_the_live_servers_own_directories_are_refused(desk: Desk, open_folder: Path) -> None:
    server = desk.scene.server
    live = ["restore", "latest", "--repo", "usb", "--target", server.data_directory]
    desk.command.refused(50, *live, says=["is not empty"])
    unmapped = ["restore", "latest", "--repo", "usb", "--target", open_folder / "new"]
    desk.command.refused(50, *unmapped, says=["tablespace", "is not empty"], advises=["--tablespace-map OLD=NEW"])
    assert server.value("select count(*) from ledger") == 20000
    assert [*open_folder.iterdir()] == []


@pytest.mark.mounts
def test_a_target_that_is_too_small_is_refused_before_anything_is_written(desk: Desk, tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "small", 20 * MIB) as volume:
        desk.command.refused(51, *desk.restore(volume.folder), says=["needs", "free"], advises=["Make room"])
        assert [*volume.folder.iterdir()] == []


@pytest.mark.mounts
def test_a_target_that_cannot_be_written_is_refused(desk: Desk, tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "locked", 400 * MIB) as volume:
        mounts.run("mount", "-o", "remount,ro", str(volume.folder))
        done = desk.command.run(*desk.restore(volume.folder), "--json")
        assert done.code == 50, done.out
        check_error(done.last["message"], done.last["hint"], [], ["account"])


# -- the drive ------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("kind", ["ext4", "exfat", "fat32"])
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
        check_error(done.last["message"], done.last["hint"], [str(volume.folder), "is not there"], ["Plug the drive in"])
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


@pytest.mark.mounts
@pytest.mark.parametrize("kind", ["ext4", "exfat", "fat32", "tmpfs"])
def test_a_full_drive_fails_the_backup_with_the_remedy_and_keeps_the_earlier_ones(
    kind: str, tmp_path: Path, on_volume: Callable[[Volume], Desk]
) -> None:
    make = mounts.tmpfs if kind == "tmpfs" else mounts.KINDS[kind]
    with make(tmp_path / kind, 40 * MIB) as volume:
        desk = on_volume(volume)
        ballast = volume.folder / "holiday.mov"
        ballast.write_bytes(bytes(shutil.disk_usage(volume.folder).free - 2 * MIB))
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
    tmp_path: Path, command: CommandLine, new_server: NewServer
) -> None:
    server = new_server(start=False)
    with mounts.ext4(tmp_path / "shared", 200 * MIB) as volume:
        volume.folder.parent.chmod(0o755)
        for folder in [*tmp_path.parents][:2] + [tmp_path]:
            folder.chmod(folder.stat().st_mode | 0o011)
        shutil.copytree(server.data_directory, volume.folder / "data", symlinks=True)
        live = new_server.adopt(volume.folder / "data")
        command.repository("here", volume.folder / "datamanager")
        command.cluster("office", live.dsn, "--repo", "here")
        before = objects_below(volume.folder / "datamanager")
        command.refused(
            32, "backup", "run", "office", says=["the database server's own volume", "stay reserved"], advises=["Free"]
        )
        assert objects_below(volume.folder / "datamanager") == before
        inside = command.run("repo", "init", "inside", volume.folder / "data" / "backups", typed="x" * 20 + "\n")
        assert inside.code in (0, 10)
        live.stop()


# -- killed for good ------------------------------------------------------------------------------------------------


def test_a_killed_command_leaves_the_drive_to_the_next_one(desk: Desk) -> None:
    running = desk.command.start("backup", "run", "office", "--max-rate", "30MB", "--json")
    running.until('"copying"')
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert_server_is_free(desk.scene.server)
    desk.command.verified("usb")
    assert desk.command.run("backup", "run", "office").code in (0, 3)
    assert len(desk.command.backups("usb")) == 2
    desk.command.verified("usb")
    assert [*(desk.drive / "leases").iterdir()] == []
