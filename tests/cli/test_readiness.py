"""What would make a restore fail on this machine is said by a dry run, and refused before anything is copied."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.caller import Done, Installation
from tests.conftest import NewServer
from tests.servers import Server, binaries
from tests.storage.mounts import tmpfs

MIB = 1 << 20
pytestmark = pytest.mark.pg("18")


@pytest.fixture
def server(new_server: NewServer) -> Server:
    """It preloads a library, and its database uses an extension."""
    made = new_server(config={"shared_preload_libraries": "auto_explain", "max_slot_wal_keep_size": "1GB"})
    made.sql("create extension pgcrypto")
    made.sql("create table numbered as select 1 as n")
    return made


@pytest.fixture
def office(server: Server, installation: Installation) -> Installation:
    """The cluster ``office``, not backed up yet."""
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
    use(installation, server.bin)
    return installation


def use(installation: Installation, programs: Path) -> None:
    """From now on these are this machine's programs."""
    installation.ok("config", "set", "clusters.office.install_path", str(programs))


def installation_without(server: Server, folder: Path, *names: str) -> Path:
    """A copy of the server's programs that lacks those files."""
    made = folder / "other programs"
    shutil.copytree(server.bin.parent, made, symlinks=True, ignore=lambda _, members: {*names} & {*members})
    return made


def levels(done: Done) -> dict[str, str]:
    """By code, the worst of each; every finding but a good one has its remedy."""
    found: list[dict[str, Any]] = done.last["readiness"]
    assert all((one["remedy"] is None) == (one["level"] == "ok") for one in found)
    assert all(one["sentence"].endswith(".") and one["why"].endswith(".") for one in found)
    order = [one["level"] for one in found]
    assert order == sorted(order, key=["blocking", "warning", "unknown", "ok"].index)
    return {one["code"]: one["level"] for one in reversed(found)}


def test_a_machine_that_has_everything_is_told_to_be_ready(office: Installation, open_folder: Path) -> None:
    office.ok("backup", "run", "office")
    words = ("restore", "latest", "--target", open_folder / "new")
    ready = office.run(*words, "--dry-run", "--json")
    assert ready.code == 0
    assert set(levels(ready).values()) == {"ok"}
    assert {"backup", "programs", "preload", "extensions", "locale", "collation", "space", "owner"} <= {*levels(ready)}
    assert "Checked and well: key, backup" in office.ok(*words, "--dry-run").out
    assert "readiness" not in office.result(*words)


def test_what_only_matters_afterwards_is_a_warning_and_the_files_are_restored(
    office: Installation, server: Server, open_folder: Path
) -> None:
    office.ok("backup", "run", "office")
    use(office, installation_without(server, open_folder, "auto_explain.so", "pgcrypto.control"))
    words = ("restore", "latest", "--target", open_folder / "new")
    dry = office.run(*words, "--dry-run", "--json")
    assert (dry.code, levels(dry)["preload"], levels(dry)["extensions"]) == (0, "warning", "warning")
    said = office.run(*words, "--dry-run").out
    assert said.index("Warning: ") < said.index("  Why it matters: ") < said.index("  Remedy: Install the packages")
    done = office.run(*words, "--json")
    assert done.code == 3
    assert any("lacks auto_explain of the server's shared_preload" in one for one in done.last["warnings"])
    assert any("use pgcrypto, which" in one for one in done.last["warnings"])
    assert (open_folder / "new" / "global" / "pg_control").is_file()


@pytest.mark.requirement("N10")
def test_in_place_a_library_that_the_server_loads_must_be_there_and_nothing_is_stopped(
    office: Installation, server: Server, open_folder: Path
) -> None:
    office.ok("backup", "run", "office")
    started = server.value("select pg_postmaster_start_time()")
    use(office, installation_without(server, open_folder, "auto_explain.so"))
    for delta in ([], ["--delta"]):
        words = ["restore", "latest", "--in-place", *delta]
        dry = office.run(*words, "--dry-run", "--json")
        assert (dry.code, dry.last["message_type"], levels(dry)["preload"]) == (26, "error", "blocking")
        refused = office.run(*words, "--confirm", "office")
        assert refused.code == 26
        assert "auto_explain" in refused.errors
        assert "Install the packages" in refused.errors
    assert server.value("select pg_postmaster_start_time()") == started
    assert len(office.result("backup", "list")["backups"]) == 1  # no safety backup either
    server.sql("alter system set shared_preload_libraries = 'pg_prewarm'")
    server.restart()
    assert office.run("restore", "latest", "--in-place", "--dry-run").code == 0  # that is what stays in force
    server.stop()
    words = ["restore", "latest", "--in-place", "--data-directory", str(server.data_directory)]
    unasked = office.run(*words, "--dry-run", "--json")
    assert (unasked.code, levels(unasked)["preload"]) == (0, "warning")


def test_without_the_programs_of_that_major_only_files_are_restored(
    office: Installation, server: Server, open_folder: Path
) -> None:
    office.ok("backup", "run", "office")
    use(office, binaries("17"))
    words = ("restore", "latest", "--target", open_folder / "new")
    for more, code, level in (((), 0, "warning"), (("--in-place",), 26, "blocking")):
        place = words if not more else ("restore", "latest", *more)
        dry = office.run(*place, "--dry-run", "--json")
        assert (dry.code, levels(dry)["programs"]) == (code, level)
    starting = office.run(*words, "--start")
    assert starting.code == 26
    assert not (open_folder / "new").exists()
    done = office.run(*words, "--json")
    assert done.code == 3
    assert "PostgreSQL 18 was not found here: " in done.last["warnings"][0]
    assert "holds 17." in done.last["warnings"][0]
    assert office.run("restore", "latest", "--in-place", "--confirm", "office").code == 26
    assert server.value("select n from numbered") == 1


