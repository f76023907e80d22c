"""Schedules handed to systemd, the Windows Task Scheduler and cron: what they say is read back and played through."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import UsageError
from datamanager.schedule import native
from datamanager.schedule.native import Caller, Exported, NativeFile, System
from datamanager.schedule.planner import Run, due_now, resumed
from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths
from tests.schedule.parts import DAY, recurrence, recurrences, schedule, utc
from tests.schedule.task_schema import SPACE, problems

BEGIN, END = utc(2027, 1, 1), utc(2028, 1, 2)
PROGRAM = ("/opt/Data Manager/bin/python", "-P", "-m", "datamanager")
HOME = Path("/srv/Dr. Müller's 100% office")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def caller(zone: str = "Europe/Berlin", account: str = "") -> Caller:
    return Caller(PROGRAM, HOME, zone, account)


def exported(one: Recurrence, system: System, zone: str | None = None) -> Exported:
    return native.export("nightly", one, system, caller(zone or one.zone), BEGIN)


def played(one: Recurrence, calls: Iterable[datetime]) -> list[tuple[datetime, timedelta]]:
    """What `schedule run --if-due` runs when it is called at these moments: the planned moment, and how late."""
    now, found = resumed(schedule(one), BEGIN), []
    for moment in sorted(calls):
        if now.next_due is None or moment < now.next_due:
            continue  # it does nothing then; test_planner.py shows that
        decision = due_now(now, moment)
        if decision is None:
            continue
        if isinstance(decision, Run):
            found.append((decision.due, moment - decision.due))
        now = replace(now, last_due=decision.last_due, next_due=decision.next_due)
    return found


def check_played(one: Recurrence, calls: Iterable[datetime]) -> None:
    """Every planned moment of the year runs, once, on the minute."""
    planned = list(one.between(BEGIN, END))
    assert played(one, calls) == [(due, timedelta(0)) for due in planned]


# -- cron --


def cron_calls(line: str, zone: str) -> Iterator[datetime]:
    """When cron calls within the year: at each minute of which the clocks there show what the five fields say."""
    minutes, hours, days, months, weekdays = (field(text) for text in line.split()[:5])
    restricted = [text != "*" for text in (line.split()[2], line.split()[4])]
    day, place = (BEGIN - DAY).date(), ZoneInfo(zone)
    while day <= (END + DAY).date():
        by_month, by_week = day.day in days, day.isoweekday() % 7 in weekdays
        # crontab(5): when both are restricted, either will do.
        if day.month in months and (by_month or by_week if all(restricted) else by_month and by_week):
            for hour in sorted(hours & {*range(24)}):
                for minute in sorted(minutes & {*range(60)}):
                    for moment in showing(datetime.combine(day, time(hour, minute)), place):
                        if BEGIN <= moment <= END:
                            yield moment
        day += DAY


def field(text: str) -> set[int]:
    """One field of a crontab: ``*``, ``5``, ``1-5``, ``*/15``, and lists of them. Source: crontab(5)."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\*|\d+(?:-\d+)?)(?:/(\d+))?", part)
        assert match is not None, text
        first, _, last = (match[1] if match[1] != "*" else "0-59").partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(match[2] or 1)))
    return found


