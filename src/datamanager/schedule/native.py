"""A schedule as the operating system's own scheduler takes it: systemd timer, Windows task, cron line (R82).

Each calls ``datamanager schedule run NAME --if-due``. That guard runs the job only when a planned moment has come that
was not dealt with, whoever did it. So a system may call more often than planned: where it cannot say every 2 weeks or
the last Friday, where its own idea of a time that a change of clocks leaves out differs from ours (a further call at
the end of the gap), and where it knows no other zone than its own (a call every quarter of an hour). A warning says so.

Source: systemd.time(7) Calendar Events, systemd.timer(5); MicrosoftDocs, Task Scheduler Schema 1.2; crontab(5).
"""

from __future__ import annotations

import enum
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

from datamanager.base.errors import UsageError
from datamanager.schedule import words
from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths, gap_ends, moment_of
from datamanager.system.units import quoted

_TASK_SPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# So many years of clock changes are looked at, from the export on; after that it should be exported again.
GAP_YEARS = 10
_QUARTER = 15  # minutes; every zone of today is a multiple of it away from UTC


class System(enum.StrEnum):
    SYSTEMD = "systemd"
    WINDOWS = "windows"
    CRON = "cron"


@dataclass(frozen=True, slots=True)
class Caller:
    """How a computer calls this program.

    Args:
        program: absolute, such as ``("/opt/venv/bin/python", "-m", "datamanager")``.
        home: DATAMANAGER_HOME; None leaves it to the program to find its home.
        zone: the computer's own, IANA.
        account: who runs it; empty is whoever installs it.
    """

    program: tuple[str, ...]
    home: Path | None
    zone: str
    account: str = ""


@dataclass(frozen=True, slots=True)
class NativeFile:
    """Args: name - a file name without a folder; data - its bytes, in the encoding that the system wants."""

    name: str
    data: bytes

    @property
    def text(self) -> str:
        encoding = "utf-16" if self.data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
        return self.data.decode(encoding).replace("\r\n", "\n")


@dataclass(frozen=True, slots=True)
class Exported:
    """Args: steps - what to do with the files, a command each; warnings - what the system cannot say itself."""

    files: tuple[NativeFile, ...]
    steps: tuple[str, ...]
    warnings: tuple[str, ...]


def export(name: str, recurrence: Recurrence, system: System, caller: Caller, now: datetime) -> Exported:
    """The files for one schedule. Raises: UsageError, when it never runs again."""
    following = recurrence.after(now)
    if following is None:
        raise UsageError(f"export schedule: {name} has no further run", hint="Give it new times first.")
    years = range(now.year, now.year + GAP_YEARS)
    ends = [] if recurrence.kind is Kind.HOURLY else gap_ends(recurrence.zone, recurrence.at, years)
    if system is System.SYSTEMD:
        return _systemd(name, recurrence, caller, ends)
    if system is System.WINDOWS:
        return _windows(name, recurrence, caller, ends, following)
    return _cron(name, recurrence, caller, ends, following)


def _command(caller: Caller, name: str) -> tuple[str, ...]:
    return (*caller.program, "schedule", "run", name, "--if-due")


def _calls_too_often(system: str, often: str) -> str:
    return f"{system} cannot say this itself: it calls {often}, and the command does nothing when no run is due."


def _gap_warning(ends: Sequence[time]) -> str:
    at = " and ".join(words.clock_time(end) for end in ends)
    return f"On days when the clocks change this runs at {at}; it calls then every day, and does nothing on the others."


def _foreign(recurrence: Recurrence, system: str) -> str:
    return (
        f"{system} knows this computer's zone only, and these times are those of {recurrence.zone}: it calls every "
        f"{_QUARTER} minutes, and the command does nothing when no run is due."
    )


# -- systemd --


