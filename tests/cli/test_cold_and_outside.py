"""Backups of servers that do not run, and configuration outside the data directory, from the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server, free_port, hand_over
from tests.servers.processes import run_program

ROWS = "create table visits as select n as id, 'patient ' || n as who from generate_series(1, 5000) n"
MARK = "# only the owner of the repository reads this"


def result(installation: Installation, *words: str | Path) -> dict[str, Any]:
    return installation.ok(*words, "--json").last


def shown(installation: Installation, backup: str) -> dict[str, Any]:
    return installation.ok("backup", "show", backup, "--json").last


def as_debian(new_server: NewServer, version: str) -> tuple[Server, Path, int]:
    """A server whose configuration lies elsewhere, and names a port for whoever is started with it alone."""
    server = new_server(version, start=False)
    etc = server.folder / "etc" / "postgresql" / "15" / "main"
    (etc / "conf.d").mkdir(parents=True)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (server.data_directory / name).rename(etc / name)
    port = free_port()
    (etc / "conf.d" / "clinic.conf").write_text(
        f"{MARK}\nport = {port}\nwork_mem = '4321kB'\nunix_socket_directories = '{server.folder}'\n"
    )
    with (etc / "postgresql.conf").open("a") as file:
        file.write(f"data_directory = '{server.data_directory}'\ninclude_dir = 'conf.d'\n")
    hand_over(server.folder / "etc")
    names = {"config_file": "postgresql.conf", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    server.start_config = {setting: str(etc / name) for setting, name in names.items()}
    return server.start(), etc, port


@pytest.mark.pg("15,18")
def test_a_cluster_with_too_little_wal_is_backed_up_cold_as_the_hint_says(
    installation: Installation, new_server: NewServer, open_folder: Path
) -> None:
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    server.sql(ROWS)
    installation.init()
    installation.run("cluster", "add", "office", server.dsn, "--repo", "usb")
    refused = installation.run("backup", "run", "office")
    assert refused.code == 23
    assert "stop the server and run `datamanager backup run CLUSTER --cold`" in refused.errors

    running = installation.run("backup", "run", "office", "--cold", "--data-directory", server.data_directory)
    assert running.code == 12
    assert "a server runs on" in running.errors
    server.stop()
    unknown = installation.run("backup", "run", "office", "--cold")
    assert unknown.code == 2
    assert "--data-directory DIR" in unknown.errors
    first = result(installation, "backup", "run", "office", "--cold", "--data-directory", server.data_directory)
    assert first["cold"]
    again = result(installation, "backup", "run", "office", "--cold")  # as the first one found it
    assert (again["parent"], again["method"]) == (first["backup_id"], "compared")
    installation.ok("cluster", "set", "office", f"data_directory={open_folder}")
    assert installation.run("backup", "run", "office", "--cold").code == 11  # the configured one is no cluster

    one = shown(installation, again["backup_id"])
    assert (one["control"]["state"], one["control"]["wal_level"]) == ("shut down", "minimal")
    assert "taken while the server did not run: shut down" in installation.ok("backup", "show", again["backup_id"]).out
    target = open_folder / "restored"
    assert result(installation, "restore", again["backup_id"], "--target", target)["outside_files"] == []
    assert new_server.adopt(target, own=False).value("select count(*) from visits") == 5000


def test_a_directory_of_another_cluster_is_not_taken_for_the_recorded_one(
    installation: Installation, new_server: NewServer
) -> None:
    server, other = new_server(), new_server()
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    result(installation, "backup", "run", "office")
    for one in (server, other):
        one.stop()
    server.data_directory.rename(server.folder / "away")
    other.data_directory.rename(server.data_directory)
    done = installation.run("backup", "run", "office", "--cold")
    assert done.code == 10
    assert "is of another cluster" in done.errors
    done = installation.run("backup", "run", "office", "--cold", "--data-directory", server.data_directory)
    assert done.code == 3
    assert "is of another cluster" in done.out
    server.data_directory.rename(other.data_directory)
    (server.folder / "away").rename(server.data_directory)


def test_a_crashed_server_is_backed_up_with_a_warning(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    server.stop("immediate")
    done = installation.run("backup", "run", "office", "--cold", "--data-directory", server.data_directory, "--json")
    assert done.code == 3
    (warning,) = done.last["warnings"]
    assert "crash recovery runs when it is restored" in warning
    assert shown(installation, done.last["backup_id"])["backup_warnings"] == [warning]


@pytest.mark.pg("15-debian,18")
@pytest.mark.parametrize("cold", [False, True])
def test_configuration_outside_comes_back_beside_and_starts_the_server_as_printed(
    installation: Installation, new_server: NewServer, open_folder: Path, pg_version: str, cold: bool
) -> None:
    server, etc, port = as_debian(new_server, pg_version)
    server.sql(ROWS)
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    words: list[str | Path] = ["backup", "run", "office"]
    if cold:
        server.stop()
        words += ["--cold", "--data-directory", server.data_directory]
    backup = result(installation, *words)["backup_id"]
    one = shown(installation, backup)
    names = ["conf.d/clinic.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.conf"]
    assert sorted(file["path"] for file in one["outside_files"]) == [str(etc / name) for name in names]
    assert all(file["kept"] and file["bytes"] == Path(file["path"]).stat().st_size for file in one["outside_files"])
    told = [installation.ok("backup", "show", backup, *more).out for more in ((), ("--json",))]
    told += [installation.ok("backup", "list", "--json").out, *(log.read_text() for log in installation.logs())]
    assert not [text for text in told if MARK in text]

    target = open_folder / "it's restored"
    done = installation.ok("restore", backup, "--target", target)
    placed = open_folder / "it's restored.outside"
    for file in one["outside_files"]:
        copy = placed / file["path"].lstrip("/")
        assert copy.read_bytes() == Path(file["path"]).read_bytes()
        assert f"  {file['path']}\n" in done.out
    assert placed.stat().st_mode & 0o777 == 0o700
    assert installation.run("restore", backup, "--target", open_folder / "second", "--dry-run").code == 0
    start(server, done.out)
    try:
        dsn = f"host={server.folder} port={port} user=postgres dbname=postgres"
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select count(*) from visits").fetchone() == (5000,)
            assert connection.execute("show work_mem").fetchone() == ("4321kB",)
            assert connection.execute("show data_directory").fetchone() == (str(target),)
            for name in ("config_file", "hba_file", "ident_file"):
                assert str(connection.execute(f"show {name}").fetchall()[0][0]).startswith(f"{placed}/")
    finally:
        run_program([server.bin / "pg_ctl", "-D", target, "-m", "immediate", "stop"])


def start(server: Server, text: str) -> None:
    """Run the command that the restore printed, as the servers' account."""
    command = re.findall(r"^ +pg_ctl .*$", text, re.MULTILINE)[0].strip()
    shell = f"PATH={shlex.quote(str(server.bin))}:$PATH; {command} -w >/dev/null 2>&1"
    run_program(["/bin/sh", "-c", shell])


