"""``wal start, stop, status, gaps, push`` as people, programs and PostgreSQL call them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.config.home import Home
from tests.cli.caller import Done, Installation
from tests.conftest import NewServer
from tests.servers import Server

LIMIT, STANDBYS = "max_slot_wal_keep_size", "synchronous_standby_names"


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


class Office:
    """A server, a repository, and a receiver in a process of its own."""

    def __init__(self, installation: Installation, server: Server) -> None:
        self.installation = installation
        self.server = server
        self.receivers: list[subprocess.Popen[str]] = []
        installation.init()
        installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")

    @property
    def files(self) -> WalFiles:
        return WalFiles.of(Home(self.installation.home, self.installation.home), "office")

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = self.installation.start("wal", "start", "office", *words)
        self.receivers.append(process)

        def caught_up() -> bool:
            if process.poll() is not None:
                out, errors = process.communicate()
                raise AssertionError(out + errors)
            beat = read_wal_beat(self.files.beat)
            return beat is not None and beat.process.pid == process.pid and beat.progress.caught_up

        wait_until(caught_up, 30, "the receiver has caught up")
        return process

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGINT) -> Done:
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
        return Done(process.returncode, out, errors)

    def archived(self) -> bool:
        """Whether all that the server has written is in the archive."""
        beat = read_wal_beat(self.files.beat)
        position = self.server.value("SELECT pg_current_wal_flush_lsn()")
        return beat is not None and beat.progress.sealed >= type(beat.progress.sealed).parse(position)

    def status(self) -> dict[str, Any]:
        (found,) = self.installation.result("wal", "status", "office")["archives"]
        return dict(found)

    def slots(self) -> list[str]:
        return [row[0] for row in self.server.sql("SELECT slot_name FROM pg_replication_slots")]

    def close(self) -> None:
        """Leave the server as it was."""
        for name in (STANDBYS, LIMIT):
            self.server.sql(f"ALTER SYSTEM RESET {name}")
        self.server.sql("SELECT pg_reload_conf()")
        for process in self.receivers:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for slot in self.slots():
            wait_until(lambda slot=slot: not self.in_use(slot), 20, "the server has noticed")  # type: ignore[misc]
            self.server.sql(f"SELECT pg_drop_replication_slot('{slot}')")
        self.server.sql("DROP TABLE IF EXISTS visits")

    def in_use(self, slot: str) -> bool:
        return bool(self.server.value(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"))


@pytest.fixture
def office(installation: Installation, server: Server) -> Iterator[Office]:
    made = Office(installation, server)
    yield made
    made.close()


@pytest.mark.decision(10)
def test_without_a_limit_for_slots_nothing_begins_and_with_yes_it_is_set_and_put_back_with_the_cluster(
    office: Office,
) -> None:
    refused = office.installation.run("wal", "start", "office")
    assert refused.code == 23
    assert LIMIT in refused.errors
    assert "--yes" in refused.errors
    assert office.slots() == []
    enabled = office.installation.result("wal", "start", "office", "--enable", "--yes")
    assert [one["name"] for one in enabled["settings_changed"]] == [LIMIT]
    assert office.server.value(f"SHOW {LIMIT}") != "-1"
    (slot,) = office.slots()
    assert slot.startswith("datamanager_office_")
    assert office.installation.ok("config", "get", "clusters.office.wal").out.strip() in ("true", "True")
    removed = office.installation.result("cluster", "remove", "office")
    assert removed["slots_dropped"] == [slot]
    assert office.slots() == []
    assert office.server.value(f"SHOW {LIMIT}") == "-1"
    assert not office.files.beat.exists()


def test_every_moment_since_the_backup_can_be_restored_and_status_says_so(office: Office) -> None:
    receiver = office.start("--yes", "--interval", "0.2")
    backup = office.installation.result("backup", "run", "office")["backup_id"]
    office.server.sql("CREATE TABLE visits (id int)")
    wait_until(office.archived, 20, "the table is archived")
    found = office.status()
    assert (found["running"], found["connected"], found["gaps"]) == (True, True, 0)
    (window,) = found["windows"]
    assert (window["timeline"], window["backup_id"], window["abandoned"]) == (1, backup, False)
    assert window["from"] < window["to"]
    assert found["newest_age_seconds"] < 5
    assert found["slot"]["active"]
    assert found["slot_limit_bytes"] > 0
    told = office.installation.ok("wal", "status").out
    assert "can be restored" in told
    assert "no WAL is missing" in office.installation.ok("wal", "gaps").out
    second = office.installation.run("wal", "start", "office")
    assert second.code == 12
    assert str(receiver.pid) in second.errors
    assert office.end(receiver).code == 0
    assert not office.status()["running"]


@pytest.mark.pg("15,18")
def test_commits_wait_for_the_archive_and_are_let_go_before_it_ends(office: Office) -> None:
    receiver = office.start("--yes", "--synchronous")
    named = "datamanager_office"
    wait_until(lambda: office.server.value(f"SHOW {STANDBYS}") == named, 10, "commits wait")
    office.server.sql("CREATE TABLE visits (id int)")
    wait_until(office.archived, 5, "it is archived, and that is said")
    assert office.status()["synchronous"]
    done = office.end(receiver)
    assert done.code == 0, done.errors
    assert office.server.value(f"SHOW {STANDBYS}") == ""
    office.server.sql("INSERT INTO visits VALUES (1)")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_commits_that_wait_for_a_killed_receiver_are_let_go_by_the_next_when_it_ends(office: Office) -> None:
    killed = office.start("--yes", "--synchronous")
    wait_until(lambda: office.server.value(f"SHOW {STANDBYS}") != "", 10, "commits wait")
    killed.kill()
    killed.wait()
    assert office.end(office.start()).code == 0
    assert office.server.value(f"SHOW {STANDBYS}") == ""


def test_commits_are_let_go_when_the_receiver_gives_up(office: Office) -> None:
    receiver = office.start("--yes", "--synchronous")
    wait_until(lambda: office.server.value(f"SHOW {STANDBYS}") != "", 10, "commits wait")
    # What it finds when it opens the repository again is of a later program.
    config = office.installation.folder / "repository of usb" / "config"
    before = config.read_bytes()
    config.write_bytes(before.replace(b'"format":1', b'"format":9'))
    office.server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    receiver.wait(30)
    config.write_bytes(before)
    assert receiver.returncode not in (0, None)
    assert office.server.value(f"SHOW {STANDBYS}") == ""


def test_stop_lets_commits_go_first_ends_the_receiver_and_drops_the_slot(office: Office) -> None:
    office.installation.ok("wal", "start", "office", "--enable", "--synchronous", "--yes")
    receiver = office.start()
    wait_until(lambda: office.server.value(f"SHOW {STANDBYS}") != "", 10, "commits wait")
    receiver.kill()
    receiver.wait()
    waiting = threading.Thread(target=office.server.sql, args=("CREATE TABLE visits (id int)",), daemon=True)
    waiting.start()
    wait_until(lambda: office.status()["commits_waiting"] == 1, 10, "a commit waits")
    said = office.installation.run("status").out
    assert "Needs you now: on database server office a commit waits for the WAL archive" in said
    stopped = office.installation.result("wal", "stop", "office", "--drop-slot")
    assert [one["name"] for one in stopped["settings_put_back"]] == [STANDBYS]
    waiting.join(10)
    assert not waiting.is_alive()
    assert stopped["was_enabled"]
    assert len(stopped["slots_dropped"]) == 1
    assert office.slots() == []
    assert office.installation.result("config", "get", "clusters.office.wal")["value"] is False


def test_gaps_are_named_with_what_cannot_be_reached_behind_them(office: Office) -> None:
    receiver = office.start("--yes", "--interval", "0.2")
    office.installation.ok("backup", "run", "office")
    office.server.sql("CREATE TABLE visits (id int)")
    wait_until(office.archived, 20, "the table is archived")
    office.end(receiver)
    (slot,) = office.slots()
    office.server.sql(f"SELECT pg_drop_replication_slot('{slot}')")
    for number in range(4):
        office.server.sql(f"INSERT INTO visits VALUES ({number})")
        office.server.sql("SELECT pg_switch_wal()")
    office.server.sql("CHECKPOINT")
    office.server.sql("CHECKPOINT")
    receiver = office.start("--interval", "0.2")
    wait_until(office.archived, 20, "what came behind it is archived")
    (gap,) = office.installation.result("wal", "gaps", "office")["gaps"]
    assert gap["bytes"] > 0
    assert gap["next_backup"] is None
    assert "datamanager backup run office" in office.installation.ok("wal", "gaps").out
    assert "gap" in office.installation.run("status").out
    behind = office.installation.result("backup", "run", "office")["backup_id"]
    (gap,) = office.installation.result("wal", "gaps", "office")["gaps"]
    assert gap["next_backup"] == behind
    assert "gap" not in office.installation.run("status").out
    office.end(receiver)


def test_another_server_at_the_same_address_is_not_archived_until_it_is_backed_up(
    office: Office, new_server: NewServer
) -> None:
    office.installation.ok("backup", "run", "office")
    other = new_server(config={LIMIT: "1GB"})
    office.installation.ok("cluster", "set", "office", f"conninfo={other.dsn}")
    refused = office.installation.process("wal", "start", "office")
    assert refused.code == 45, refused
    assert "datamanager backup run office" in refused.errors
    beat = read_wal_beat(office.files.beat)
    assert beat is not None
    assert (beat.ended, "so far" in beat.error) == (True, True)
    assert "so far" in office.installation.run("wal", "status", "office").out
    office.installation.ok("backup", "run", "office")
    office.end(office.start())


def test_a_dead_receiver_of_an_archive_that_is_to_run_is_said_at_once(office: Office) -> None:
    office.installation.ok("wal", "start", "office", "--enable", "--yes")
    receiver = office.start()
    assert "not archived" not in office.installation.run("status").out
    receiver.kill()
    receiver.wait()
    assert "The WAL of database server office is not archived now" in office.installation.run("status").out
    office.installation.ok("wal", "stop", "office")
    assert "not archived" not in office.installation.run("status").out
    assert len(office.slots()) == 1


def test_prune_gives_back_wal_from_before_the_oldest_backup_and_says_since_when_all_can_be_restored(
    office: Office,
) -> None:
    receiver = office.start("--yes", "--interval", "0.2")
    first = office.installation.result("backup", "run", "office")["backup_id"]
    for _ in range(3):
        office.server.sql("SELECT pg_switch_wal()")
        office.server.sql("CREATE TEMPORARY TABLE one (id int)")
    second = office.installation.result("backup", "run", "office")["backup_id"]
    wait_until(office.archived, 20, "all is archived")
    office.end(receiver)
    office.installation.ok("cluster", "set", "office", "wal_window=1h")
    before = office.installation.result("repo", "prune", "usb", "--dry-run")
    assert before["wal"][0]["lines"][0]["backup_id"] == first
    office.installation.ok("backup", "delete", first)
    planned = office.installation.result("repo", "prune", "usb", "--dry-run")
    assert planned["wal_bytes_freed"] > before["wal_bytes_freed"]
    (line,) = planned["wal"][0]["lines"]
    assert (line["backup_id"], line["whole"]) == (second, False)
    told = office.installation.ok("repo", "prune", "usb").out
    assert f"(backup {second}) stays restorable" in told
    assert office.installation.result("repo", "prune", "usb")["wal_bytes_freed"] == 0
    verified = office.installation.result("repo", "verify", "usb")
    assert verified["wal_stretches_read"] == verified["wal_stretches"] > 0


# -- push --------------------------------------------------------------------------------------------------------------
def test_push_stores_a_segment_once_and_never_other_bytes_or_another_servers(office: Office, tmp_path: Path) -> None:
    server, installation = office.server, office.installation
    server.sql("CREATE TABLE visits (id int)")
    full = server.value("SELECT pg_walfile_name(pg_switch_wal())")
    first = server.data_directory / "pg_wal" / full
    assert installation.result("wal", "push", first, "--cluster", "office")["bytes"] == first.stat().st_size
    assert installation.ok("wal", "push", first, "--cluster", "office").out == ""
    altered = tmp_path / first.name
    data = bytearray(first.read_bytes())
    data[5000] ^= 1
    altered.write_bytes(data)
    refused = installation.run("wal", "push", altered, "--cluster", "office")
    assert refused.code == 44
    data[5000] ^= 1
    data[24] ^= 1  # the system identifier
    altered.write_bytes(data)
    foreign = installation.run("wal", "push", altered, "--cluster", "office")
    assert (foreign.code, "was" in foreign.errors) == (45, True)
    assert installation.run("wal", "push", tmp_path / "nothing", "--cluster", "office").code in range(1, 126)
    assert installation.run("wal", "push", first, "--cluster", "nobody").code == 11
    (archive,) = installation.result("wal", "status", "office")["archives"]
    assert archive["newest"] is not None


_HEAVY = (
    "click", "numpy", "pydantic", "psycopg", "psutil", "sqlalchemy", "tomlkit", "platformdirs", "asyncio", "logging",
    "datamanager.repository.manifest", "datamanager.jobs.record", "datamanager.cli.command",
)  # fmt: skip


def test_a_push_loads_nothing_that_it_does_not_need(office: Office) -> None:
    server, installation = office.server, office.installation
    server.sql("CREATE TABLE visits (id int)")
    segment = server.data_directory / "pg_wal" / server.value("SELECT pg_walfile_name(pg_switch_wal())")
    program = (
        "import sys; from datamanager.cli.main import run; code = run(sys.argv[1:]);"
        f"print(code, [one for one in {_HEAVY} if one in sys.modules])"
    )
    words = [sys.executable, "-c", program, "wal", "push", str(segment), "--cluster", "office"]
    environment = {**os.environ, "DATAMANAGER_HOME": str(installation.home)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "0 []"