def showing(naive: datetime, place: ZoneInfo) -> list[datetime]:
    """Every moment at which clocks there show that: none in a gap, two in the hour that comes twice."""
    moments = {naive.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(moment for moment in moments if moment.astimezone(place).replace(tzinfo=None) == naive)


def cron_lines(found: Exported) -> list[str]:
    return [line for line in found.files[0].text.splitlines() if not line.startswith("#")]


@given(recurrences(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_cron_line_read_back_runs_what_is_planned_over_a_year(one: Recurrence, foreign: bool) -> None:
    zone = "Asia/Kathmandu" if foreign else one.zone
    if one.after(BEGIN) is None:
        return
    found = exported(one, System.CRON, zone)
    check_played(one, (moment for line in cron_lines(found) for moment in cron_calls(line, zone)))


def test_cron_is_given_plain_lines_where_it_can_say_it() -> None:
    assert native.cron_times(recurrence(), "Europe/Berlin", []) == (["0 1 * * *"], [])
    sunday = recurrence(Kind.WEEKLY, weekdays=(0, 6))
    assert native.cron_times(sunday, "Europe/Berlin", []) == (["0 1 * * 1,0"], [])
    assert native.cron_times(recurrence(Kind.MONTHLY, day=15, months=(3,)), "Europe/Berlin", [])[0] == ["0 1 15 3 *"]


@pytest.mark.parametrize("system", list(System))
def test_what_a_system_cannot_say_is_said_in_a_warning(system: System) -> None:
    fortnight = recurrence(Kind.WEEKLY, every=2, weekdays=(0, 3))
    assert any("does nothing when no run is due" in text for text in exported(fortnight, system).warnings)
    gap = recurrence(at="02:30")
    assert any("clocks change" in text for text in exported(gap, system).warnings)
    plain = {*exported(recurrence(), system).warnings}
    assert not any("no run is due" in text or "clocks change" in text for text in plain)


def test_a_percent_sign_and_blanks_reach_the_command_of_cron_whole() -> None:
    line = cron_lines(exported(recurrence(), System.CRON))[0]
    command = line.split(maxsplit=5)[5]
    assert re.search(r"(?<!\\)%", command) is None
    words = shlex.split(command.replace("\\%", "%"))
    assert words == ["env", f"DATAMANAGER_HOME={HOME}", *PROGRAM, "schedule", "run", "nightly", "--if-due"]


# -- systemd --


def timer_of(found: Exported) -> NativeFile:
    return next(file for file in found.files if file.name.endswith(".timer"))


def systemd_calls(calendars: Iterable[str]) -> Iterator[datetime]:
    """When systemd itself says that it calls within the year."""
    for calendar in calendars:
        days = (END - BEGIN).days + 2
        count = days * (24 if " UTC" in calendar else 1)
        done = subprocess.run(
            [
                *("systemd-analyze", "calendar", f"--iterations={count}"),
                *("--base-time=2026-12-31 23:59:59 UTC", calendar),
            ],
            capture_output=True,
            text=True,
            check=True,
            env={"TZ": "UTC", "LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            timeout=60,
        )
        for found in re.findall(r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w{3} ([\d-]+ [\d:]+) UTC", done.stdout):
            moment = datetime.fromisoformat(found).replace(tzinfo=UTC)
            if BEGIN <= moment <= END:
                yield moment


SITUATIONS = [
    recurrence(),
    recurrence(at="02:30"),
    recurrence(at="00:00", zone="America/Santiago"),
    recurrence(at="02:15", zone="Australia/Lord_Howe"),
    recurrence(at="01:30", zone="America/New_York"),
    recurrence(every=3, start=date(2026, 12, 30)),
    recurrence(Kind.WEEKLY, "23:30", every=2, weekdays=(0, 3), start=date(2026, 12, 10)),
    recurrence(Kind.MONTHLY, day=31),
    recurrence(Kind.MONTHLY, day=30),
    recurrence(Kind.MONTHLY, day=29, months=(2, 5)),
    recurrence(Kind.MONTHLY, day=31, short_months=ShortMonths.SKIP),
    recurrence(Kind.MONTHLY, day=LAST, months=(2, 11)),
    recurrence(Kind.MONTHLY, nth=LAST, weekdays=(4,), months=(3, 9)),
    recurrence(Kind.MONTHLY, nth=2, weekdays=(1,)),
    recurrence(Kind.ONCE, start=date(2027, 3, 28), at="02:30"),
    recurrence(Kind.HOURLY, "00:15", every=6),
    recurrence(Kind.HOURLY, "00:15", every=5),
    recurrence(Kind.HOURLY, "00:15", zone="Asia/Kolkata"),
]


@needs_systemd
@pytest.mark.parametrize("one", SITUATIONS, ids=lambda one: re.sub(r"\W+", "-", str(one.to_json()))[:80])
def test_systemd_itself_calls_at_every_planned_moment_of_a_year(one: Recurrence) -> None:
    text = timer_of(exported(one, System.SYSTEMD)).text
    check_played(one, systemd_calls(re.findall(r"^OnCalendar=(.*)$", text, re.MULTILINE)))


@pytest.mark.slow
@needs_systemd
@given(recurrences())
@settings(max_examples=400, deadline=None)
@pytest.mark.timeout(1200)
def test_systemd_itself_calls_at_every_planned_moment_whatever_is_planned(one: Recurrence) -> None:
    if one.after(BEGIN) is not None:
        calendars = re.findall(r"^OnCalendar=(.*)$", timer_of(exported(one, System.SYSTEMD)).text, re.MULTILINE)
        check_played(one, systemd_calls(calendars))


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """The program is one that exists; home and name need quoting."""
    made = Caller((shutil.which("env") or "/usr/bin/env", "a $b 100%"), HOME, "Europe/Berlin", "root")
    for file in native.export("nightly", recurrence(at="02:30"), System.SYSTEMD, made, BEGIN).files:
        (tmp_path / file.name).write_bytes(file.data)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    mine = [line for line in done.stderr.splitlines() if "datamanager" in line]
    assert (done.returncode, mine) == (0, [])


# -- Windows --


def windows(one: Recurrence, zone: str | None = None, account: str = "OFFICE\\backup") -> NativeFile:
    return native.export("nightly", one, System.WINDOWS, caller(zone or one.zone, account), BEGIN).files[0]


@given(recurrences(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_windows_task_follows_the_schema(one: Recurrence, foreign: bool) -> None:
    if one.after(BEGIN) is not None:
        assert problems(windows(one, "Asia/Kathmandu" if foreign else None).data) == []


def test_the_checker_of_the_schema_finds_what_is_wrong() -> None:
    good = windows(recurrence()).data.decode("utf-16")
    enabled, start = "<Enabled>true</Enabled>\r\n      ", "<StartBoundary>2027-01-02T01:00:00</StartBoundary>\r\n      "
    for wrong in (
        good.replace(enabled + start, start + enabled),
        good.replace("<DaysInterval>1<", "<DaysInterval>often<"),
        good.replace("<Actions Context", "<Action Context").replace("</Actions>", "</Action>"),
        good.replace(start, ""),
        good.replace("IgnoreNew", "Ignore"),
        good.replace('id="Author"', 'id="Writer"'),
        good.replace("<Priority>5</Priority>", "<Priority>5</Priority><Priority>5</Priority>"),
        good.replace("<ScheduleByDay>", "<ScheduleByDay><Months />"),
    ):
        assert wrong != good
        assert problems(wrong.encode("utf-16")) != []
    assert problems(good.replace("UTF-16", "UTF-8").encode()) != []


def windows_calls(file: NativeFile, zone: str) -> Iterator[datetime]:
    """When the Task Scheduler would call within the year, by what the schema's documentation says of each element."""
    place = ZoneInfo(zone)
    for trigger in ElementTree.fromstring(file.data).iterfind(f".//{SPACE}Triggers/*"):
        start = datetime.fromisoformat(trigger.findtext(f"{SPACE}StartBoundary") or "")
        interval = trigger.findtext(f"{SPACE}Repetition/{SPACE}Interval")
        if trigger.tag == f"{SPACE}TimeTrigger":
            step = {"H": timedelta(hours=1), "M": timedelta(minutes=1)}
            by = int(interval[2:-1]) * step[interval[-1]] if interval else END - BEGIN
            moment = start
            while moment <= END:
                yield moment
                moment += by
            continue
        day = start.date()
        while day <= END.date():
            if on_day(trigger[-1], day, (day - start.date()).days):
                yield from (one for one in showing(datetime.combine(day, start.time()), place) if one <= END)
            day += DAY


def on_day(schedule: ElementTree.Element, day: date, passed: int) -> bool:
    names = {child.tag.removeprefix(SPACE) for child in schedule.iterfind(f"./{SPACE}DaysOfWeek/*")}
    months = {child.tag.removeprefix(SPACE) for child in schedule.iterfind(f"./{SPACE}Months/*")}
    last = (day + DAY).day == 1
    match schedule.tag.removeprefix(SPACE):
        case "ScheduleByDay":
            return passed % int(schedule.findtext(f"{SPACE}DaysInterval") or "1") == 0
        case "ScheduleByWeek":
            return f"{day:%A}" in names
        case "ScheduleByMonth":
            days = {child.text for child in schedule.iterfind(f"./{SPACE}DaysOfMonth/*")}
            return f"{day:%B}" in months and (str(day.day) in days or (last and "Last" in days))
    weeks = {child.text for child in schedule.iterfind(f"./{SPACE}Weeks/*")}
    in_last = (day + 7 * DAY).month != day.month
    return (
        f"{day:%B}" in months
        and f"{day:%A}" in names
        and (str((day.day - 1) // 7 + 1) in weeks or (in_last and "Last" in weeks))
    )


@given(recurrences(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_windows_task_read_back_runs_what_is_planned_over_a_year(one: Recurrence, foreign: bool) -> None:
    zone = "Asia/Kathmandu" if foreign else one.zone
    if one.after(BEGIN) is not None:
        check_played(one, windows_calls(windows(one, zone), zone))


def test_a_windows_task_runs_as_the_account_with_the_words_of_the_command() -> None:
    task = ElementTree.fromstring(windows(recurrence()).data)
    assert task.findtext(f".//{SPACE}UserId") == "OFFICE\\backup"
    assert task.findtext(f".//{SPACE}Command") == PROGRAM[0]
    assert task.findtext(f".//{SPACE}Arguments") == "-P -m datamanager schedule run nightly --if-due"


def test_what_never_runs_again_is_not_exported() -> None:
    with pytest.raises(UsageError):
        exported(recurrence(Kind.ONCE, start=date(2026, 1, 1)), System.CRON)
