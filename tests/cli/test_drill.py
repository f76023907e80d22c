"""Test restores on the command line: the result, the marks, what a kill leaves, cancelling, what the machine lacks."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datamanager.app import drills
from datamanager.app.context import Context
from datamanager.base.clock import SystemClock
from datamanager.base.events import Event, Warned
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.drills.workplace import read_record
from datamanager.postgres.account import service_account
from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.drills.conftest import processes_below
from tests.drills.test_damage import PATIENTS, with_stale_index_page
from tests.servers import Server, binaries, hand_over, make_folder, remove_folder

PROOF = {
    "backup", "cluster", "system_identifier", "backup_time", "time", "passed", "seconds", "restore_seconds", "checks",
    "finding", "source", "host", "job",
}  # fmt: skip


@pytest.fixture
def office(new_server: NewServer, pg_version: str) -> Iterator[tuple[Installation, Server]]:
    """The cluster ``office`` with patients and a repository, no backup yet."""
    folder = make_folder("cli")
    try:
        server = new_server(config={"autovacuum": "off"})
        server.script(PATIENTS)
        installation = Installation(folder)
        installation.init()
        installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
        installation.ok("config", "set", "clusters.office.install_path", str(binaries(pg_version)))
        yield installation, server
    finally:
        remove_folder(folder)


def back_up(installation: Installation) -> str:
    return str(installation.result("backup", "run", "office")["backup_id"])


def records(installation: Installation) -> list[Path]:
    return sorted((installation.home / "drills").glob("*"))


def marks(installation: Installation, backup: str) -> list[str]:
    return [one["name"] for one in installation.result("backup", "show", backup)["marks"]]


def test_a_backup_that_passes_is_marked_as_proven_and_listed(office: tuple[Installation, Server]) -> None:
    installation, server = office
    backup = back_up(installation)
    assert installation.result("drill", "list")["drills"] == []
    found = installation.result("drill", "run")
    assert set(found) >= PROOF
    assert (found["backup"], found["cluster"], found["source"]) == (backup, "office", "usb")
    assert (found["passed"], found["finding"], found["kept"]) == (True, "", None)
    assert (found["checks"]["tables"], found["checks"]["rows"]) == (2, 7000)
    assert 0 < found["restore_seconds"] < found["seconds"]
    assert marks(installation, backup) == ["proven"]
    assert records(installation) == []
    (listed,) = installation.result("drill", "list")["drills"]
    assert {name: listed[name] for name in PROOF - {"job"}} == {name: found[name] for name in PROOF - {"job"}}
    # What the repository remembers is enough where the history was lost.
    for file in installation.home.glob("state.sqlite*"):
        file.unlink()
    (listed,) = installation.result("drill", "list")["drills"]
    assert (listed["backup"], listed["passed"], listed["seconds"]) == (backup, True, None)
    assert "2 tables, 7,000 rows read; back in" in listed["note"]
    assert installation.result("drill", "show", backup[-8:])["backup"] == backup
    told = installation.ok("drill", "run", backup[:16]).out
    assert f"Backup {backup} of office passed its test restore. A server answered after " in told
    assert "Indexes and tables (amcheck): passed." in told
    assert marks(installation, backup) == ["proven"]  # the newer one alone
    assert server.running


def test_damage_ends_with_61_and_names_database_table_and_index(office: tuple[Installation, Server]) -> None:
    installation, server = office
    good = back_up(installation)
    assert installation.result("drill", "run", good)["passed"]
    with_stale_index_page(server)
    bad = back_up(installation)
    done = installation.run("drill", "run", "--json")
    assert done.code == 61
    error = done.last
    assert (error["backup"], error["passed"]) == (bad, False)
    assert error["message"].startswith(
        f"test backup {bad}: in the database postgres the index office.patients_by_name of the table office.patients "
        "is damaged: "
    )
    assert error["checks"]["findings"] == [error["finding"]]
    assert "REINDEX INDEX office.patients_by_name" in error["hint"]
    assert marks(installation, bad) == ["disproven"]
    shown = installation.run("drill", "show", bad)
    assert "FOUND: in the database postgres the index office.patients_by_name" in shown.out
    assert [one["passed"] for one in installation.result("drill", "list")["drills"]] == [False, True]


@pytest.mark.requirement("N4", missing="that a deletion shows its cost")
def test_nothing_expires_until_a_newer_backup_was_proven_by_a_test_restore(
    office: tuple[Installation, Server],
) -> None:
    installation, server = office
    first, second = back_up(installation), back_up(installation)
    assert installation.result("expire", "office", "--keep-last", "1", "--dry-run")["expired"] == []
    installation.ok("drill", "run", first)
    server.sql("insert into office.patients values (9000, 'new')")
    third = back_up(installation)
    done = installation.result("expire", "office", "--keep-last", "1")
    assert done["expired"] == []  # no backup after the first was tested
    reasons = {one["backup_id"]: one["reasons"] for one in done["backups"]}
    assert "newest proven backup" in reasons[first]
    assert "no newer backup is proven yet" in reasons[second]
    installation.ok("drill", "run", third)
    assert installation.result("expire", "office", "--keep-last", "1")["expired"] == [first, second]


def kill_at(installation: Installation, phase: str) -> Path:
    """Start a test restore and kill it, and nothing else, at a phase; returns the folder that it leaves."""
    assert installation.killed_at(phase, "drill", "run")
    (record,) = records(installation)
    return Path(read_record(record).folder)


def test_what_a_killed_test_restore_leaves_is_removed_by_the_next_one_and_no_other_server_is_touched(
    office: tuple[Installation, Server],
) -> None:
    installation, server = office
    backup = back_up(installation)
    began = server.value("select pg_postmaster_start_time()")
    for phase in ("restoring", "starting the server", "reading every table", "checking the indexes"):
        folder = kill_at(installation, phase)
        assert folder.is_dir()
        if phase == "reading every table":
            assert processes_below(folder) != []
        if phase == "checking the indexes":
            assert installation.result("drill", "run", backup)["passed"]  # the next one clears up
        else:
            assert sweep(installation) == [folder]
        assert not folder.exists()
        assert processes_below(folder) == []
        assert records(installation) == []
        assert server.value("select pg_postmaster_start_time()") == began


def sweep(installation: Installation) -> list[Path]:
    """What serve does at its start; it has nothing to complain of."""

    def listener(event: Event) -> None:
        assert not isinstance(event, Warned), event

    with StopToken() as stop:
        return drills.sweep(Context(Home(installation.home, installation.home), SystemClock(), stop, listener))


@pytest.mark.requirement("R47", missing="that services stopped by us run again, and the status; this is a test restore")
def test_a_cancelled_test_restore_is_gone_within_ten_seconds(office: tuple[Installation, Server]) -> None:
    installation, server = office
    server.sql("create table office.large as select n, md5(n::text) as a from generate_series(1, 300000) n")
    server.sql("create index on office.large (a)")
    back_up(installation)
    for phase in ("restoring", "reading every table of postgres", "checking the indexes of postgres"):
        process = installation.start("drill", "run", "--json")
        folder = wait_for(process, phase, installation)
        assert sweep(installation) == []  # another one leaves it alone
        asked = time.monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert not folder.exists()
        assert processes_below(folder) == []
        assert records(installation) == []
        assert time.monotonic() - asked < 10  # requirement R47


def wait_for(process: subprocess.Popen[str], phase: str, installation: Installation) -> Path:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("phase", "").startswith(phase):
            break
    (record,) = records(installation)
    return Path(read_record(record).folder)


def test_pg_amcheck_that_is_not_installed_is_said_and_the_rows_are_counted(
    office: tuple[Installation, Server], pg_version: str
) -> None:
    installation, _ = office
    back_up(installation)
    programs = installation.folder / "programs"
    programs.mkdir()
    for one in binaries(pg_version).iterdir():
        if one.name != "pg_amcheck":
            (programs / one.name).symlink_to(one)
    installation.ok("config", "set", "clusters.office.install_path", str(programs))
    done = installation.run("drill", "run", "--json")
    assert done.code == 3
    assert done.last["passed"] is True
    assert done.last["checks"]["rows"] == 7000
    assert done.last["checks"]["amcheck"].startswith("not run: pg_amcheck is not in ")
    assert "no index was held against its table: pg_amcheck is not in" in done.last["warnings"][0]


def test_an_extension_that_cannot_be_installed_is_said_and_the_rows_are_counted(
    office: tuple[Installation, Server], pg_version: str
) -> None:
    installation, _ = office
    back_up(installation)
    whole = installation.folder / "postgresql"
    shutil.copytree(binaries(pg_version).parent, whole, symlinks=True)
    (control,) = whole.glob("share/**/extension/amcheck.control")
    control.unlink()
    hand_over(whole)
    installation.ok("config", "set", "clusters.office.install_path", str(whole))
    done = installation.run("drill", "run", "--json")
    assert (done.code, done.last["passed"]) == (3, True)
    assert done.last["checks"]["amcheck"].startswith("not run in 3 of 3 databases, as postgres: extension")
    assert done.last["checks"]["visibility_maps"] == "passed"
    assert "the extension amcheck cannot be installed" in done.last["warnings"][0]


def test_the_restored_copy_is_left_where_it_was_asked_for(office: tuple[Installation, Server]) -> None:
    installation, _ = office
    back_up(installation)
    scratch = installation.folder / "scratch"
    scratch.mkdir()
    hand_over(scratch)
    found = installation.result("drill", "run", "--scratch", scratch, "--keep", "--no-amcheck")
    assert found["checks"]["amcheck"] == "not asked for"
    assert Path(found["kept"]).parent == scratch
    assert (Path(found["kept"]) / "data" / "PG_VERSION").is_file()
    assert processes_below(scratch) == []
    assert records(installation) == []


@pytest.mark.root
def test_a_folder_that_the_servers_account_may_not_enter_is_refused(
    office: tuple[Installation, Server], tmp_path: Path
) -> None:
    installation, _ = office
    back_up(installation)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = installation.run("drill", "run", "--scratch", closed)
    assert done.code == 50
    assert "may not enter" in done.errors
    assert list(closed.iterdir()) == []
    assert records(installation) == []


@pytest.mark.root
def test_the_homes_own_scratch_folder_is_opened_for_the_servers_account_alone_as_far_as_needed(
    office: tuple[Installation, Server],
) -> None:
    installation, _ = office
    folder = installation.folder
    home = Home(folder / "configuration", folder / "state")
    for one in (home.config, home.state):
        one.mkdir(mode=0o700)
    account = service_account()
    assert drills.scratch_folder(home, None, account) == home.scratch
    assert account.can_reach(home.scratch)
    assert [one.stat().st_mode & 0o777 for one in (home.config, home.state, home.scratch)] == [0o700, 0o711, 0o711]


@pytest.mark.requirement("R4", missing='that the status stays "Not yet proven" until then')
def test_a_second_computer_proves_a_backup_with_nothing_but_the_drive_and_the_recovery_code(
    office: tuple[Installation, Server], pg_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation, _ = office
    backup = back_up(installation)
    folder = make_folder("other")
    try:
        other = Installation(folder)
        code = other.secret_file("code.txt", installation.recovery_code())
        monkeypatch.setenv("PATH", str(binaries(pg_version)), prepend=":")
        found = other.result(
            "drill", "run", "--from", installation.folder / "repository of usb", "--recovery-code-file", code
        )
        assert (found["backup"], found["passed"]) == (backup, True)
    finally:
        remove_folder(folder)


def peak_mib(installation: Installation) -> float:
    """The most memory that a test restore's own process held once its server was begun."""
    process = installation.start("drill", "run", "--json")
    assert process.stdout is not None
    watched, peak, begun, ended = psutil.Process(process.pid), [0.0], threading.Event(), threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            with contextlib.suppress(psutil.Error):
                peak[0] = max(peak[0], watched.memory_info().rss / (1 << 20) if begun.is_set() else 0.0)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    for line in process.stdout:
        if json.loads(line).get("phase", "").startswith("starting the server"):
            begun.set()
    ended.set()
    looker.join()
    process.communicate()
    assert process.returncode == 0
    return peak[0]


@pytest.mark.slow
def test_memory_does_not_follow_the_size_of_the_database(office: tuple[Installation, Server]) -> None:
    installation, server = office
    back_up(installation)
    small = peak_mib(installation)
    server.sql("create table large as select n, repeat(md5(n::text), 8) b from generate_series(1, 2000000) n")
    server.sql("create index on large (b)")
    server.script("".join(f"create table many_{n} (n int primary key, t text);" for n in range(3000)))
    back_up(installation)
    large = peak_mib(installation)
    assert small > 0
    assert large < small + 25