@pytest.mark.requirement("N10")
def test_a_locale_that_this_machine_lacks_is_in_the_way_of_a_server(
    office: Installation, server: Server, open_folder: Path
) -> None:
    server.sql("create database clinic")
    server.sql("update pg_database set datcollate = 'xx_XX.UTF-8', datctype = 'xx_XX.UTF-8' where datname = 'clinic'")
    assert office.run("backup", "run", "office").code in (0, 3)
    dry = office.run("restore", "latest", "--in-place", "--dry-run", "--json")
    assert (dry.code, levels(dry)["locale"]) == (52, "blocking")
    assert levels(dry)["extensions"] == "unknown"
    refused = office.run("restore", "latest", "--in-place", "--confirm", "office")
    assert refused.code == 52
    assert "lacks the locale xx_XX.UTF-8 of clinic" in refused.errors
    done = office.run("restore", "latest", "--target", open_folder / "new", "--json")
    assert done.code == 3
    assert not any("extensions" in one for one in done.last["warnings"])  # what nobody can tell is no warning


@pytest.mark.pg("15-debian")
@pytest.mark.requirement("N10")
def test_text_that_sorts_differently_here_is_warned_of(office: Installation, server: Server, open_folder: Path) -> None:
    server.sql("create database sorted template template0 locale_provider icu icu_locale 'de'")
    server.sql("update pg_database set datcollversion = '1.1' where datname = 'sorted'")
    assert office.run("backup", "run", "office").code in (0, 3)
    done = office.run("restore", "latest", "--target", open_folder / "new", "--json")
    assert done.code == 3
    (warning,) = [one for one in done.last["warnings"] if "sorts" in one]
    assert "text sorts differently here for database sorted (icu 1.1, here " in warning
    assert "REINDEX DATABASE" in warning


@pytest.mark.mounts
@pytest.mark.requirement("R77")
def test_everything_that_is_in_the_way_is_said_at_once(office: Installation, open_folder: Path) -> None:
    office.ok("backup", "run", "office")
    use(office, binaries("17"))
    with tmpfs(open_folder / "small", 8 * MIB) as volume:
        words = ("restore", "latest", "--target", volume.folder / "new")
        assert office.run(*words, "--start").code == 51
        dry = office.run(*words, "--dry-run", "--json")
        assert (dry.code, dry.last["dry_run"]) == (51, True)
        assert (levels(dry)["space"], levels(dry)["programs"]) == ("blocking", "warning")
        shown = office.run(*words, "--dry-run")
        assert shown.out.index("In the way: ") < shown.out.index("Warning: ")
        assert "There is room on" in shown.out
        assert office.run(*words).code == 51
        assert list(volume.folder.iterdir()) == []


@pytest.mark.root
@pytest.mark.requirement("N10")
def test_a_target_that_the_servers_account_does_not_get_to_is_told(office: Installation, tmp_path: Path) -> None:
    office.ok("backup", "run", "office")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    words = ("restore", "latest", "--target", closed / "new")
    starting = office.run(*words, "--start")
    assert starting.code == 50
    assert "may not enter" in starting.errors
    assert not (closed / "new").exists()
    done = office.run(*words, "--json")
    assert done.code == 3
    assert "may not enter" in done.last["warnings"][0]


@pytest.mark.requirement("R76", missing="the button itself")
def test_a_backup_of_which_a_part_is_gone_is_refused_before_the_server_stops(
    office: Installation, server: Server, open_folder: Path
) -> None:
    office.ok("backup", "run", "office")
    packs = [one for one in (office.folder / "repository of usb" / "packs").rglob("*") if one.is_file()]
    max(packs, key=lambda one: one.stat().st_size).unlink()
    dry = office.run("restore", "latest", "--target", open_folder / "new", "--dry-run", "--json")
    assert (dry.code, levels(dry)["backup"]) == (40, "blocking")
    assert office.run("restore", "latest", "--target", open_folder / "new").code == 40
    assert not (open_folder / "new").exists()
    refused = office.run("restore", "latest", "--in-place", "--delta", "--no-safety-backup", "--confirm", "office")
    assert refused.code == 40
    assert server.value("select n from numbered") == 1


def test_a_base_backup_of_another_program_is_looked_at_likewise(
    office: Installation, server: Server, open_folder: Path
) -> None:
    server.run("pg_basebackup", "-D", open_folder / "taken", "-Ft", "-c", "fast")
    words = ("restore", open_folder / "taken", "--target", open_folder / "new", "--cluster", "office")
    ready = office.run(*words, "--dry-run", "--json")
    assert ready.code == 0
    assert levels(ready) == {"programs": "ok", "version": "ok", "owner": "ok", "space": "ok"}
    use(office, binaries("17"))
    dry = office.run(*words, "--dry-run", "--json")
    assert (dry.code, levels(dry)["programs"]) == (0, "warning")
    starting = office.run(*words, "--start")
    assert starting.code == 26
    assert not (open_folder / "new").exists()


def test_a_dump_is_looked_at_likewise(office: Installation, server: Server, open_folder: Path) -> None:
    dump = open_folder / "a.dump"
    environment = {**os.environ, "PGDATABASE": server.dsn}
    subprocess.run([server.bin / "pg_dump", "-Fc", "-f", dump, "-d", server.dsn], check=True, env=environment)
    dry = office.run("restore", dump, "--into", "new", "--cluster", "office", "--dry-run", "--json")
    assert (dry.code, levels(dry)) == (0, {"programs": "ok", "space": "ok"})