def _systemd(name: str, one: Recurrence, caller: Caller, ends: Sequence[time]) -> Exported:
    calendars, warnings = systemd_calendars(one, ends)
    unit = f"datamanager-{name}"
    home = [] if caller.home is None else [f"Environment={quoted(f'DATAMANAGER_HOME={caller.home}')}"]
    account = [f"User={caller.account}"] if caller.account else []
    service = [
        "[Unit]",
        f"Description=DataManager schedule {name}",
        "Wants=network-online.target",
        "After=network-online.target local-fs.target remote-fs.target time-sync.target",
        "",
        "[Service]",
        "Type=oneshot",
        *account,
        *home,
        f"ExecStart={' '.join(quoted(word, command=True) for word in _command(caller, name))}",
        "# 3 is done with warnings.",
        "SuccessExitStatus=3",
        "TimeoutStartSec=infinity",
    ]
    timer = [
        "[Unit]",
        f"Description=DataManager schedule {name}: {words.describe(one)}",
        "",
        "[Timer]",
        *(f"OnCalendar={calendar}" for calendar in calendars),
        "# A run that was missed while the computer was off is made up for once.",
        "Persistent=true",
        "AccuracySec=1s",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    files = (
        NativeFile(f"{unit}.service", ("\n".join(service) + "\n").encode()),
        NativeFile(f"{unit}.timer", ("\n".join(timer) + "\n").encode()),
    )
    steps = (
        f"sudo install -m 644 {unit}.service {unit}.timer /etc/systemd/system/",
        f"sudo systemctl daemon-reload && sudo systemctl enable --now {unit}.timer",
    )
    return Exported(files, steps, tuple(warnings))


def systemd_calendars(one: Recurrence, ends: Sequence[time]) -> tuple[list[str], list[str]]:
    """Calendar expressions that come at every planned moment, and what must be said about them."""
    warnings = []
    if one.kind is Kind.HOURLY:
        first = moment_of(datetime.combine(one.start, one.at), one.zone)
        if 24 % one.every == 0:
            hours = ",".join(f"{hour:02}" for hour in range(first.hour % one.every, 24, one.every))
        else:
            hours = "*"
            warnings.append(_calls_too_often("systemd", "every hour"))
        return [f"*-*-* {hours}:{first.minute:02}:00 UTC"], warnings
    if one.every > 1:
        warnings.append(_calls_too_often("systemd", "every day" if one.kind is Kind.DAILY else "every week"))
    if ends:
        warnings.append(_gap_warning(ends))
    days = _systemd_days(one)
    times = [f"{at:%H:%M}:00" for at in sorted({one.at, *ends})]
    return [f"{day} {at} {one.zone}" for day in days for at in times], warnings


def _systemd_days(one: Recurrence) -> list[str]:
    months = ",".join(f"{month:02}" for month in one.months) or "*"
    match one.kind:
        case Kind.ONCE:
            return [one.start.isoformat()]
        case Kind.WEEKLY:
            return [f"{','.join(_WEEKDAYS[number] for number in one.weekdays)} *-*-*"]
        case Kind.MONTHLY if one.nth is not None:
            weekday = _WEEKDAYS[one.weekdays[0]]
            if one.nth == LAST:
                return [f"{weekday} *-{months}~07/1"]
            return [f"{weekday} *-{months}-{one.nth * 7 - 6:02}..{one.nth * 7:02}"]
        case Kind.MONTHLY:
            return _systemd_month_days(one, months)
    return ["*-*-*"]


def _systemd_month_days(one: Recurrence, months: str) -> list[str]:
    day = one.day or 1
    if day == LAST:
        return [f"*-{months}~01"]
    short = _short_months(one)
    if not short:
        return [f"*-{months}-{day:02}"]
    # Where the month has the day, the last day comes as well; the guard passes over it unless it is the planned one.
    return [f"*-{months}-{day:02}", f"*-{','.join(f'{month:02}' for month in short)}~01"]


def _short_months(one: Recurrence) -> list[int]:
    """The chosen months that do not always have the day and run on their last day then."""
    if one.day is None or one.day <= 28 or one.short_months is ShortMonths.SKIP:
        return []
    lengths = {2: 28, 4: 30, 6: 30, 9: 30, 11: 30}
    return [month for month in one.months or range(1, 13) if lengths.get(month, 31) < one.day]


# -- Windows --


def _windows(name: str, one: Recurrence, caller: Caller, ends: Sequence[time], following: datetime) -> Exported:
    warnings: list[str] = []
    if caller.home is not None:
        warnings.append(
            f"A task carries no environment: set DATAMANAGER_HOME to {caller.home} for the account that runs it."
        )
    task = ElementTree.Element("Task", {"version": "1.2", "xmlns": _TASK_SPACE})
    _tree(task, "RegistrationInfo", [("Description", f"DataManager schedule {name}: {words.describe(one)}")])
    triggers = ElementTree.SubElement(task, "Triggers")
    for trigger in _windows_triggers(one, caller, ends, following, warnings):
        triggers.append(trigger)
    principals = ElementTree.SubElement(task, "Principals")
    principal = ElementTree.SubElement(principals, "Principal", {"id": "Author"})
    if caller.account:
        ElementTree.SubElement(principal, "UserId").text = caller.account
    ElementTree.SubElement(principal, "LogonType").text = "S4U"
    ElementTree.SubElement(principal, "RunLevel").text = "HighestAvailable"
    _tree(task, "Settings", _WINDOWS_SETTINGS)
    actions = ElementTree.SubElement(task, "Actions", {"Context": "Author"})
    program, *arguments = _command(caller, name)
    _tree(actions, "Exec", [("Command", program), ("Arguments", subprocess.list2cmdline(arguments))])
    ElementTree.indent(task)
    text = '<?xml version="1.0" encoding="UTF-16"?>\n' + ElementTree.tostring(task, encoding="unicode") + "\n"
    file = NativeFile(f"datamanager-{name}.xml", text.replace("\n", "\r\n").encode("utf-16"))
    account = caller.account or "ACCOUNT"
    step = f'schtasks /create /tn "DataManager\\{name}" /xml {file.name} /ru "{account}" /np'
    return Exported((file,), (step,), tuple(warnings))


_WINDOWS_SETTINGS = [
    ("AllowStartOnDemand", "true"),
    ("MultipleInstancesPolicy", "IgnoreNew"),
    ("DisallowStartIfOnBatteries", "false"),
    ("StopIfGoingOnBatteries", "false"),
    ("AllowHardTerminate", "true"),
    ("StartWhenAvailable", "true"),
    ("Enabled", "true"),
    ("ExecutionTimeLimit", "PT0S"),
    ("Priority", "5"),
]


def _windows_triggers(
    one: Recurrence, caller: Caller, ends: Sequence[time], following: datetime, warnings: list[str]
) -> list[ElementTree.Element]:
    """Elements in the schema's order: StartBoundary, Repetition, then the schedule."""
    if one.kind is Kind.HOURLY:
        return [_repeating(following, f"PT{one.every}H")]
    if one.kind is Kind.ONCE:
        return [_trigger("TimeTrigger", f"{following:%Y-%m-%dT%H:%M:%S}Z")]
    if one.zone != caller.zone:
        warnings.append(_foreign(one, "The Task Scheduler"))
        return [_repeating(following, f"PT{_QUARTER}M")]
    if one.every > 1 and one.kind is Kind.WEEKLY:
        # Its weeks begin on Sunday, ours on Monday.
        warnings.append(_calls_too_often("The Task Scheduler", "every week"))
    if ends:
        warnings.append(_gap_warning(ends))
    day = following.astimezone(ZoneInfo(one.zone)).date()
    found = []
    for at in sorted({one.at, *ends}):
        for parts in _windows_schedules(one):
            trigger = _trigger("CalendarTrigger", f"{day.isoformat()}T{at:%H:%M}:00")
            trigger.append(parts)
            found.append(trigger)
    return found


def _trigger(kind: str, start: str) -> ElementTree.Element:
    trigger = ElementTree.Element(kind)
    ElementTree.SubElement(trigger, "Enabled").text = "true"
    ElementTree.SubElement(trigger, "StartBoundary").text = start
    return trigger


def _repeating(first: datetime, interval: str) -> ElementTree.Element:
    """From ``first`` on without end; a boundary in UTC is the same moment whatever clocks do."""
    trigger = _trigger("TimeTrigger", f"{first:%Y-%m-%dT%H:%M:%S}Z")
    _tree(trigger, "Repetition", [("Interval", interval), ("StopAtDurationEnd", "false")])
    return trigger


def _windows_schedules(one: Recurrence) -> list[ElementTree.Element]:
    if one.kind is Kind.DAILY:
        return [_made("ScheduleByDay", [("DaysInterval", str(one.every))])]
    weekdays = [words.DAYS[number] for number in one.weekdays]
    if one.kind is Kind.WEEKLY:
        week = _made("ScheduleByWeek", [("WeeksInterval", "1")])
        _tree(week, "DaysOfWeek", [(day, None) for day in weekdays])
        return [week]
    if one.nth is not None:
        month = ElementTree.Element("ScheduleByMonthDayOfWeek")
        _tree(month, "Weeks", [("Week", "Last" if one.nth == LAST else str(one.nth))])
        _tree(month, "DaysOfWeek", [(day, None) for day in weekdays])
        return [_in_months(month, one.months)]
    found = [_month_day("Last" if one.day == LAST else str(one.day), one.months)]
    short = _short_months(one)
    return [*found, _month_day("Last", short)] if short else found


def _month_day(day: str, months: Iterable[int]) -> ElementTree.Element:
    month = ElementTree.Element("ScheduleByMonth")
    _tree(month, "DaysOfMonth", [("Day", day)])
    return _in_months(month, months)


def _in_months(element: ElementTree.Element, months: Iterable[int]) -> ElementTree.Element:
    chosen = tuple(months) or range(1, 13)
    _tree(element, "Months", [(words.MONTHS[month - 1], None) for month in chosen])
    return element


def _made(name: str, children: Sequence[tuple[str, str | None]]) -> ElementTree.Element:
    element = ElementTree.Element(name)
    for child, text in children:
        ElementTree.SubElement(element, child).text = text
    return element


def _tree(parent: ElementTree.Element, name: str, children: Sequence[tuple[str, str | None]]) -> None:
    parent.append(_made(name, children))


# -- cron --


def _cron(name: str, one: Recurrence, caller: Caller, ends: Sequence[time], following: datetime) -> Exported:
    times, warnings = cron_times(one, caller.zone, ends)
    home = "" if caller.home is None else f"{shlex.quote(f'DATAMANAGER_HOME={caller.home}')} "
    command = shlex.join(_command(caller, name))
    if home:
        command = f"env {home}{command}"
    # In a crontab a percent sign ends the command.
    lines = [f"{at} {command.replace('%', chr(92) + '%')}" for at in times]
    head = [f"# DataManager schedule {name}: {words.describe(one)}"]
    if one.kind is Kind.ONCE:
        warnings.append("cron knows no years: remove the line after the run; until then the command does nothing.")
    file = NativeFile(f"datamanager-{name}.cron", ("\n".join([*head, *lines]) + "\n").encode())
    step = f"(crontab -l; cat {file.name}) | crontab -"
    warnings.append("cron makes up for no run that was missed while the computer was off, unless a later call does.")
    return Exported((file,), (step,), tuple(warnings))


def cron_times(one: Recurrence, zone: str, ends: Sequence[time]) -> tuple[list[str], list[str]]:
    """The five fields of each line, and what must be said about them."""
    if one.kind is Kind.HOURLY:
        return _cron_hours(one, zone)
    if one.zone != zone:
        return [f"{_quarters(one.at.minute)} * * * *"], [_foreign(one, "cron")]
    warnings = []
    if one.every > 1:
        warnings.append(_calls_too_often("cron", "every day" if one.kind is Kind.DAILY else "every week"))
    if ends:
        warnings.append(_gap_warning(ends))
    days, weekdays = "*", "*"
    months = ",".join(str(month) for month in one.months) or "*"
    if one.kind is Kind.ONCE:
        days, months = str(one.start.day), str(one.start.month)
    elif one.kind is Kind.WEEKLY:
        weekdays = ",".join(str((number + 1) % 7) for number in one.weekdays)
    elif one.kind is Kind.MONTHLY:
        days, exact = _cron_days(one)
        if not exact:
            warnings.append(_calls_too_often("cron", f"on the days {days} of the month"))
    lines = [f"{at.minute} {at.hour} {days} {months} {weekdays}" for at in sorted({one.at, *ends})]
    return lines, warnings


def _cron_hours(one: Recurrence, zone: str) -> tuple[list[str], list[str]]:
    """A real hour is one of the clock, unless clocks change by less than an hour, which moves the minute."""
    first = moment_of(datetime.combine(one.start, one.at), one.zone)
    local = [(first + timedelta(days=day)).astimezone(ZoneInfo(zone)) for day in range(0, 366, 7)]
    minutes = {moment.minute for moment in local}
    if len(minutes) == 1:
        warnings = [] if one.every == 1 else [_calls_too_often("cron", "every hour")]
        return [f"{minutes.pop()} * * * *"], warnings
    return [f"{_quarters(one.at.minute)} * * * *"], [_calls_too_often("cron", f"every {_QUARTER} minutes")]


def _quarters(minute: int) -> str:
    """The minutes of an hour that are whole quarters of an hour away."""
    return ",".join(str(one) for one in range(minute % _QUARTER, 60, _QUARTER))


def _cron_days(one: Recurrence) -> tuple[str, bool]:
    """Days of the month on which a run may fall, and whether it always does."""
    if one.nth is not None:
        return ("22-31" if one.nth == LAST else f"{one.nth * 7 - 6}-{one.nth * 7}"), False
    if one.day == LAST:
        return "28-31", False
    return (f"28-{one.day}", False) if _short_months(one) else (str(one.day), True)