def test_nothing_lies_in_the_way_of_restored_configuration(
    installation: Installation, new_server: NewServer, open_folder: Path
) -> None:
    server, _, _ = as_debian(new_server, new_server.version)
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    backup = result(installation, "backup", "run", "office")["backup_id"]
    target = open_folder / "new"
    (open_folder / "new.outside").mkdir()
    (open_folder / "new.outside" / "mine").touch()
    done = installation.run("restore", backup, "--target", target)
    assert (done.code, target.exists()) == (50, False)
    assert "new.outside" in done.errors
    exported = installation.ok("backup", "export", backup, open_folder / "exported", "--json").last
    assert {Path(one["place"]).name for one in exported["outside_files"]} == {
        "postgresql.conf", "pg_hba.conf", "pg_ident.conf", "clinic.conf",
    }  # fmt: skip


@pytest.mark.pg("15-debian,18")
@pytest.mark.requirement("R32")
def test_a_plain_role_is_told_the_statements_that_bring_the_configuration_along(
    installation: Installation, new_server: NewServer, pg_version: str
) -> None:
    server, etc, _ = as_debian(new_server, pg_version)
    for file in etc.rglob("*.conf"):
        file.chmod(0o600)
    server.sql("create role plain login replication")
    installation.init()
    installation.ok("cluster", "add", "office", server.make_dsn(user="plain"), "--repo", "usb")
    done = installation.run("backup", "run", "office", "--json")
    assert done.code == 3
    (warning,) = [one for one in done.last["warnings"] if "configuration" in one]
    for statement in warning.split("`")[1].split(";")[:-1]:
        server.sql(statement)
    (etc / "conf.d" / "clinic.conf").write_text(f"{MARK}, again\n")
    backup = result(installation, "backup", "run", "office")["backup_id"]
    kept = {one["path"]: one["kept"] for one in shown(installation, backup)["outside_files"]}
    assert kept[str(etc / "conf.d" / "clinic.conf")]
    assert len(kept) == 4


@pytest.mark.pg("14,18")
def test_a_role_without_rights_on_an_ordinary_cluster_is_not_warned(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    server.sql("create role plain login replication")
    installation.init()
    installation.ok("cluster", "add", "office", server.make_dsn(user="plain"), "--repo", "usb")
    assert result(installation, "backup", "run", "office")["warnings"] == []


@pytest.mark.pg("14,18")
def test_the_rate_reaches_the_server_and_holds_cold_too(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    server.sql("create table filler as select n, repeat(md5(n::text), 60) t from generate_series(1, 12000) n")
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    rate = 24 << 20
    done = installation.ok("backup", "run", "office", "--max-rate", "24MB", "--json")
    assert any(re.search(rf"MAX_RATE {rate >> 10}\b", one["text"]) for one in done.of_type("executed"))
    assert done.last["total_bytes"] / done.last["seconds"] < 1.1 * rate
    installation.ok("cluster", "set", "office", "max_rate=20MB")
    done = installation.ok("backup", "run", "office", "--json")
    assert any(re.search(rf"MAX_RATE {20 << 10}\b", one["text"]) for one in done.of_type("executed"))
    server.stop()
    cold = result(installation, "backup", "run", "office", "--cold")
    assert cold["total_bytes"] / cold["seconds"] < 1.02 * (20 << 20)
