"""The whole way through the command line, on real servers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server


def test_a_server_is_backed_up_listed_restored_and_started_again(
    installation: Installation, new_server: NewServer, open_folder: Path
) -> None:
    server = new_server()
    server.sql("CREATE TABLE visits AS SELECT n AS id, 'patient ' || n AS who FROM generate_series(1, 5000) n")
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    check = installation.run("cluster", "check", "clinic")
    assert "can be backed up: PostgreSQL 18" in check.out

    first = installation.result("backup", "run", "clinic")
    server.sql("INSERT INTO visits SELECT n, 'later' FROM generate_series(5001, 5100) n")
    second = installation.result("backup", "run", "clinic", "--no-compress", "--fast", "--threads", "1")
    assert (first["method"], second["method"]) == ("full", "compared")
    assert second["parent"] == first["backup_id"]
    assert second["bytes_stored"] < first["bytes_stored"] / 2

    listed = installation.result("backup", "list", "--cluster", "clinic")["backups"]
    assert [one["backup_id"] for one in listed] == [first["backup_id"], second["backup_id"]]
    shown = installation.result("backup", "show", first["backup_id"][-8:])
    assert shown["checked"] is None
    assert installation.result("repo", "verify")["ok"]
    assert installation.result("backup", "show", first["backup_id"])["checked"] is not None

    for one, rows in ((first, 5000), (second, 5100)):
        target = open_folder / f"restored {rows}"
        planned = installation.result("restore", one["backup_id"], "--target", target, "--dry-run")
        assert not target.exists()
        assert planned["volumes_needed"][0]["need_bytes"] == one["total_bytes"]
        done = installation.result("restore", one["backup_id"], "--target", target)
        assert done["backup_id"] == one["backup_id"]
        restored = new_server.adopt(target, own=False)
        assert restored.value("SELECT count(*) FROM visits") == rows


def test_a_restore_starts_a_server_that_reaches_nobody(clinic: Installation, server: Server, open_folder: Path) -> None:
    target = open_folder / "it's restored"
    words = ("restore", "latest", "--target", target, "--start", "--port", "5999", "--json")
    clinic.ok("config", "set", "clusters.clinic.install_path", str(server.bin))
    try:
        done = clinic.run(*words)
        assert done.code == 0, done
        started = done.last["server"]
        socket = open_folder / "it's restored.server" / "socket"
        assert str(socket) in started["conninfo"].replace("\\", "")
        shown = server.run(
            "psql",
            "-X",
            "-A",
            "-t",
            "-h",
            socket,
            "-p",
            "5999",
            "-c",
            "SHOW archive_mode",
            "-c",
            "SHOW listen_addresses",
        )
        assert shown.stdout.split("\n")[:2] == ["off", ""]
    finally:
        clinic.ok("config", "set", "clusters.clinic.install_path", "")
        server.run("pg_ctl", "stop", "-m", "immediate", "-D", target, check=False)


def test_a_server_that_a_restore_starts_is_reached_as_the_superuser_that_it_has(
    installation: Installation, new_server: NewServer, open_folder: Path
) -> None:
    server = new_server()
    server.sql("create role helper superuser login")
    server.sql('alter role postgres rename to "The Boss"', user="helper")
    server.superuser = "The Boss"
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    installation.ok("backup", "run", "clinic")
    installation.ok("config", "set", "clusters.clinic.install_path", str(server.bin))
    target = open_folder / "restored"
    try:
        started = installation.result("restore", "latest", "--target", target, "--start", "--port", "5998")["server"]
        shown = server.run("psql", "-X", "-A", "-t", "-d", started["conninfo"], "-c", "select current_user")
        assert shown.stdout.strip() == "The Boss"
    finally:
        server.run("pg_ctl", "stop", "-m", "immediate", "-D", target, check=False)


def test_an_export_is_what_pg_verifybackup_accepts(clinic: Installation, server: Server, tmp_path: Path) -> None:
    target = tmp_path / "export"
    done = clinic.result("backup", "export", "latest", target)
    assert done["target"] == str(target)
    accepted = shutil.which("pg_verifybackup", path=str(server.bin))
    assert accepted is not None
    # The export belongs to this account, the server's programs run under theirs.
    for one in (target, *target.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    parents = [folder for folder in target.parents if folder.stat().st_mode & 0o005 != 0o005]
    for folder in parents:
        folder.chmod(folder.stat().st_mode | 0o055)
    assert "successfully verified" in server.run("pg_verifybackup", target).stdout


def test_on_another_computer_the_drive_and_the_kit_suffice(
    clinic: Installation, tmp_path: Path, open_folder: Path
) -> None:
    elsewhere = Installation(tmp_path)
    code_file = elsewhere.secret_file("code.txt", clinic.recovery_code().lower())
    drive = clinic.folder / "repository of usb"
    listed = elsewhere.result("backup", "list", "--repo", drive, "--recovery-code-file", code_file)["backups"]
    assert [one["name"] for one in listed] == ["the first one"]
    target = open_folder / "rescued"
    elsewhere.ok("restore", "latest", "--repo", drive, "--recovery-code-file", code_file, "--target", target)
    assert (target / "global" / "pg_control").is_file()
    piped = elsewhere.ok("backup", "show", "latest", "--repo", drive, stdin="open sesame, said the clinic\n")
    assert "the first one" in piped.out


@pytest.mark.requirement("R42")
def test_the_name_of_a_backup_stands_in_list_manifest_and_log_and_unsafe_ones_are_refused(
    installation: Installation, server: Server
) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    name = "Nächtliche Sicherung (vor dem Update)"
    made = installation.result("backup", "run", "clinic", "--name", name)
    assert made["name"] == name
    assert [one["name"] for one in installation.result("backup", "list")["backups"]] == [name]
    log = next(path for path in installation.logs() if path.name.startswith("backup-run."))
    assert f"LABEL '{name}'" in log.read_text(encoding="utf-8")
    dated = installation.result("backup", "run", "clinic", "--append-date")
    assert re.fullmatch(r"clinic \d{4}-\d\d-\d\d \d{4} UTC([+-]\d{4})?", dated["name"])
    refused = installation.run("backup", "run", "clinic", "--name", 'a/b:c*"')
    assert (refused.code, refused.errors.splitlines()[0]) == (2, "error: name backup: it holds /")
    assert "'a-b-c'" in refused.errors


def test_every_command_that_only_looks_ends_with_a_documented_result(clinic: Installation, open_folder: Path) -> None:
    commands: list[tuple[str | Path, ...]] = [
        ("backup", "list"), ("backup", "show", "latest"),
        ("restore", "latest", "--target", open_folder / "new", "--dry-run"), ("repo", "list"), ("repo", "check"),
        ("repo", "verify", "--present"), ("repo", "verify", "--sample", "50"), ("repo", "verify", "--backup", "latest"),
        ("repo", "key", "list", "usb"), ("cluster", "list"), ("config", "show"),
        ("config", "get", "clusters.clinic.repository"), ("config", "export"), ("logs", "path"),
    ]  # fmt: skip
    for words in commands:
        assert clinic.result(*words)["exit_code"] == 0
        assert clinic.run(*words).out


def test_the_demo_brings_everything_back(installation: Installation) -> None:
    done = installation.result("demo", "--size", "20MB")
    assert done["ok"] is True
    assert len(done["backups"]) == len(done["restores"]) == 2
    assert done["workspace"] is None
    assert all(check["ok"] for check in done["checks"])
