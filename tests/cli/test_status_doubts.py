"""Where ``datamanager status`` must not say that all is well although everything looks so at a glance."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time

import pytest

from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.model import JobRequest, Proof, Schedule, Trigger
from tests.cli.caller import Installation
from tests.cli.test_status import DAY, home_of, keys, looked, office, plan, protected, said, state_of

__all__ = ["office", "protected"]


def schedule_as(installation: Installation, recurrence: Recurrence) -> None:
    """The only schedule, made anew."""
    request = JobRequest("backup run", ("clinic",), "clinic", Trigger.SCHEDULE, heavy=True)
    now = datetime.now(UTC)
    with state_of(installation) as state:
        state.schedules.remove("clinic-nightly")
        state.schedules.put(
            Schedule("clinic-nightly", recurrence.to_json(), request, True, now, now, recurrence.after(now), None)
        )


@pytest.mark.parametrize(
    "recurrence",
    [
        pytest.param(Recurrence(Kind.ONCE, "UTC", date(2026, 1, 1), clock_time(1, 0)), id="a single run that is over"),
        pytest.param(Recurrence(Kind.ONCE, "UTC", date(2199, 1, 1), clock_time(1, 0)), id="a single run to come"),
        pytest.param(Recurrence(Kind.DAILY, "UTC", date(2199, 1, 1), clock_time(1, 0)), id="in a far future"),
    ],
)
def test_a_schedule_that_does_not_go_on_from_now_protects_nothing(
    protected: Installation, recurrence: Recurrence
) -> None:
    schedule_as(protected, recurrence)
    assert said(protected) == (1, "Not protected: no schedule backs up database server clinic by itself.")


def proof_of(installation: Installation, **changes: object) -> None:
    with state_of(installation) as state:
        last = state.proofs.last("clinic")
        assert last is not None
        state.proofs.add(replace(last, **changes))  # type: ignore[arg-type]


def test_a_test_restore_of_another_server_of_the_same_name_proves_nothing(office: Installation) -> None:
    office.ok("backup", "run", "clinic")
    shown = office.result("backup", "show", "latest")
    schedule = Recurrence(Kind.DAILY, "UTC", date(2026, 1, 1), clock_time(1, 0))
    request = JobRequest("backup run", ("clinic",), "clinic", Trigger.SCHEDULE, heavy=True)
    now = datetime.now(UTC)
    plan(office)
    with state_of(office) as state:
        state.schedules.put(
            Schedule("clinic-nightly", schedule.to_json(), request, True, now, now, schedule.after(now))
        )
        # Before the upgrade to a new major release, which makes a new cluster.
        state.proofs.add(
            Proof("20260101T000000Z-0a1b2c3d", "clinic", str(int(shown["system_identifier"]) - 1), now - DAY, now,
                  True, 90.0, 60.0)
        )  # fmt: skip
    assert "not-proven:clinic" in keys(office)
    assert said(office)[0] == 3


def test_that_an_older_backup_came_back_does_not_hide_that_the_newest_did_not(protected: Installation) -> None:
    newest = protected.result("backup", "show", "latest")["backup_id"]
    now, second = datetime.now(UTC), timedelta(seconds=1)
    proof_of(protected, backup=newest, passed=False, finding="an index is damaged", time=now)
    proof_of(protected, backup="20250101T000000Z-0a1b2c3d", passed=True, time=now + second)
    code, sentence = said(protected)
    assert (code, "test-failed:clinic" in keys(protected)) == (1, True), sentence
    proof_of(protected, backup=newest, passed=True, time=now + 2 * second)
    assert said(protected)[0] == 0


def test_a_backup_and_a_proof_from_the_future_are_not_taken_for_fresh(protected: Installation) -> None:
    plan(protected, -400 * DAY)
    with looked(protected, -400 * DAY) as look:
        verdict = look().verdict
    assert "clock:clinic" in [one.key for one in verdict.findings]
    assert verdict.word != "safe"


def test_a_backup_that_was_deleted_is_not_remembered_as_the_newest(protected: Installation) -> None:
    assert said(protected)[0] == 0  # and remembers what it saw
    newest = protected.result("backup", "show", "latest")["backup_id"]
    protected.ok("backup", "delete", newest, "--confirm", newest)
    assert said(protected)[0] == 1
    drive = protected.folder / "repository of usb"
    drive.rename(drive.with_name("pulled"))
    code, sentence = said(protected)
    assert code == 1, sentence


def test_a_planner_that_was_stopped_in_good_order_is_missed_although_the_last_run_was_good(
    protected: Installation,
) -> None:
    ran = datetime.now(UTC) - timedelta(hours=1)
    with state_of(protected) as state:
        state.schedules.dealt_with("clinic-nightly", ran, ran + DAY, 0)
    home_of(protected).planner_file.unlink()
    assert said(protected) == (
        1,
        "Not protected: scheduled backups do not run: the planner was not started on this computer.",
    )
