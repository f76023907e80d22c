"""What `status` says of restores in place that were cut off, and of replication slots that nobody reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from datamanager.app.verdict import judge
from datamanager.app.verdict_facts import LeftSlot, RestoreFact, WalFacts
from datamanager.state.finding import Severity
from tests.app.test_verdict import LAST_NIGHT, NOW, situation, with_clinic

HOUR = timedelta(hours=1)
GIB = 1 << 30


def test_a_restore_that_was_cut_off_needs_someone_now() -> None:
    found = judge(with_clinic(restore=RestoreFact(NOW - HOUR)))
    worst = found.findings[0]
    assert worst.severity is Severity.URGENT
    assert "was cut off and is not finished." in worst.sentence
    assert worst.command == "datamanager restore complete clinic"
    assert found.exit_code == 1
    tried = RestoreFact(NOW - HOUR, error="no data are there", command="datamanager restore x --delta")
    worst = judge(with_clinic(restore=tried)).findings[0]
    assert worst.sentence.endswith("is not finished: no data are there.")
    assert worst.command == "datamanager restore x --delta"


def test_a_restored_cluster_is_at_risk_until_a_backup_of_it_was_begun() -> None:
    found = judge(with_clinic(restore=RestoreFact(NOW - HOUR, owes_backup=True)))
    assert found.exit_code == 3
    assert found.findings[0].command == "datamanager backup run clinic"
    assert judge(with_clinic(restore=RestoreFact(LAST_NIGHT - HOUR, owes_backup=True))).exit_code == 0


@pytest.mark.parametrize(
    ("wanted", "command"),
    [(True, "datamanager backup run clinic"), (False, "datamanager wal stop clinic --drop-slot")],
)
def test_a_slot_that_nobody_reads_is_a_note(wanted: bool, command: str) -> None:
    found = judge(with_clinic(slots_left=[LeftSlot("datamanager_clinic_0a1b2c3d", 3 * GIB, wanted)]))
    assert found.exit_code == 0
    (told,) = [one for one in found.findings if one.kind == "wal-left"]
    assert "keeps 3.0 GiB of WAL in slot datamanager_clinic_0a1b2c3d" in told.sentence
    assert told.command == command


def test_the_slots_of_a_cluster_that_is_configured_no_more_are_named() -> None:
    found = judge(
        replace(situation(*(with_clinic().clusters or ())), forgotten_slots={"front": ["datamanager_front_1"]})
    )
    (told,) = [one for one in found.findings if one.kind == "wal-left"]
    assert "SELECT pg_drop_replication_slot('datamanager_front_1');" in told.sentence
    assert found.exit_code == 0


def test_an_archive_whose_objects_are_gone_is_a_risk() -> None:
    wal = WalFacts(running=True, connected=True, newest=NOW, behind=False, lost="0/5000000 and is now empty")
    found = judge(with_clinic(wal=wal))
    assert found.exit_code == 3
    (told,) = [one for one in found.findings if one.kind == "wal-lost"]
    assert "had reached 0/5000000 and is now empty" in told.sentence
