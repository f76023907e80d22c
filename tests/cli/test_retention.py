"""Expiring, deleting, undeleting and pinning on the command line; and one rolling backup of a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.app import rolling
from datamanager.app.context import Context
from datamanager.base.errors import IntegrityError
from datamanager.base.events import Event, Warned
from datamanager.base.pipeline import StopToken
from datamanager.config.home import find_home
from datamanager.config.model import ClusterConfig
from datamanager.engine.backup.run import run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.repository.commit import next_in_line, publish
from datamanager.repository.format import meta_keys
from datamanager.repository.keys import SlotSecret
from datamanager.repository.lease import LeaseRecord
from datamanager.repository.manifest import ChecksumFailure, Manifest
from datamanager.repository.mark import DELETED, PROVEN, ROLLING
from datamanager.repository.repository import Repository
from datamanager.storage.registry import open_storage
from tests.cli.caller import HOME, Installation
from tests.conftest import NewServer
from tests.engine.synthetic_source import SyntheticCluster, SyntheticSource, make_cluster
from tests.repository.parts import SetClock, flip, keys
from tests.servers import Server

DAY = timedelta(days=1)


class Office:
    """A home with the cluster ``office`` and the repository ``usb``, filled with synthetic backups.

    Backups are made nightly at 1:00 UTC up to yesterday; the commands themselves run by the real clock.
    """

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.folder = installation.init()
        installation.ok("cluster", "add", "office", "host=nowhere", "--repo", "usb", "--no-check")
        self.clock = SetClock()
        key = SlotSecret.from_key_file((installation.home / "keys" / "usb.key").read_bytes())
        self.storage = open_storage(self.folder)
        self.repository = Repository.open(self.storage, key, self.clock)
        self.cluster = make_cluster(pages=8, tables=2)
        self.yesterday = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0) - DAY

    def back_up(self, days_ago: int, *, name: str = "nightly", cluster: SyntheticCluster | None = None) -> str:
        """A backup that was made at 1:00 so many days before yesterday; returns its id."""
        self.clock.set_wall(self.yesterday - days_ago * DAY)
        self.cluster = self.cluster.with_changed_pages(days_ago, 0.2)
        chosen = cluster or self.cluster
        with StopToken() as stop:
            options = BackupOptions("office", name)
            done = run_backup(self.repository, SyntheticSource(chosen), chosen.facts, options, stop, lambda event: None)
        return done.manifest.backup

    def damaged(self, backup: str) -> str:
        """A later backup with the same content that the server's damaged pages came with."""
        manifest = self.repository.manifest(backup)
        other = backup[:-8] + "dddddddd"
        line = next_in_line(self.repository.manifests(), self.repository)
        lease = self.repository.take_lease("backup")
        failures = [ChecksumFailure("base/1/2", [7])]
        publish(self.repository, lease, replace(manifest, backup=other, checksum_failures=failures, **line))
        lease.release()
        return other

    def ids(self, *words: str) -> list[str]:
        listed = self.installation.result("backup", "list", "--repo", "usb", *words)["backups"]
        return [one["backup_id"] for one in listed]


@pytest.fixture
def office(installation: Installation) -> Iterator[Office]:
    made = Office(installation)
    yield made
    made.storage.close()


@pytest.mark.requirement("N4")
def test_expire_shows_first_what_stays_why_and_what_is_lost_and_then_marks_it(office: Office) -> None:
    made = [office.back_up(days) for days in (4, 3, 2, 1, 0)]
    office.installation.ok("backup", "pin", made[0], "--note", "before the update")
    office.installation.ok("cluster", "set", "office", "keep_last=2")
    assert office.ids() == made  # a setting deletes nothing by itself

    dry = office.installation.run("expire", "office", "--dry-run")
    assert dry.code == 0
    shown = {line.split("  ")[2]: line for line in dry.out.splitlines() if line.startswith(("stays", "GOES"))}
    assert list(shown) == made
    assert shown[made[0]].endswith("pinned: before the update")
    assert "no rule keeps it; the state of " in shown[made[1]]
    assert "are the nearest that stay" in shown[made[1]]
    assert "newest backup; newest undamaged backup; one of the last 2" in shown[made[4]]
    assert "2 backups would go, 3 would stay" in dry.out
    assert office.ids() == made

    done = office.installation.result("expire", "office")
    assert done["expired"] == made[1:3]
    assert [one["keep"] for one in done["backups"]] == [True, False, False, True, True]
    lost = done["backups"][1]["lost"]
    assert lost["state"] == office.repository.manifest(made[1]).ended
    assert lost["earlier"] == office.repository.manifest(made[0]).ended
    assert office.ids() == [made[0], *made[3:]]
    again = office.installation.run("expire", "office")
    assert "office in usb: 0 backups went, 3 stay." in again.out
    assert not list(office.storage.list("leases/"))


