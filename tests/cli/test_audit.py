"""The audit log: what stands in it, that tampering is noticed, that it never holds a secret."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.caller import PASSPHRASE, Installation
from tests.servers import Server


def entries(installation: Installation) -> list[dict[str, Any]]:
    """Oldest first."""
    found: list[dict[str, Any]] = installation.result("audit", "list", "--limit", "1000")["entries"]
    return found[::-1]


def newest(installation: Installation) -> dict[str, Any]:
    return entries(installation)[-1]


@pytest.fixture
def office(installation: Installation) -> Installation:
    """A repository, and a cluster whose server nobody asked."""
    installation.init()
    installation.ok("cluster", "add", "clinic", "host=nowhere.invalid user=backup", "--repo", "usb", "--no-check")
    return installation


@contextlib.contextmanager
def database(installation: Installation) -> Iterator[sqlite3.Connection]:
    """The real file, as anybody with sqlite3 opens it."""
    with contextlib.closing(sqlite3.connect(installation.home / "state.sqlite")) as connection, connection:
        yield connection


def test_a_change_stands_in_the_log_with_who_when_from_where_before_and_after(office: Installation) -> None:
    office.ok("config", "set", "clusters.clinic.compress_level", "9")
    entry = newest(office)
    assert (entry["action"], entry["target"]) == ("option changed", "clusters.clinic.compress_level")
    assert (entry["before"], entry["after"]) == (1, 9)
    assert entry["origin"] == f"cli on {socket.gethostname()}"
    assert entry["who"]
    assert entry["time"].endswith("+00:00")
    office.ok("cluster", "set", "clinic", "compress_level=3", "keep_daily=7")
    entry = newest(office)
    assert (entry["action"], entry["before"], entry["after"]) == (
        "cluster changed",
        {"compress_level": 9, "keep_daily": None},
        {"compress_level": 3, "keep_daily": 7},
    )
    office.ok("cluster", "remove", "clinic")
    assert newest(office)["before"]["conninfo"] == "host=nowhere.invalid user=backup"
    assert [one["action"] for one in entries(office)] == [
        "repository made", "cluster added", "option changed", "cluster changed", "cluster removed",
    ]  # fmt: skip
    assert "option changed: clusters.clinic.compress_level" in office.run("audit", "list").out


def test_what_services_are_described_by_stands_in_the_log(office: Installation) -> None:
    words = ("--stop", "/bin/true", "--start", "/bin/true", "--state", "/bin/true")
    office.ok("services", "add", "exchange", *words)
    entry = newest(office)
    assert (entry["action"], entry["target"], entry["before"]) == ("service described", "exchange", None)
    assert entry["after"]["stop"] == "/bin/true"
    office.ok("services", "remove", "exchange")
    entry = newest(office)
    assert (entry["action"], entry["target"], entry["after"]) == ("service forgotten", "exchange", None)
    assert entry["before"]["start"] == "/bin/true"


def test_what_is_refused_does_not_stand_in_the_log(office: Installation) -> None:
    before = entries(office)
    assert office.run("config", "set", "clusters.clinic.compress_level", "77").code == 10
    assert office.run("cluster", "add", "clinic", "host=other", "--no-check").code == 2
    assert entries(office) == before


@pytest.mark.requirement("R11")
def test_an_override_stands_in_the_log_with_its_reason(office: Installation) -> None:
    reason = "the hoster copies the drive every night"
    done = office.result("audit", "decline", "one-place:clinic", "--reason", reason)
    assert done["declined"] is True
    declined = newest(office)
    office.ok("audit", "decline", "one-place:clinic", "--take-back")
    assert newest(office)["action"] == "recommendation taken back"
    assert newest(office)["before"]["reason"] == reason
    made = office.folder / "open to all"
    office.ok("repo", "init", "open", made, "--no-encryption", "--reason", "lies in a safe", "--no-wheels")
    assert (newest(office)["action"], newest(office)["reason"]) == ("repository made", "lies in a safe")
    assert (declined["action"], declined["target"], declined["reason"]) == (
        "recommendation declined",
        "one-place:clinic",
        reason,
    )  # requirement R11


def test_only_a_recommendation_can_be_declined_and_only_with_a_reason(office: Installation) -> None:
    for words in (
        ("no-schedule:clinic", "--reason", "we know"),
        ("one-place:clinic",),
        ("one-place:clinic", "--reason", "   "),
        ("one-place:clinic", "--reason", "x" * 501),
        ("one-place", "--reason", "x"),
        ("one-place:clinic", "--take-back"),
        ("one-place:clinic", "--take-back", "--reason", "x"),
    ):
        assert office.run("audit", "decline", *words).code == 2, words
    assert office.run("audit", "decline", "one-place:nobody", "--reason", "x").code == 11
    assert "recommendation declined" not in [one["action"] for one in entries(office)]


def test_changes_of_backups_keys_and_expiry_stand_in_the_log(
    installation: Installation, server: Server, tmp_path: Path
) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    first = installation.result("backup", "run", "clinic")["backup_id"]
    second = installation.result("backup", "run", "clinic")["backup_id"]
    before = len(entries(installation))
    installation.ok("backup", "pin", second, "--note", "before the update")
    installation.ok("backup", "unpin", second)
    installation.ok("backup", "delete", first, "--dry-run")
    installation.ok("backup", "delete", first)
    installation.ok("backup", "undelete", first)
    installation.ok("expire", "clinic", "--keep-last", "1", "--dry-run")
    installation.ok("expire", "clinic", "--keep-last", "1")
    installation.ok("repo", "prune", "usb", "--dry-run")
    installation.ok("repo", "prune", "usb")
    added = installation.result("repo", "key", "add", "usb", "--new-key-file", tmp_path / "second.key")
    installation.ok("repo", "key", "remove", "usb", added["id"])
    found = entries(installation)[before:]
    assert [one["action"] for one in found] == [
        "backup pinned", "backup unpinned", "backups deleted", "backup undeleted", "backups expired",
        "repository pruned", "key added", "key removed",
    ]  # fmt: skip
    assert (found[0]["target"], found[0]["reason"]) == (f"{second} in usb", "before the update")
    assert found[2]["after"]["deleted"] == found[4]["after"]["deleted"] == [first]
    assert found[6]["after"]["key"] == found[7]["before"]["key"] == added["id"]


def test_no_entry_holds_a_secret(office: Installation, tmp_path: Path) -> None:
    code = office.recovery_code()
    password = office.secret_file("pw.txt", "correct horse battery staple\n")
    office.ok("cluster", "set", "clinic", f"password_file={password}")
    another = office.secret_file("other.txt", "another long passphrase\n")
    office.ok("repo", "key", "add", "usb", "--new-passphrase-file", another, "--label", "vault")
    office.ok("repo", "kit", "usb", "--kit-file", tmp_path / "kit2.txt")
    office.ok("repo", "key", "add", "usb", "--new-key-file", tmp_path / "more.key")
    assert office.run("cluster", "set", "clinic", "conninfo=host=x password=hunter2hunter2").code == 10
    texts = {"codes": (tmp_path / "kit2.txt").read_text(encoding="utf-8")}
    codes = {code, *re.findall(r"\b(?:[0-9A-Z]{4}[- ]){3,}[0-9A-Z]{4}\b", texts["codes"])}
    key_files = [*(office.home / "keys").iterdir(), tmp_path / "more.key"]
    secrets = {PASSPHRASE, "correct horse battery staple", "another long passphrase", "hunter2hunter2", *codes}
    secrets |= {line for file in key_files for line in file.read_text("latin-1").splitlines() if len(line) > 30}
    assert len(secrets) > 6
    stored = b"".join(file.read_bytes() for file in office.home.glob("state.sqlite*"))
    shown = office.run("audit", "list", "--limit", "1000").out + office.run("audit", "list", "--json").out
    for secret in secrets:
        for form in {secret, secret.replace("-", ""), secret.replace("-", " ")}:
            assert form not in shown
            assert form.encode() not in stored


TAMPERED = {
    "a reason is changed": ("UPDATE audit SET reason = 'nothing' WHERE number = 2", 2),
    "a person is changed": ("UPDATE audit SET who = 'somebody else' WHERE number = 1", 1),
    "a time is changed": ("UPDATE audit SET time = (SELECT time FROM audit WHERE number = 1) WHERE number = 3", 3),
    "an entry is removed": ("DELETE FROM audit WHERE number = 2", 2),
    "the last entry is removed": ("DELETE FROM audit WHERE number = 4", 4),
    "two entries change places": ("UPDATE audit SET number = 7 - number WHERE number IN (3, 4)", 3),
    "a digest is changed": ("UPDATE audit SET digest = lower(hex(randomblob(32))) WHERE number = 3", 3),
}


@pytest.fixture
def with_entries(office: Installation) -> Installation:
    """Four entries that were verified."""
    for level in ("5", "6"):
        office.ok("config", "set", "clusters.clinic.compress_level", level)
    assert office.result("audit", "verify")["entries"] == 4
    return office


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_with_the_file_is_noticed_and_the_entry_named(with_entries: Installation, how: str) -> None:
    statement, number = TAMPERED[how]
    with database(with_entries) as connection:
        for one in ("PRAGMA ignore_check_constraints = on",):
            connection.execute(one)
        if "7 - number" in statement:
            connection.execute("UPDATE audit SET number = number + 100 WHERE number IN (3, 4)")
            statement = "UPDATE audit SET number = 107 - number WHERE number IN (103, 104)"
        assert connection.execute(statement).rowcount
    done = with_entries.run("audit", "verify")
    assert done.code == 40
    assert f"entry {number}:" in done.errors


def test_a_log_that_was_written_anew_is_noticed_by_the_head_that_was_noted(
    with_entries: Installation, tmp_path: Path
) -> None:
    noted = with_entries.result("audit", "verify")
    note = f"{noted['entries']}:{noted['head']}"
    with_entries.ok("config", "set", "clusters.clinic.compress_level", "7")
    assert with_entries.result("audit", "verify", "--noted", note)["entries"] == 5
    for file in with_entries.home.glob("state.sqlite*"):
        file.unlink()
    for level in ("5", "6", "5", "6", "5"):
        with_entries.ok("config", "set", "clusters.clinic.compress_level", level)
    assert with_entries.run("audit", "verify").code == 0
    done = with_entries.run("audit", "verify", "--noted", note)
    assert (done.code, "entry 4 is not the one that was noted" in done.errors) == (40, True)
    assert with_entries.run("audit", "verify", "--noted", "4").code == 2


def test_a_log_that_cannot_be_written_is_a_warning_and_the_change_is_made(office: Installation) -> None:
    state = office.home / "state.sqlite"
    for file in office.home.glob("state.sqlite*"):
        file.unlink()
    state.mkdir()
    done = office.run("config", "set", "clusters.clinic.compress_level", "4")
    assert done.code == 3
    assert "warning: this does not stand in the audit log" in done.out
    shutil.rmtree(state)
    assert office.result("config", "get", "clusters.clinic.compress_level")["value"] == 4


def test_a_job_says_which_one_it_is(office: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAMANAGER_JOB", "20261123T204512Z-3f9a1c")
    office.ok("audit", "decline", "machine-off:clinic", "--reason", "it is a laptop")
    assert newest(office)["origin"] == f"job 20261123T204512Z-3f9a1c on {socket.gethostname()}"
