"""A backup written over a cluster's own data: what is said before, what stays, and going on after a kill."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server

WORDS = "--in-place", "--delta", "--confirm", "office"
PHASES = (
    "removing files that the backup does not have",
    "comparing and restoring",
    "recovering",
    "stopping the recovered server",
)


def rows(server: Server) -> list[int]:
    return [n for (n,) in server.sql("select n from numbered order by n")]


@pytest.fixture
def server(new_server: NewServer) -> Server:
    made = new_server(config={"max_slot_wal_keep_size": "1GB"})
    made.sql("create table numbered (n int primary key)")
    made.sql("create table filled as select n, md5(n::text) from generate_series(1, 20000) n")
    made.sql("insert into numbered values (1), (2)")
    return made


@pytest.fixture
def office(server: Server, installation: Installation) -> Installation:
    """A backup with 1 and 2; afterwards 3, another table, and another setting."""
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    installation.ok("config", "set", "clusters.office.install_path", str(server.bin))
    installation.ok("config", "set", "clusters.office.data_directory", str(server.data_directory))
    installation.ok("backup", "run", "office")
    server.sql("insert into numbered values (3)")
    server.sql("create table newer as select n from generate_series(1, 20000) n")
    server.sql("alter system set work_mem = '7MB'")
    server.sql("select pg_reload_conf()")
    return installation


def done(office: Installation, *words: str) -> dict[str, Any]:
    """The result of a restore, which warns of the WAL that it removes."""
    found = office.run("restore", *words, "--json")
    assert found.code in (0, 3), found
    return found.last


def first_backup(office: Installation) -> str:
    return str(office.result("backup", "list")["backups"][0]["backup_id"])


def is_as_wanted(office: Installation, server: Server) -> None:
    """The rows of then, the configuration of now, a timeline of its own, nothing left beside."""
    assert rows(server) == [1, 2]
    assert server.value("show work_mem") == "7MB"
    assert server.value("select to_regclass('newer')") is None
    assert server.value("select count(*) from filled") == 20000
    assert not server.value("select pg_is_in_recovery()")
    place = server.data_directory
    assert [one.name for one in place.parent.iterdir() if "datamanager" in one.name and one.suffix != ".lock"] == []
    assert not (place / "recovery.signal").exists()
    office.ok("backup", "run", "office")


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
@pytest.mark.decision(12)
def test_a_backup_is_written_over_the_data_without_a_way_back(office: Installation, server: Server) -> None:
    first = first_backup(office)
    said = office.run("restore", first, "--in-place", "--delta", "--dry-run").out
    assert "There is no way back" in said
    assert "files (" in said
    assert office.run("restore", first, *WORDS, "--unreadable").code == 2
    assert office.run("restore", first, "--delta", "--target", str(server.data_directory / "x")).code == 2
    unconfirmed = office.run("restore", first, "--in-place", "--delta")
    assert (unconfirmed.code, rows(server)) == (2, [1, 2, 3])
    made = done(office, first, *WORDS)
    assert made["timeline"] == 2
    assert made["safety_backup_id"]
    assert made["following_backup_id"]
    assert made["removed_files"] > 0
    assert made["written_bytes"] > 0
    is_as_wanted(office, server)
    assert office.run("restore", "undo", "office", "--confirm", "office").code == 11
    assert "restored in place, by delta" in office.ok("audit", "list").out
    again = done(office, first, *WORDS, "--no-safety-backup")
    assert again["timeline"] == 3
    assert again["safety_backup_id"] is None
    is_as_wanted(office, server)


def starts(server: Server) -> bool:
    """Whether somebody can start it, with the configuration in the directory or one elsewhere.

    The server of a recovery whose command was killed is ended before.
    """
    elsewhere = server.folder / "elsewhere.conf"
    elsewhere.write_text(
        f"port = {server.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
        "restore_command = 'false'\n"
    )
    elsewhere.chmod(0o644)

    def pg_ctl(action: str, *words: str) -> bool:
        command = [str(server.bin / "pg_ctl"), action, "-D", str(server.data_directory), "-w", "-t", "10", *words]
        ended = subprocess.run(command, user=server.data_directory.stat().st_uid, capture_output=True, check=False)
        return ended.returncode == 0

    if (server.data_directory / "postmaster.pid").exists():
        pg_ctl("stop", "-m", "immediate")
    return any(pg_ctl("start", "-l", "/dev/null", *more) for more in ((), ("-o", f"-c config_file={elsewhere}")))


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
def test_a_killed_one_does_not_start_and_the_same_command_completes_it(office: Installation, server: Server) -> None:
    words = ("latest", "--in-place", "--delta", "--confirm", "office", "--cluster", "office")
    for phase in PHASES:
        assert office.killed_at(phase, "restore", *words), phase
        assert not starts(server), phase
        refused = office.run("restore", first_backup(office), "--in-place", "--confirm", "office")
        assert refused.code != 0
        assert "--delta" in refused.errors
        assert office.run("restore", "complete", "office").code != 0
        undone = office.run("restore", "undo", "office", "--confirm", "office")
        assert "--delta" in undone.errors
    done(office, *words)
    is_as_wanted(office, server)
    assert server.value("select count(*) from numbered") == 2


@pytest.mark.pg("18")
@pytest.mark.decision(11)
def test_killed_before_it_changes_anything_or_after_all_it_is_ended_without_the_backup(
    office: Installation, server: Server
) -> None:
    words = (first_backup(office), *WORDS, "--no-safety-backup")
    assert office.killed_at("stopping the server", "restore", *words)
    assert "was taken back" in office.run("restore", "complete", "office").out
    assert rows(server) == [1, 2, 3]
    assert office.killed_at("keeping the configuration", "restore", *words)
    assert "was completed" in office.run("restore", "complete", "office").out
    is_as_wanted(office, server)


@pytest.mark.pg("18")
def test_the_newest_backup_is_what_it_was_before_the_safety_backup(office: Installation, server: Server) -> None:
    first = first_backup(office)
    assert office.killed_at("comparing and restoring", "restore", "latest", *WORDS)
    made = done(office, "latest", *WORDS)
    assert made["backup_id"] == first
    assert made["safety_backup_id"] is None
    is_as_wanted(office, server)


def test_the_data_directory_is_the_servers_own(tmp_path: Path) -> None:
    """The option alone, without --in-place, is refused before anything is looked at."""
    refused = Installation(tmp_path).run("restore", "latest", "--delta", "--target", str(tmp_path / "x"))
    assert refused.code == 2
    assert "--in-place" in refused.errors


@pytest.mark.pg("18")
@pytest.mark.parametrize("crashed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_cold_backup_is_recovered_to_the_end_of_its_wal(office: Installation, server: Server, crashed: bool) -> None:
    if crashed:
        server.kill9()
    else:
        server.stop()
    cold = office.run("backup", "run", "office", "--cold", "--json").last["backup_id"]
    server.start()
    server.sql("insert into numbered values (4)")
    assert done(office, cold, *WORDS, "--no-safety-backup")["timeline"] == 2
    assert rows(server) == [1, 2, 3]
    assert server.value("select count(*) from newer") == 20000
    server.sql("insert into numbered values (5)")
    office.run("restore", cold, "--in-place", "--confirm", "office", "--no-safety-backup")
    assert rows(server) == [1, 2, 3]