def test_without_any_rule_everything_stays_and_an_option_rules_for_one_run(office: Office) -> None:
    made = [office.back_up(days) for days in (1, 0)]
    done = office.installation.ok("expire", "office")
    assert "No retention is set for office: all 2 backups in usb stay." in done.out
    office.installation.ok("cluster", "set", "office", "keep_daily=7", "keep_within=3w")
    assert office.installation.result("expire", "office", "--dry-run")["expired"] == []
    off = office.installation.result("expire", "office", "--keep-daily", "1", "--keep-within", "0", "--dry-run")
    assert [one["keep"] for one in off["backups"]] == [False, True]
    assert office.ids() == made
    refused = office.installation.run("expire", "office", "--keep-within", "soon")
    assert (refused.code, "14d" in refused.errors) == (2, True)
    refused = office.installation.run("cluster", "set", "office", "keep_within=soon")
    assert refused.code == 10
    unknown = office.installation.run("expire", "nowhere", "--keep-last", "1")
    assert (unknown.code, "holds no backup of 'nowhere'" in unknown.errors) == (11, True)


def test_clusters_of_one_name_but_another_system_identifier_are_judged_apart(office: Office) -> None:
    before = [office.back_up(days) for days in (5, 4)]
    again = replace(make_cluster(2, pages=8, tables=2), system_identifier=7999999999999999999)
    after = [office.back_up(days, cluster=again) for days in (1, 0)]
    done = office.installation.result("expire", "office", "--keep-last", "1")
    assert done["expired"] == [before[0], after[0]]
    assert office.ids() == [before[1], after[1]]


@pytest.mark.requirement("N4")
def test_nothing_expires_before_a_newer_backup_was_proven_once_there_are_test_restores(office: Office) -> None:
    made = [office.back_up(days) for days in (3, 2, 1, 0)]
    office.repository.put_mark(made[1], PROVEN)
    done = office.installation.result("expire", "office", "--keep-last", "1")
    assert done["expired"] == [made[0]]
    assert done["backups"][1]["reasons"] == ["newest proven backup"]
    assert done["backups"][2]["reasons"] == ["no newer backup is proven yet"]
    assert done["backups"][0]["lost"]["later"] == office.repository.manifest(made[1]).ended


def test_a_backup_with_a_mark_that_cannot_be_read_stays(office: Office) -> None:
    made = [office.back_up(days) for days in (1, 0)]
    office.installation.ok("backup", "pin", made[0])
    mark = next(key for key in keys(office.storage, "marks/") if made[0] in key)
    flip(office.storage, mark, 90)
    done = office.installation.run("expire", "office", "--keep-last", "1", "--json")
    assert done.code == 3
    assert done.last["expired"] == []
    assert "a mark of it cannot be read" in done.last["backups"][0]["reasons"][0]


def test_a_backup_whose_manifest_cannot_be_read_is_left_alone(office: Office) -> None:
    made = [office.back_up(days) for days in (2, 1, 0)]
    for folder in ("manifests", "manifests-b"):
        flip(office.storage, f"{folder}/{made[0]}", 90)
    done = office.installation.run("expire", "office", "--keep-last", "1", "--json")
    assert (done.code, done.last["expired"]) == (3, [made[1]])
    assert any("was left alone" in text for text in done.last["warnings"])


