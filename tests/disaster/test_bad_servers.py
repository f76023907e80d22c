"""What bad looks like, on the server's side: every failure has its own exit code, a sentence and a remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from datamanager.postgres.connection import ServerAddress, connect
from tests.conftest import NewServer
from tests.disaster.command import CommandLine, Done, check_error
from tests.disaster.scene import assert_server_is_free, fill, objects_below, temporaries
from tests.servers import Proxy, Server, free_port, hand_over


@dataclass(frozen=True)
class Desk:
    """A command line, its repository ``usb``, and a server that only this test uses."""

    command: CommandLine
    drive: Path
    server: Server

    def add(self, conninfo: str, *more: str | Path) -> None:
        """Make ``office`` the server reached by that string, unseen."""
        self.command.cluster("office", conninfo, "--repo", "usb", "--no-check", *more)

    def refused(self, code: int, says: Sequence[str], advises: Sequence[str]) -> Done:
        """A backup of ``office`` is refused, and the repository holds what it held."""
        before = objects_below(self.drive)
        done = self.command.refused(code, "backup", "run", "office", says=says, advises=advises)
        assert objects_below(self.drive) == before
        return done

    def cut_short(self, code: int, says: Sequence[str], disaster: Callable[[], None], *more: str) -> Done:
        """A backup during which a disaster happens fails with ``code`` and publishes nothing."""
        running = self.command.start("backup", "run", "office", "--max-rate", "8MB", "--json", *more)
        running.until('"copying"')
        time.sleep(0.4)
        disaster()
        done = running.wait()
        assert done.code == code, done.out + done.err
        assert done.last["message_type"] == "error"
        check_error(done.last["message"], done.last["hint"], says, [])
        return done

    def assert_nothing_published(self) -> None:
        assert self.command.backups("usb") == []
        assert temporaries(self.drive) == []
        assert not any(name.startswith(("manifests", "leases/")) for name in objects_below(self.drive))
        self.command.verified("usb")


@pytest.fixture
def desk(new_server: NewServer, command: CommandLine, open_folder: Path) -> Desk:
    server = new_server()
    command.repository("usb", open_folder / "usb")
    return Desk(command, open_folder / "usb", server)


def test_a_wrong_or_missing_password_is_told_and_never_repeated(desk: Desk) -> None:
    desk.server.sql("create role carol login replication password 'right'")
    desk.server.password_only("carol")
    wrong = desk.command.home.with_name("wrong")
    wrong.write_text("open sesame\n")
    wrong.chmod(0o600)
    desk.command.secrets.append("open sesame")
    desk.add(desk.server.make_dsn(user="carol"), "--password-file", wrong)
    desk.refused(21, ["password authentication failed"], ["password"])
    desk.command.ok("cluster", "set", "office", "password_file=")
    desk.refused(21, ["asks carol for a password"], ["--password-file"])


def test_a_server_that_is_not_there_is_told_with_its_address(desk: Desk) -> None:
    port = free_port()
    desk.add(f"host=127.0.0.1 port={port} user=postgres")
    desk.refused(20, [f"127.0.0.1:{port}"], ["Check that the server runs"])
    desk.server.stop()
    desk.command.ok("cluster", "set", "office", f"conninfo={desk.server.dsn}")
    desk.refused(20, [str(desk.server.port)], ["Check that the server runs"])


def test_a_missing_replication_right_is_named_with_the_statement_that_gives_it(desk: Desk) -> None:
    desk.server.sql('create role "dora d" login')
    desk.add(desk.server.make_dsn(user="dora d"))
    desk.refused(22, ["dora d", "lacks the REPLICATION attribute"], ['ALTER ROLE "dora d" REPLICATION'])
    desk.server.sql('alter role "dora d" replication')
    assert desk.command.run("backup", "run", "office").code in (0, 3)


@pytest.mark.root
@pytest.mark.pg("14,18")
def test_a_file_that_the_server_cannot_read_is_named_and_not_taken_for_a_right_of_the_role(desk: Desk) -> None:
    (desk.server.data_directory / "left.behind").touch(mode=0o600)  # root's
    desk.add(desk.server.dsn)
    desk.refused(22, ["left.behind"], ["server's account", "take it away"])


def test_a_role_that_pg_hba_does_not_admit_is_told_the_line(desk: Desk) -> None:
    desk.server.sql("create role erin login replication")
    desk.server.hba_first("local replication erin reject")
    desk.add(desk.server.make_dsn(user="erin"))
    desk.refused(21, ["erin"], ["pg_hba.conf", "local replication"])


def test_no_free_wal_sender_is_told_with_the_setting(new_server: NewServer, desk: Desk) -> None:
    server = new_server(config={"max_wal_senders": "1"})
    desk.add(server.dsn)
    with connect(ServerAddress(server.dsn), replication=True):
        desk.refused(23, ["no WAL sender is free"], ["ALTER SYSTEM SET max_wal_senders = 10", "restart the server"])
    desk.assert_nothing_published()


def test_no_free_replication_slot_is_told_with_the_setting(new_server: NewServer, desk: Desk) -> None:
    server = new_server(config={"max_replication_slots": "1"})
    desk.add(server.dsn)
    server.sql("select pg_create_physical_replication_slot('taken')")
    desk.refused(23, ["no replication slot is free"], ["ALTER SYSTEM SET max_replication_slots = 10"])


def test_minimal_wal_is_told_with_the_settings_to_change(new_server: NewServer, desk: Desk) -> None:
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    desk.add(server.dsn)
    desk.refused(23, ["minimal"], ["ALTER SYSTEM SET wal_level = replica", "restart the server"])


# -- midway ---------------------------------------------------------------------------------------------------------


@pytest.mark.pg("15,18")
def test_a_server_that_stops_midway_fails_the_backup_and_the_next_one_works(desk: Desk) -> None:
    fill(desk.server, "scans", 40)
    desk.add(desk.server.dsn)
    desk.cut_short(24, [], lambda: desk.server.stop("fast"))
    desk.assert_nothing_published()
    desk.server.start()
    assert_server_is_free(desk.server)
    assert desk.command.run("backup", "run", "office").code in (0, 3)
    desk.command.verified("usb")


def test_a_server_that_crashes_and_comes_back_midway_fails_the_backup(desk: Desk) -> None:
    fill(desk.server, "scans", 40)
    desk.add(desk.server.dsn)

    def crash() -> None:
        desk.server.kill9()
        desk.server.start()

    desk.cut_short(24, [], crash)
    desk.assert_nothing_published()
    assert_server_is_free(desk.server)


@pytest.mark.pg("14,18")
def test_a_connection_cut_midway_fails_the_backup_and_frees_the_server(desk: Desk) -> None:
    fill(desk.server, "scans", 40)
    with Proxy(desk.server.port, parameters={"user": "postgres"}) as proxy:
        desk.add(proxy.dsn)
        desk.cut_short(24, ["read from server: the connection was lost"], proxy.cut)
        assert_server_is_free(desk.server)
        desk.assert_nothing_published()
        proxy.resume()
        proxy.cut_after(20 << 20)
        done = desk.command.run("backup", "run", "office", "--json")
        assert done.code == 24
        check_error(done.last["message"], done.last["hint"], ["the connection was lost"], ["run the backup again"])
        desk.assert_nothing_published()


def test_a_second_backup_of_the_cluster_is_refused_while_one_runs(desk: Desk) -> None:
    fill(desk.server, "scans", 16)
    desk.add(desk.server.dsn)
    first = desk.command.start("backup", "run", "office", "--max-rate", "16MB", "--json")
    first.until('"copying"')
    second = desk.command.run("backup", "run", "office", "--json")
    assert second.code == 12
    assert f"process {first.pid}" in second.last["message"]
    assert "Wait until the other run has ended" in second.last["hint"]
    done = first.wait()
    assert done.code in (0, 3), done.out
    assert desk.command.backups("usb") == [done.last["backup_id"]]
    desk.command.verified("usb")


def test_names_with_spaces_quotes_and_letters_of_any_language_survive_the_whole_way(
    new_server: NewServer, desk: Desk, open_folder: Path
) -> None:
    name = """Büro "Süd" O'Hara 東京"""
    server = desk.server
    server.sql(f'create database "{name.replace(chr(34), chr(34) * 2)}"')
    server.sql('create role "o\'hara ""x""" login superuser')
    place = server.folder / "größe 1 東"
    place.mkdir(mode=0o700)
    hand_over(place)
    server.sql(f"create tablespace \"größe 1 o'k\" location '{place}'")
    server.sql('create table t tablespace "größe 1 o\'k" as select 7 as x')
    odd = open_folder / name.replace('"', "”")
    odd.mkdir()
    desk.command.repository("odd", odd / "my drive")
    desk.command.cluster("office", server.make_dsn(user='o\'hara "x"', database=name), "--repo", "odd")
    refused = desk.command.refused(2, "backup", "run", "office", "--name", name, advises=["for example"])
    suggested = refused.last["hint"].partition('"')[2].rpartition('"')[0]
    backup = desk.command.ok("backup", "run", "office", "--name", suggested)
    assert backup["name"] == suggested == "Büro -Süd- O'Hara 東京"
    target, space = odd / "new one", odd / "space\tone"
    desk.command.ok("restore", "latest", "--target", target, "--tablespace-map", f"{place}={space}")
    restored = new_server.adopt(target)
    assert restored.value("select count(*) from pg_database where datname = %s", name) == 1
    assert restored.value("select x from t") == 7
