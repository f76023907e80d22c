"""The preflight: every obstacle that a server can put in a backup's way, and that its remedy removes it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from datamanager.base.errors import AuthenticationFailed, RightMissing, ServerUnfit, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.connection_errors import quote_identifier
from datamanager.postgres.preflight import Finding, Severity, check_backup_source, require_backup_source
from tests.conftest import NewServer
from tests.servers import Server, hand_over

ODD_NAME = 'Dr. "Ö" O\'Neil'


def check(dsn: str) -> dict[str, Finding]:
    with StopToken() as stop:
        return {finding.code: finding for finding in check_backup_source(ServerAddress(dsn), stop)}


def require(dsn: str) -> list[Finding]:
    with StopToken() as stop:
        return require_backup_source(ServerAddress(dsn), stop)


@pytest.mark.pg("14-18,15-debian")
def test_a_good_server_has_no_obstacle_and_keeps_no_slot(server: Server) -> None:
    found = check(server.dsn)
    assert set(found) == ({"out_of_support"} if server.major == 14 else set())
    assert server.slots_left() == []


@pytest.mark.pg("14-18")
@pytest.mark.decision(21)
@pytest.mark.requirement("R32")
def test_the_remedies_for_missing_rights_are_enough_for_a_backup_session(new_server: NewServer) -> None:
    server = new_server()
    server.sql(f"CREATE ROLE {quote_identifier(ODD_NAME)} LOGIN PASSWORD 'x'")
    (server.data_directory / "pg_hba.conf").write_text("local all postgres trust\nhost all all 127.0.0.1/32 trust\n")
    server.reload()
    dsn = server.make_dsn(user=ODD_NAME, host="127.0.0.1")
    found = check(dsn)
    assert {code for code, one in found.items() if one.severity is Severity.BLOCKER} == {
        "replication_right", "replication_not_admitted",
    }  # fmt: skip
    with pytest.raises(RightMissing) as refused:
        require(dsn)
    statement, line = refused.value.hint.split("`")[1], refused.value.hint.split("`")[3]
    server.sql(statement)
    with pytest.raises(AuthenticationFailed) as not_admitted:
        require(dsn)
    assert not_admitted.value.hint.split("`")[1] == line
    server.hba_first(line)
    assert all(one.severity is not Severity.BLOCKER for one in require(dsn + " password=x"))


@pytest.mark.pg("14-18")
def test_a_role_that_pg_hba_admits_but_that_lacks_the_right_is_told(server: Server) -> None:
    server.sql("CREATE ROLE plain LOGIN")
    try:
        assert next(iter(check(server.make_dsn(user="plain")))) == "replication_right"
    finally:
        server.sql("DROP ROLE plain")


@pytest.mark.pg("14-18")
def test_wal_level_minimal_blocks_and_the_remedy_given_works(new_server: NewServer) -> None:
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    with pytest.raises(ServerUnfit) as refused:
        require(server.dsn)
    for statement in refused.value.hint.split("`")[1:4:2]:
        server.sql(statement)
    server.restart()
    require(server.dsn)


def wait_until_no_sender_is_left(server: Server) -> None:
    """The server frees a sender's place some time after its client has gone."""
    end = time.monotonic() + 30
    while server.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.pg("14-18")
def test_senders_and_slots_used_up_block(new_server: NewServer) -> None:
    server = new_server(config={"max_wal_senders": "1", "max_replication_slots": "1"})
    with connect(ServerAddress(server.dsn), replication=True):
        assert next(iter(check(server.dsn))) == "no_free_sender"
    wait_until_no_sender_is_left(server)
    server.sql("SELECT pg_create_physical_replication_slot('taken')")
    found = check(server.dsn)
    assert next(iter(found)) == "no_free_slot"
    assert "max_replication_slots is 1" in found["no_free_slot"].sentence
    server.sql(found["no_free_slot"].remedy.split("`")[3])
    server.restart()
    assert "no_free_slot" not in check(server.dsn)


@pytest.mark.pg("14,18")
def test_no_slots_at_all_block(new_server: NewServer) -> None:
    server = new_server(config={"max_replication_slots": "0"})
    with pytest.raises(ServerUnfit, match="no replication slot is free"):
        require(server.dsn)


@pytest.mark.pg("14-18")
def test_missing_checksums_and_a_wal_limit_are_advice(new_server: NewServer) -> None:
    server = new_server(config={"max_slot_wal_keep_size": "1GB"}, initdb_args=["--no-data-checksums"])
    found = check(server.dsn)
    assert found["checksums_off"].severity is Severity.ADVICE
    assert "1GB" in found["slot_wal_limited"].sentence


@pytest.mark.pg("14-18")
@pytest.mark.decision(19)
def test_a_standby_is_a_warning(new_server: NewServer, open_folder: Path) -> None:
    primary = new_server()
    copy = open_folder / "standby"
    primary.run("pg_basebackup", "-D", copy, "-R", "-c", "fast", "-X", "stream")
    hand_over(copy)
    standby = new_server.adopt(copy)
    try:
        found = check(standby.dsn)
    finally:
        # Before its folder goes: the fixture finds the server by a file in there.
        standby.destroy()
    assert found["standby"].severity is Severity.WARNING
    assert not any(one.severity is Severity.BLOCKER for one in found.values())


def test_wrong_credentials_everywhere_are_one_blocker(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE ROLE carol LOGIN REPLICATION PASSWORD 'right'")
    server.password_only("carol")
    with pytest.raises(AuthenticationFailed):
        require(server.make_dsn(user="carol", host="127.0.0.1", password="wrong"))


def test_a_stopped_server_is_unreachable(new_server: NewServer) -> None:
    server = new_server(start=False)
    with pytest.raises(ServerUnreachable):
        require(server.dsn)