def test_two_that_expire_at_once_do_not_both_go_on(office: Office) -> None:
    office.back_up(0)
    lease = office.repository.take_lease("expire")
    refused = office.installation.run("expire", "office", "--keep-last", "1")
    lease.release()
    assert (refused.code, "another one" in refused.errors) == (12, True)


def test_delete_refuses_pinned_backups_and_the_last_good_one_unless_told_clearly(office: Office) -> None:
    run = office.installation.run
    old, good = office.back_up(2), office.back_up(1)
    bad = office.damaged(good)
    office.installation.ok("backup", "pin", old, "--note", "audit")
    refused = run("backup", "delete", old)
    assert (refused.code, "is pinned (audit)" in refused.errors) == (2, True)
    assert f"backup unpin {old}" in refused.errors
    dry = office.installation.result("backup", "delete", old, "--force", "--dry-run")
    assert (dry["deleted"], [one["backup_id"] for one in dry["losses"]]) == ([], [old])
    assert office.installation.result("backup", "delete", old, "--force")["deleted"] == [old]

    refused = run("backup", "delete", good)
    assert (refused.code, "last undamaged backup of its cluster" in refused.errors) == (2, True)
    assert run("backup", "delete", good, bad, "--confirm", bad).code == 2
    assert run("backup", "delete", "latest").code == 2
    assert run("backup", "delete", "nonsense").code == 11
    assert office.ids() == [good, bad]
    told = office.installation.ok("backup", "delete", good[-8:], "--confirm", good)
    assert "the state of " in told.out
    assert "datamanager repo prune usb" in told.out
    assert office.ids() == [bad]
    refused = run("backup", "delete", bad)
    assert (refused.code, "last backup of its cluster" in refused.errors) == (2, True)


def test_list_shows_pins_and_on_request_what_was_deleted(office: Office) -> None:
    made = [office.back_up(days) for days in (1, 0)]
    office.installation.ok("backup", "pin", "latest", "--cluster", "office", "--note", "kept for Dr. Özdemir")
    office.installation.ok("backup", "delete", made[0])
    listed = office.installation.ok("backup", "list").out
    assert ": kept for Dr. Özdemir" in listed
    assert made[0] not in listed
    assert office.ids("--deleted") == made
    assert f"{made[0]}\n    deleted " in office.installation.ok("backup", "list", "--deleted").out
    shown = office.installation.result("backup", "show", made[1])
    assert (shown["pinned"], shown["pin_note"], shown["deleted"]) == (True, "kept for Dr. Özdemir", None)
    office.installation.ok("backup", "unpin", made[1])
    assert office.installation.result("backup", "show", made[1])["pinned"] is False


def test_undelete_brings_a_backup_back_and_says_when_it_is_too_late(office: Office) -> None:
    run = office.installation.run
    made = [office.back_up(days) for days in (1, 0)]
    office.installation.ok("backup", "delete", made[0])
    assert office.ids() == [made[1]]
    assert office.installation.result("backup", "undelete", made[0][-8:])["backup_id"] == made[0]
    assert office.ids() == made
    refused = run("backup", "undelete", made[0])
    assert (refused.code, "backup list --deleted" in refused.errors) == (11, True)

    office.installation.ok("backup", "delete", made[0])
    own = _own_packs(office.repository, made)
    office.storage.delete(own[0])
    office.storage.barrier()
    late = run("backup", "undelete", made[0])
    assert (late.code, f"too late for {made[0]}" in late.errors) == (40, True)
    assert "It stays deleted" in late.errors
    assert office.ids() == [made[1]]
    assert not list(office.storage.list("leases/"))


def _own_packs(repository: Repository, made: list[str]) -> list[str]:
    """First copies of metadata packs that only the first backup has."""
    needed = []
    for backup in made:
        spans = [span for layer in repository.manifest(backup).layers for span in layer.spans]
        needed.append({meta_keys(bytes.fromhex(pack))[0] for pack, _, _ in spans})
    return sorted(needed[0] - needed[1])


@contextlib.contextmanager
def _context(office: Office, heard: list[Event]) -> Iterator[Context]:
    with StopToken() as stop:
        home = find_home({HOME: str(office.installation.home)})
        yield Context(home, office.clock, stop, heard.append)


