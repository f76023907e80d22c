"""What bad looks like, on the repository's side: damage, newer formats, full, read-only and vanished drives."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import NewServer
from tests.disaster.command import CommandLine, check_error
from tests.disaster.conftest import Scene
from tests.disaster.desk import Desk
from tests.disaster.scene import (
    assert_cannot_start,
    assert_server_is_free,
    content_of,
    objects_below,
)
from tests.servers import make_folder, remove_folder
from tests.storage import mounts
from tests.storage.mounts import MIB


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
    desk.command.refused(
        31, "backup", "list", "--repo", str(tmp_path / "none"), says=["is not there"], advises=["Plug"]
    )


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
    done = desk.command.run(*desk.restore(open_folder), "--json")
    assert done.code == 40, done.out
    check_error(done.last["message"], done.last["hint"], [pack.name], ["repo verify"])
    assert_cannot_start(desk.scene.server, open_folder / "new")
    assert_healed_by_the_next_backup(desk)


def assert_healed_by_the_next_backup(desk: Desk) -> None:
    """A new backup stores anew what is damaged, and is whole itself."""
    done = desk.command.run("backup", "run", "office", "--json")
    assert done.code in (0, 3), done.out
    newest = done.last["backup_id"]
    verified = desk.command.run("repo", "verify", "usb", "--backup", newest, "--json")
    assert verified.code == 0, verified.out


def test_a_flipped_bit_that_verify_found_is_stored_anew_and_the_new_backup_restores(
    desk: Desk, open_folder: Path, new_server: NewServer
) -> None:
    pack = max((desk.drive / "packs").rglob("?" * 32), key=lambda path: path.stat().st_size)
    _flip(pack)
    damaged = desk.command.run("repo", "verify", "usb", "--json")
    assert damaged.code == 40, damaged.out
    check_error(damaged.last["message"], damaged.last["hint"], ["1 damaged object"], ["next backup", "repo heal"])
    desk.command.ok("backup", "run", "office")
    desk.command.ok(*desk.restore(open_folder))
    with new_server.adopt(open_folder / "new").connect() as connection, desk.scene.server.connect() as original:
        assert content_of(connection) == content_of(original)


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoilt_pack_is_healed_from_a_copy_of_the_drive(desk: Desk, tmp_path: Path, spoil: str) -> None:
    shutil.copytree(desk.drive, tmp_path / "copy")
    pack = max((desk.drive / "packs").rglob("?" * 32), key=lambda path: path.stat().st_size)
    key = pack.relative_to(desk.drive).as_posix()
    SPOILS[spoil](pack)
    assert desk.command.run("repo", "verify", "usb", "--json").code == 40
    tried = desk.command.run("repo", "heal", "usb", tmp_path / "copy", "--dry-run", "--json")
    assert tried.code == 0, tried.out
    assert [one["damaged_key"] for one in tried.last["healed"]] == [key]
    healed = desk.command.run("repo", "heal", "usb", tmp_path / "copy", "--json")
    assert healed.code == 0, healed.out
    assert [one["key"] for one in healed.last["healed"]] == [f"{key}.2"]
    assert healed.last["backups_affected"] == []
    desk.command.verified("usb")
    again = desk.command.run("repo", "heal", "usb", tmp_path / "copy")
    assert (again.code, "Nothing in usb is known to be damaged" in again.out) == (0, True)


def test_what_no_copy_has_is_named_with_the_backups_that_miss_it(desk: Desk, tmp_path: Path) -> None:
    pack = max((desk.drive / "packs").rglob("?" * 32), key=lambda path: path.stat().st_size)
    _flip(pack)
    shutil.copytree(desk.drive, tmp_path / "copy")
    assert desk.command.run("repo", "verify", "usb").code == 40
    done = desk.command.run("repo", "heal", "usb", tmp_path / "copy", "--json")
    assert done.code == 40, done.out
    check_error(done.last["message"], done.last["hint"], ["1 backup still affected"], ["next backup"])
    assert done.last["backups_affected"] == [desk.backup]
    assert [one["key"] for one in done.last["not_healed"]] == [pack.relative_to(desk.drive).as_posix()]


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
    live: list[str | Path] = ["restore", "latest", "--repo", "usb", "--target", server.data_directory]
    desk.command.refused(50, *live, says=["is not empty"])
    unmapped: list[str | Path] = ["restore", "latest", "--repo", "usb", "--target", open_folder / "new"]
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
