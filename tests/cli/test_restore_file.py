"""``restore FILE``: dumps and base backups of other programs, as typed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server, hand_over


def dumped(server: Server, folder: Path, program: str = "pg_dump", *words: str) -> Path:
    server.run(program, "-f", server.folder / "dump", *words)
    return Path(shutil.move(server.folder / "dump", folder / "a file"))


@pytest.fixture
def source(new_server: NewServer) -> Server:
    """A server with a few rows of a role's own."""
    server = new_server()
    server.script("CREATE ROLE doctor; CREATE TABLE visits AS SELECT 1 AS id; ALTER TABLE visits OWNER TO doctor")
    return server


@pytest.mark.pg("15,18")
@pytest.mark.requirement("R75")
def test_a_dump_goes_into_a_new_database_of_a_server_with_a_password(
    installation: Installation, source: Server, new_server: NewServer
) -> None:
    file = dumped(source, installation.folder, "pg_dump", "-Fc", "postgres")
    target = new_server()
    target.sql("CREATE ROLE loader SUPERUSER LOGIN PASSWORD 'open: sesame'")
    target.password_only("loader")
    secret = installation.secret_file("pw", "open: sesame\n")
    server = ("--conninfo", target.make_dsn(user="loader"), "--password-file", secret)
    done = installation.run("restore", file, "--into", "new", *server)
    assert done.code == 52
    assert "doctor" in done.errors
    assert "--create-roles" in done.errors
    plan = installation.run("restore", file, "--into", "new", *server, "--create-roles", "--dry-run", "--json").last
    assert plan["kind"] == "pg_dump archive"
    assert plan["roles_missing"] == ["doctor"]
    assert plan["volumes_needed"][0]["need_bytes"] == 7 * file.stat().st_size
    found = installation.result("restore", file, "--into", "new", *server, "--create-roles")
    assert found["database"] == "new"
    assert target.value("SELECT count(*) FROM visits", database="new") == 1
    for log in installation.logs():
        assert "sesame" not in log.read_text()
    again = installation.run("restore", file, "--into", "new", *server)
    assert again.code == 2
    assert "exists already" in again.errors


@pytest.mark.requirement("R75")
def test_a_base_backup_comes_back_and_starts(installation: Installation, source: Server, open_folder: Path) -> None:
    source.run("pg_basebackup", "-D", open_folder / "taken", "-Ft", "-c", "fast")
    target = open_folder / "new"
    found = installation.result("restore", open_folder / "taken", "--target", target, "--start", "--port", "5999")
    try:
        assert found["verified"] is True
        with psycopg.connect(found["server"]["conninfo"]) as session:
            assert session.execute("SELECT count(*) FROM visits").fetchone() == (1,)
    finally:
        stop = [str(source.bin / "pg_ctl"), "stop", "-m", "immediate", "-D", str(target)]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, user=target.owner())
    again = installation.run("restore", open_folder / "taken", "--target", target)
    assert again.code == 50


@pytest.mark.requirement("R75")
def test_an_export_of_our_own_comes_back(clinic: Installation, open_folder: Path) -> None:
    clinic.ok("backup", "export", "latest", open_folder / "out", "--repo", "usb")
    found = clinic.result("restore", open_folder / "out", "--target", open_folder / "new")
    assert found["kind"] == "base backup"
    assert found["verified"] is True


def test_what_is_no_backup_and_options_that_do_not_fit_are_refused(
    installation: Installation, source: Server, open_folder: Path
) -> None:
    page = installation.folder / "latest.dump"
    page.write_text("<html><body>404</body></html>")
    done = installation.run("restore", page, "--into", "x", "--conninfo", source.dsn)
    assert done.code == 2
    assert "a web page" in done.errors
    dump = dumped(source, installation.folder, "pg_dump", "postgres")
    for words in (
        ("--target", open_folder / "x"),
        ("--into", "x"),
        ("--into", "x", "--cluster", "unknown"),
        ("--into", "x", "--conninfo", source.dsn, "--repo", "usb"),
        ("--into", "x", "--conninfo", source.dsn, "--start"),
        ("--into", "x", "--conninfo", f"{source.dsn} password=secret"),
        ("--into", "x", "--conninfo", source.dsn, "--to-time", "2026-01-01"),
    ):
        done = installation.run("restore", dump, *words)
        assert done.code in (2, 10, 11), (words, done)
    assert installation.run("restore", "latest", "--into", "x", "--target", open_folder / "x").code == 2
    assert installation.run("restore", "latest").code == 2
    assert installation.run("restore", installation.folder / "not there.dump", "--into", "x").code == 11


@pytest.mark.requirement("R75")
def test_everything_of_pg_dumpall_becomes_a_cluster_beside(
    installation: Installation, source: Server, open_folder: Path
) -> None:
    script = dumped(source, installation.folder, "pg_dumpall")
    hand_over(open_folder)
    found = installation.result("restore", script, "--target", open_folder / "new")
    assert found["kind"] == "pg_dumpall script"
    assert (open_folder / "new" / "postgresql.conf").is_file()
    assert installation.run("restore", script, "--into", "x", "--conninfo", source.dsn).code == 2
