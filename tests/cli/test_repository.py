"""Keys, kits, checks and what lies beside the backups for people without this program."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest

from datamanager.rescue import rescue_script
from tests.cli.caller import Installation
from tests.servers import Server


@pytest.fixture
def backed_up(installation: Installation, server: Server) -> Installation:
    """A home of the test's own with one backup."""
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    installation.ok("backup", "run", "clinic")
    return installation


def drive_of(installation: Installation) -> Path:
    return installation.folder / "repository of usb"


def test_key_file_and_kit_are_for_their_owner_alone(installation: Installation) -> None:
    installation.init()
    for path in (installation.home / "keys" / "usb.key", installation.folder / "kit of usb.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_come_and_go_and_the_one_in_use_stays(installation: Installation) -> None:
    drive = installation.init()
    kinds = [one["kind"] for one in installation.result("repo", "key", "list", "usb")["keys"]]
    assert kinds == ["passphrase", "recovery code", "key file"]
    second = installation.secret_file("second.txt", "the bookkeeper's own words")
    words = ("repo", "key", "add", "usb", "--new-passphrase-file", second, "--label", "bookkeeper")
    added = installation.result(*words)
    assert (added["kind"], added["label"]) == ("passphrase", "bookkeeper")
    new_key = installation.folder / "new.key"
    installation.ok("repo", "key", "add", "usb", "--new-key-file", new_key)
    opening: tuple[str | Path, ...] = ("repo", "key", "list", drive)
    assert len(installation.result(*opening, "--passphrase-file", second)["keys"]) == 5
    assert len(installation.result(*opening, "--key-file", new_key)["keys"]) == 5
    installation.ok("repo", "key", "remove", "usb", added["id"][:8])
    assert installation.run(*opening, "--passphrase-file", second).code == 42
    own = next(
        one
        for one in installation.result("repo", "key", "list", "usb")["keys"]
        if one["label"].startswith("key file of")
    )
    refused = installation.run("repo", "key", "remove", "usb", own["id"])
    assert (refused.code, "the backups of this machine use it" in refused.errors) == (2, True)


def test_a_new_kit_opens_and_can_replace_the_old_one(installation: Installation) -> None:
    drive = installation.init()
    old = installation.secret_file("old code", installation.recovery_code())
    again = installation.result("repo", "kit", "usb", "--recovery-code-file", old)
    assert again["new_code"] is False
    assert installation.recovery_code()[:4] in again["kit"]
    new = installation.result("repo", "kit", "usb", "--replace", "--kit-file", installation.folder / "kit of new.txt")
    assert (new["new_code"], new["older_codes"]) == (True, 0)
    code = installation.secret_file("new code", installation.recovery_code("new"))
    words: tuple[str | Path, ...] = ("repo", "key", "list", drive, "--recovery-code-file")
    assert installation.run(*words, code).code == 0
    assert installation.run(*words, old).code == 42


def test_a_kit_names_the_rescue_script_that_lies_in_the_repository(installation: Installation) -> None:
    script = installation.init() / "rescue.py"
    script.write_bytes(b"of another release")
    kit = installation.result("repo", "kit", "usb")["kit"]
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    assert digest in "".join(kit.split())


def test_an_open_repository_needs_no_key_and_records_why(installation: Installation, server: Server) -> None:
    drive = installation.folder / "open"
    made = installation.ok("repo", "init", "open", drive, "--no-encryption", "--reason", "kept in the bank's vault")
    assert "whoever has the drive can read" in made.out
    installation.ok("cluster", "add", "clinic", server.dsn)
    installation.ok("backup", "run", "clinic")
    assert "kept in the bank's vault" in installation.ok("repo", "key", "list", "open").out
    assert "kept in the bank's vault" in installation.ok("config", "show").out
    elsewhere = Installation(installation.folder)
    assert len(elsewhere.result("backup", "list", "--repo", drive)["backups"]) == 1
    assert "NOT ENCRYPTED" in (drive / "README.txt").read_text(encoding="utf-8")
    assert installation.run("repo", "kit", "open").code == 2


def test_a_sibling_repository_shares_the_family_and_not_the_keys(installation: Installation) -> None:
    installation.init("usb")
    place = installation.folder / "second"
    done = installation.ok(
        "repo", "init", "second", place, "--like", "usb", "--no-wheels", stdin="another passphrase\n"
    )
    assert "RECOVERY CODE" in done.out
    key = installation.home / "keys" / "usb.key"
    assert installation.run("repo", "key", "list", place, "--key-file", key).code == 42


def test_the_readme_names_the_server_after_a_backup_and_keeps_where_the_kit_is(
    installation: Installation, server: Server
) -> None:
    drive = installation.folder / "drive"
    installation.ok(
        "repo", "init", "usb", drive, "--passphrase-file", installation.passphrase_file,
        "--kit-file", installation.folder / "kit.txt", "--kept-where", "safe at the bank", "--no-wheels",
    )  # fmt: skip
    readme = drive / "README.txt"
    assert "safe at the bank" in readme.read_text(encoding="utf-8")
    installation.ok("cluster", "add", "clinic", server.dsn)
    installation.ok("backup", "run", "clinic")
    text = readme.read_text(encoding="utf-8")
    assert "clinic: PostgreSQL 18" in text
    assert "safe at the bank" in text
    before = readme.stat().st_mtime_ns
    installation.ok("backup", "run", "clinic")
    assert readme.stat().st_mtime_ns == before


def test_a_rescue_script_of_another_release_is_replaced_and_that_is_said(backed_up: Installation) -> None:
    script = drive_of(backed_up) / "rescue.py"
    assert script.read_bytes() == rescue_script()
    script.write_bytes(b"print('give me your recovery code')\n")
    done = backed_up.run("backup", "run", "clinic")
    assert done.code == 3
    assert "rescue.py in the repository was not this release's and was replaced" in done.out
    assert script.read_bytes() == rescue_script()
    script.unlink()
    assert backed_up.run("repo", "check").code == 3
    assert script.read_bytes() == rescue_script()


def test_lost_data_ends_verification_with_40_and_names_the_backup(backed_up: Installation) -> None:
    backup = backed_up.result("backup", "show", "latest")["backup_id"]
    pack = max((drive_of(backed_up) / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(bytes(data))
    done = backed_up.run("repo", "verify", "--json")
    assert (done.code, done.last["exit_code"], done.last["ok"]) == (40, 40, False)
    assert [backup] in [one["backups_affected"] for one in done.last["damages"]]
    assert "1 backup affected" in done.last["message"]
    people = backed_up.run("repo", "verify")
    assert f"affects {backup}" in people.out
    assert people.errors.startswith("error: verify repository usb: ")


def test_a_damaged_second_copy_is_a_warning(backed_up: Installation) -> None:
    (copy,) = (drive_of(backed_up) / "manifests-b").iterdir()
    copy.unlink()
    done = backed_up.run("repo", "check", "--json")
    assert done.code == 3
    assert done.last["damages"][0]["redundant"] is True
    assert "of which nothing is lost yet" in done.last["warnings"][0]


def test_a_repository_on_a_read_only_copy_can_still_be_read(backed_up: Installation, open_folder: Path) -> None:
    copy = open_folder / "copy"
    shutil.copytree(drive_of(backed_up), copy)
    shown = backed_up.result("backup", "list", "--repo", copy, "--passphrase-file", backed_up.passphrase_file)
    assert len(shown["backups"]) == 1


def test_an_address_of_a_known_repository_uses_its_key(backed_up: Installation) -> None:
    for address in (drive_of(backed_up), drive_of(backed_up).as_uri()):
        assert backed_up.result("repo", "check", address)["repository"] == "usb"


def test_a_cluster_is_changed_and_forgotten(backed_up: Installation) -> None:
    backed_up.ok("cluster", "set", "clinic", "compress_level=3", "max_rate=50MB", "checkpoint=spread")
    (one,) = backed_up.result("cluster", "list")["clusters"]
    assert (one["compress_level"], one["max_rate"], one["checkpoint"]) == (3, 50 << 20, "spread")
    assert 'max_rate = "50MB"' in backed_up.ok("config", "export").out
    backed_up.ok("cluster", "set", "clinic", "max_rate=")
    assert "clusters.clinic.max_rate = (not set)" in backed_up.ok("config", "show").out
    backed_up.ok("cluster", "remove", "clinic")
    assert backed_up.result("cluster", "list")["clusters"] == []
    assert len(backed_up.result("backup", "list")["backups"]) == 1


def test_what_a_killed_run_left_half_written_goes_with_a_backup_a_day_later(
    installation: Installation, server: Server
) -> None:
    place = installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    old, young = (
        place / "packs" / "00" / ".put-0123456789abcdef.tmp",
        place / "meta" / "00" / ".put-fedcba9876543210.tmp",
    )
    for path in (old, young):
        path.write_bytes(b"half a pack")
    os.utime(old, (1, 1))
    installation.ok("backup", "run", "clinic")
    assert not old.exists()
    assert young.exists()


def test_a_rolling_verify_reads_its_share_and_says_how_long_the_oldest_byte_has_waited(backed_up: Installation) -> None:
    before = backed_up.result("repo", "check", "usb")["oldest_unread_seconds"]
    assert 0 <= before < 3600
    first = backed_up.result("repo", "verify", "usb", "--rolling", "1")
    assert (first["depth"], first["packs_read"], first["oldest_unread_seconds"]) == ("rolling", first["packs"], 0)
    assert backed_up.result("repo", "verify", "usb", "--rolling")["packs_read"] == 0  # all of it was read today
    said = backed_up.run("repo", "check", "usb")
    assert "Every stored byte was written or read whole within the last" in said.out
    for contrary in (("--sample", "5"), ("--present",), ("--backup", "latest")):
        refused = backed_up.run("repo", "verify", "usb", "--rolling", "7", *contrary)
        assert (refused.code, "contradict each other" in refused.errors) == (2, True)


def test_healing_needs_another_repository_that_can_be_opened(backed_up: Installation, tmp_path: Path) -> None:
    drive = drive_of(backed_up)
    assert backed_up.run("repo", "heal", "usb", drive).code == 2
    assert backed_up.run("repo", "heal", "usb", tmp_path / "none").code == 31
    copy = tmp_path / "copy"
    shutil.copytree(drive, copy)
    code = backed_up.secret_file("code", backed_up.recovery_code())
    for words in ((), ("--from-recovery-code-file", code)):
        healed = backed_up.result("repo", "heal", "usb", copy, *words)
        assert (healed["healed"], healed["not_healed"], healed["backups_affected"]) == ([], [], [])
    wrong = backed_up.secret_file("wrong", "not the passphrase")
    assert backed_up.run("repo", "heal", "usb", copy, "--from-passphrase-file", wrong).code == 42
