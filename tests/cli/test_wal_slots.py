"""Replication slots of archives that went elsewhere or ended, and archives whose objects are gone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_wal import Office, office, wait_until

__all__ = ["office"]
pytestmark = pytest.mark.pg("18")


def findings(office: Office, kind: str) -> list[dict[str, Any]]:
    found = json.loads(office.installation.run("status", "--json").out.splitlines()[-1])["findings"]
    return [one for one in found if one["key"].startswith(f"{kind}:")]


def test_the_slot_of_a_former_repository_goes_once_the_new_one_takes_its_place(office: Office) -> None:
    run = office.installation
    office.end(office.start("--yes", "--interval", "0.2"))
    (former,) = office.slots()
    run.init("second")
    run.ok("cluster", "set", "office", "repository=second")
    office.start("--interval", "0.2")
    (new,) = set(office.slots()) - {former}
    (left,) = office.status()["slots_left"]
    assert left["name"] == former
    (told,) = findings(office, "wal-left")
    assert former in told["sentence"]
    assert told["command"] == "datamanager backup run office"
    run.ok("backup", "run", "office")
    wait_until(lambda: office.slots() == [new], 40, "the former slot is dropped")
    assert office.status()["slots_left"] == []
    assert findings(office, "wal-left") == []
    assert "replication slot dropped" in run.ok("audit", "list").out


@pytest.mark.slow
def test_a_receiver_that_goes_elsewhere_for_once_leaves_the_slot_of_the_archive_alone(office: Office) -> None:
    run = office.installation
    office.end(office.start("--yes", "--interval", "0.2"))
    (own,) = office.slots()
    run.init("second")
    office.start("--repo", "second", "--interval", "0.2")
    run.ok("backup", "run", "office", "--repo", "second")
    with pytest.raises(AssertionError, match="the slot is gone"):
        wait_until(lambda: own not in office.slots(), 13, "the slot is gone")


def test_a_slot_that_stays_behind_an_archive_is_named_with_what_drops_it(office: Office) -> None:
    run = office.installation
    run.ok("wal", "start", "office", "--enable", "--yes")
    (slot,) = office.slots()
    run.ok("cluster", "set", "office", "wal=false")
    (told,) = findings(office, "wal-left")
    assert slot in told["sentence"]
    assert told["command"] == "datamanager wal stop office --drop-slot"
    assert told["command"] in run.ok("wal", "status", "office").out
    config = run.home / "config.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[clusters.office]", "[clusters.elsewhere]"), encoding="utf-8")
    (told,) = findings(office, "wal-left")
    assert f"SELECT pg_drop_replication_slot('{slot}');" in told["sentence"]
    assert "datamanager cluster add office" in told["command"]
    config.write_text(text, encoding="utf-8")
    run.ok("wal", "stop", "office", "--drop-slot")
    assert office.slots() == []
    assert findings(office, "wal-left") == []


def test_an_archive_whose_objects_are_gone_is_told_by_all_who_look(office: Office, tmp_path: Path) -> None:
    run = office.installation
    office.end(office.start("--yes", "--interval", "0.2"))
    run.ok("backup", "run", "office")
    receiver = office.start("--interval", "0.2")
    office.server.sql("CREATE TABLE visits (id int)")
    wait_until(office.archived, 20, "the table is archived")
    office.end(receiver, signal.SIGTERM)
    assert office.status()["lost"] is None
    folder = next((run.folder / "repository of usb" / "wal").iterdir())
    for line in folder.iterdir():
        if line.name != "lines":
            shutil.rmtree(line)
    wait_until(lambda: bool(office.status()["lost"]), 20, "what was listed is old enough")
    assert str(office.status()["lost"]).endswith("is now empty")
    assert "had reached" in run.ok("wal", "status", "office").out
    run.ok("config", "set", "clusters.office.wal", "true")
    (told,) = findings(office, "wal-lost")
    assert "what was there is gone" in told["sentence"]
    assert told["command"] == "datamanager backup run office"
    again = office.start("--interval", "0.2")
    done = office.end(again)
    assert "the archive had reached" in done.out
    assert "is now empty: what was there is gone" in done.out
