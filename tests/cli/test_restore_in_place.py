"""A restore in place through the command line: what is said before, what is kept, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server


def rows(server: Server) -> list[int]:
    return [n for (n,) in server.sql("select n from numbered order by n")]


@pytest.fixture
def server(new_server: NewServer) -> Server:
    made = new_server(config={"max_slot_wal_keep_size": "1GB"})
    made.sql("create table numbered (n int primary key)")
    made.sql("create role reception login password 'then'")
    made.sql("insert into numbered values (1), (2)")
    return made


@pytest.fixture
def office(server: Server, installation: Installation) -> Installation:
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    installation.ok("config", "set", "clusters.office.install_path", str(server.bin))
    installation.ok("backup", "run", "office")
    server.sql("insert into numbered values (3)")
    server.sql("alter role reception password 'now'")
    server.sql("create role temporary")
    return installation


@pytest.mark.pg("15,18")
@pytest.mark.requirement("R73")
@pytest.mark.requirement("R74")
@pytest.mark.requirement("R80")
@pytest.mark.requirement("N7", missing="the comparison of row counts")
def test_a_restore_in_place_keeps_what_was_there_and_is_undone(office: Installation, server: Server) -> None:
    planned = office.result("restore", "latest", "--in-place", "--dry-run")
    roles = {one["name"]: one for one in planned["roles"]}
    assert roles["reception"]["password"] is True
    assert roles["temporary"]["gone"] is True
    assert "then" not in str(roles)
    assert rows(server) == [1, 2, 3]
    unconfirmed = office.run("restore", "latest", "--in-place")
    assert unconfirmed.code == 2
    assert "--confirm office" in unconfirmed.errors
    assert office.run("restore", "latest", "--in-place", "--confirm", "clinic").code == 2
    assert rows(server) == [1, 2, 3]

    first = office.result("backup", "list")["backups"][0]["backup_id"]
    done = office.result("restore", first, "--in-place", "--confirm", "office")
    assert rows(server) == [1, 2]
    assert done["safety_backup_id"]
    assert done["following_backup_id"]
    assert done["timeline"] == 2
    (kept,) = office.result("restore", "kept", "office")["kept"]
    assert Path(kept["place"]).is_dir()

    server.sql("insert into numbered values (10)")
    undone = office.result("restore", "undo", "office", "--confirm", "office")
    assert undone["down_seconds"] < 60
    assert rows(server) == [1, 2, 3]
    office.result("restore", "undo", "office", "--confirm", "office")
    assert rows(server) == [1, 2, 10]
    (kept,) = office.result("restore", "kept", "office")["kept"]
    assert office.run("restore", "forget", "office", kept["id"]).code == 2
    office.ok("restore", "forget", "office", kept["id"], "--confirm", "office")
    assert not Path(kept["place"]).exists()
    assert office.result("restore", "kept", "office")["kept"] == []
    assert office.run("restore", "undo", "office", "--confirm", "office").code == 11
    assert rows(server) == [1, 2, 10]
    audit = office.ok("audit", "list").out
    assert "restored in place" in audit
    assert "restore undone" in audit
    assert "kept data deleted" in audit


@pytest.mark.pg("18")
@pytest.mark.requirement("R79")
def test_a_cluster_whose_server_is_stopped_is_restored_in_place_too(office: Installation, server: Server) -> None:
    first = office.result("backup", "list")["backups"][0]["backup_id"]
    directory = server.data_directory
    server.stop()
    done = office.result("restore", first, "--in-place", "--confirm", "office", "--data-directory", str(directory))
    assert done["safety_backup_id"]
    assert rows(server) == [1, 2]


@pytest.mark.pg("18")
def test_options_that_do_not_belong_together_are_refused(office: Installation, tmp_path: Path) -> None:
    for words in (
        ("--in-place", "--target", str(tmp_path / "x")),
        ("--in-place", "--start"),
        ("--in-place", "--into", "x"),
        ("--target", str(tmp_path / "x"), "--confirm", "office"),
    ):
        assert office.run("restore", "latest", *words).code == 2, words
    assert "No restore of office is unfinished" in office.ok("restore", "complete", "office").out