def _replace_older(office: Office, manifest: Manifest, heard: list[Event] | None = None, **config: int) -> list[str]:
    cluster = ClusterConfig(conninfo="", **config)  # type: ignore[arg-type]
    with _context(office, [] if heard is None else heard) as context:
        return rolling.replace_older(context, office.repository, manifest, cluster, threads=1)


def test_a_rolling_backup_that_does_not_read_back_replaces_nothing(office: Office) -> None:
    made = [office.back_up(days, name="copy") for days in (1, 0)]
    packs = [{pack for pack, _ in office.repository.contents(office.repository.manifest(one)).packs} for one in made]
    new = next(key for key in keys(office.storage, "packs/") if bytes.fromhex(key[-32:]) in packs[1] - packs[0])
    flip(office.storage, new, 200)
    with pytest.raises(IntegrityError, match=f"{made[1]} does not read back") as caught:
        _replace_older(office, office.repository.manifest(made[1]))
    assert "older ones of this name stay" in caught.value.hint
    assert sorted(office.repository.backup_ids()) == sorted(made)
    assert {mark.name for mark in office.repository.marks()}.isdisjoint({ROLLING, DELETED})


def test_a_rolling_backup_replaces_only_older_ones_of_its_name_and_never_pinned_ones(office: Office) -> None:
    other = office.back_up(5, name="nightly")
    pinned, old = office.back_up(4, name="copy"), office.back_up(3, name="copy")
    office.installation.ok("backup", "pin", pinned)
    new = office.repository.manifest(office.back_up(2, name="copy"))
    heard: list[Event] = []
    assert _replace_older(office, new, heard) == [old]
    assert office.ids() == [other, pinned, new.backup]
    assert not [event for event in heard if isinstance(event, Warned)]
    # The history keeps its slots: the rolling backup takes none, and is not expired by one.
    assert office.installation.result("expire", "office", "--keep-last", "1")["expired"] == []
    newest = office.repository.manifest(office.back_up(1, name="copy"))
    assert _replace_older(office, newest, heard, keep_minimum=2) == []
    assert [event for event in heard if isinstance(event, Warned) and "one of the newest 2" in event.message]
    assert office.installation.result("expire", "office")["expired"] == [new.backup]


@pytest.mark.requirement("R43")
def test_a_rolling_backup_is_verified_before_the_one_before_it_goes(
    installation: Installation, new_server: NewServer
) -> None:
    server: Server = new_server()
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    kept = installation.result("backup", "run", "clinic", "--name", "other")
    words = ("backup", "run", "clinic", "--name", "last night", "--rolling")
    first = installation.result(*words)
    assert first["replaced"] == []
    server.sql("CREATE TABLE later AS SELECT 1 AS one")
    done = installation.run(*words)
    assert done.code == 0, done
    assert f"It was verified and replaces {first['backup_id']}." in done.out
    listed = installation.result("backup", "list", "--deleted")["backups"]
    new, replaced = listed[2], listed[1]
    assert [one["backup_id"] for one in listed][:2] == [kept["backup_id"], first["backup_id"]]
    verified = next(mark for mark in new["marks"] if mark["name"] == "verified")
    assert replaced["deleted"] >= verified["time"]
    assert (kept["name"], listed[0]["deleted"], new["deleted"]) == ("other", None, None)
    refused = installation.run("backup", "run", "clinic", "--rolling", "--append-date")
    assert (refused.code, "contradict each other" in refused.errors) == (2, True)


def test_a_backup_that_a_running_one_builds_on_may_expire_and_stays_leased(office: Office) -> None:
    made = [office.back_up(days) for days in (1, 0)]
    lease = office.repository.take_lease("backup", "7301234567890123456")
    lease.renew([made[0]])
    try:
        assert office.installation.result("expire", "office", "--keep-last", "1")["expired"] == [made[0]]
        held: LeaseRecord = office.repository.lease_record(next(iter(office.storage.list("leases/"))).key)
        assert held.parents == [made[0]]
    finally:
        lease.release()
    assert Path(office.folder / "manifests" / made[0]).is_file()
