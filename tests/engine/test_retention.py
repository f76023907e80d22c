"""Which backups stay: situations in ``retention/*.json``, each readable by a person, and what holds for every one.

A situation has ``backups``, oldest first: either a list of ``{"id", "started", ...}`` whose ``stays`` are the reasons
expected and whose ``goes`` those for which it goes, or a series ``{"from", "to", "every_hours"}``, of which ``kept``
names those that stay, by the time they started. A sequence is the place in the list unless it is given.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import UsageError
from datamanager.config.durations import parse_duration
from datamanager.engine.retention import Candidate, Decision, Policy, losses, plan_expiry

SITUATIONS = sorted((Path(__file__).parent / "retention").glob("*.json"))
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TAKES = timedelta(minutes=3)


def policy_of(keys: dict[str, Any]) -> Policy:
    """A policy as config.toml spells it."""
    values = {name.removeprefix("keep_"): value for name, value in keys.items()}
    if "wal_window" in values:
        values["window"] = values.pop("wal_window")
    for name in {"within", "window"} & values.keys():
        values[name] = parse_duration(values[name])
    return Policy(**values)


def candidates(backups: list[dict[str, Any]] | dict[str, Any]) -> list[Candidate]:
    if isinstance(backups, dict):
        every = timedelta(hours=backups["every_hours"])
        moment, end = (datetime.fromisoformat(backups[key]) for key in ("from", "to"))
        count = (end - moment) // every + 1
        listed = [{"id": f"{moment + place * every:%Y-%m-%dT%H:%MZ}"} for place in range(count)]
        return candidates([{**one, "started": one["id"]} for one in listed])
    found = []
    for place, one in enumerate(backups, start=1):
        started = datetime.fromisoformat(one["started"])
        options = {key: one[key] for key in ("damaged", "pin", "rolling") if key in one}
        sequence, name = one.get("sequence", place), one.get("name", "office")
        found.append(Candidate(one["id"], sequence, name, started, started + TAKES, **options))
    return found


def decide(situation: dict[str, Any]) -> list[Decision]:
    now, zone = datetime.fromisoformat(situation["now"]), ZoneInfo(situation["zone"])
    backups, policy = candidates(situation["backups"]), policy_of(situation["policy"])
    return plan_expiry(backups, policy, now, zone, situation.get("proven"))


@pytest.mark.parametrize("path", SITUATIONS, ids=lambda path: path.stem)
def test_a_situation_is_decided_as_its_file_says(path: Path) -> None:
    situation = json.loads(path.read_text(encoding="utf-8"))
    decisions = decide(situation)
    if "kept" in situation:
        assert {one.backup.backup: one.reasons for one in decisions if one.keep} == situation["kept"]
        return
    zone = ZoneInfo(situation["zone"])
    expected = {one["id"]: one for one in situation["backups"]}
    assert len(decisions) == len(expected)
    for decision in decisions:
        said = expected[decision.backup.backup]
        assert (decision.keep, decision.reasons) == ("stays" in said, said.get("stays") or said.get("goes")), said
        if "lost" in said:
            assert decision.lost is not None
            assert decision.lost.sentence(zone) == said["lost"]


def test_there_are_situations_enough_and_each_is_described() -> None:
    assert len(SITUATIONS) >= 12
    for path in SITUATIONS:
        assert json.loads(path.read_text(encoding="utf-8"))["situation"].endswith("."), path.name


def test_nothing_is_decided_about_nothing() -> None:
    assert plan_expiry([], Policy(last=1), NOW) == []


def test_a_minimum_of_none_is_refused() -> None:
    with pytest.raises(UsageError, match="minimum is below 1"):
        plan_expiry([], Policy(minimum=0), NOW)


def test_without_a_zone_days_begin_when_they_do_on_this_computer() -> None:
    backups = candidates({"from": "2026-03-20T00:30Z", "to": "2026-04-05T00:30Z", "every_hours": 1})
    own = [one.started.astimezone().date() for one in backups]
    decisions = plan_expiry(backups, Policy(daily=40), NOW)
    assert sum(one.keep for one in decisions) == len(set(own))


def test_a_window_of_wal_keeps_the_backup_that_the_archive_begins_with() -> None:
    backups = candidates({"from": "2026-10-01T01:00Z", "to": "2026-11-23T01:00Z", "every_hours": 24})
    decisions = plan_expiry(backups, Policy(last=1, window=timedelta(days=14)), NOW)
    assert kept(decisions) == {"2026-11-09T01:00Z", "2026-11-23T01:00Z"}


def test_what_is_lost_when_any_backups_go_is_told_with_the_nearest_that_stay() -> None:
    backups = candidates([{"id": name, "started": f"2026-11-0{day}T01:00Z"} for day, name in enumerate("abc", start=1)])
    lost = losses(backups, {"a", "c"})
    assert (
        lost["a"].sentence(UTC)
        == "the state of 2026-11-01 01:03 UTC is lost; nothing before 2026-11-02 01:03 UTC stays"
    )
    assert (
        lost["c"].sentence(UTC) == "the state of 2026-11-03 01:03 UTC is lost; 2026-11-02 01:03 UTC becomes the newest"
    )
    every = losses(backups, {"a", "b", "c"})
    assert every["b"].sentence(UTC) == "the state of 2026-11-02 01:03 UTC is lost; nothing stays"


# -- what holds for every policy and every history --------------------------------------------------------------------
MOMENTS = st.one_of(
    st.integers(-90 * 24, 48).map(lambda hours: NOW + timedelta(hours=hours)),
    st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30)).map(lambda naive: naive.replace(tzinfo=UTC)),
)
COUNTS = st.none() | st.integers(0, 9)
SPANS = st.none() | st.integers(1, 400).map(lambda hours: timedelta(hours=hours))
POLICIES = st.builds(
    Policy, COUNTS, SPANS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.integers(1, 4), SPANS
)  # fmt: skip
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for place in range(draw(st.integers(1, 25))):
        started = draw(MOMENTS)
        found.append(
            Candidate(
                f"b{place}",
                draw(st.integers(1, 20)),
                draw(st.sampled_from(["office", "before update"])),
                started,
                started + TAKES,
                draw(st.integers(0, 3)) == 0,
                draw(st.sampled_from([None] * 5 + ["", "kept"])),
                draw(st.integers(0, 4)) == 0,
            )
        )
    return found


PROVEN = st.none() | st.sets(st.integers(0, 24).map(lambda place: f"b{place}"))


def kept(decisions: list[Decision]) -> set[str]:
    return {one.backup.backup for one in decisions if one.keep}


def more(policy: Policy, by: list[int]) -> Policy:
    """The policy with as much or more in every field."""
    counts = (policy.last, policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly)
    last, hourly, daily, weekly, monthly, yearly = (
        (count or 0) + add or None for count, add in zip(counts, by, strict=False)
    )
    within = (policy.within or timedelta()) + timedelta(hours=by[6]) or None
    return Policy(last, within, hourly, daily, weekly, monthly, yearly, policy.minimum + by[7], policy.window)


@given(histories(), POLICIES, ZONES, PROVEN, st.lists(st.integers(0, 5), min_size=8, max_size=8))
@settings(max_examples=150)
def test_a_policy_that_keeps_more_keeps_all_that_one_that_keeps_less_does(
    backups: list[Candidate], policy: Policy, zone: str, proven: set[str] | None, by: list[int]
) -> None:
    bigger = more(policy, by)
    if policy.keeps_everything and not bigger.keeps_everything:
        return  # no rule at all is the biggest policy
    less = kept(plan_expiry(backups, policy, NOW, ZoneInfo(zone), proven))
    assert less <= kept(plan_expiry(backups, bigger, NOW, ZoneInfo(zone), proven))


@given(histories(), POLICIES, ZONES, PROVEN)
@settings(max_examples=150)
def test_what_must_never_go_stays(backups: list[Candidate], policy: Policy, zone: str, proven: set[str] | None) -> None:
    decisions = plan_expiry(backups, policy, NOW, ZoneInfo(zone), proven)
    stays = kept(decisions)
    ordered = [one.backup for one in decisions]
    assert [one.sequence for one in ordered] == sorted(one.sequence for one in backups)
    assert ordered[-1].backup in stays
    assert {one.backup for one in backups if one.pin is not None} <= stays
    whole = [one.backup for one in ordered if not one.damaged]
    assert set(whole[-policy.minimum :]) <= stays
    assert all(one.reasons for one in decisions)
    assert all((one.lost is None) == one.keep for one in decisions)
    shown = [one.backup for one in ordered if one.backup in (proven or ())]
    assert set(shown[-1:]) <= stays


@given(histories(), POLICIES, ZONES, PROVEN)
@settings(max_examples=150)
def test_applying_a_plan_again_changes_nothing_more(
    backups: list[Candidate], policy: Policy, zone: str, proven: set[str] | None
) -> None:
    first = plan_expiry(backups, policy, NOW, ZoneInfo(zone), proven)
    left = [one.backup for one in first if one.keep]
    second = plan_expiry(left, policy, NOW, ZoneInfo(zone), proven)
    assert kept(second) == kept(first)


@given(histories(), POLICIES, ZONES)
def test_nothing_goes_before_a_newer_backup_was_proven_but_what_a_rolling_one_replaces(
    backups: list[Candidate], policy: Policy, zone: str
) -> None:
    for decision in plan_expiry(backups, policy, NOW, ZoneInfo(zone), proven=set()):
        assert decision.keep or decision.reasons[0].startswith("replaced by the rolling backup")
