"""A checker for XML of the Windows Task Scheduler, from the rules of its schema.

Source: MicrosoftDocs/win32, desktop-src/TaskSchd/taskschedulerschema-*: taskType, triggerBaseType, calendarTriggerType,
timeTriggerType, repetitionType, dailyScheduleType, weeklyScheduleType, monthlyScheduleType,
monthlyDayOfWeekScheduleType, settingsType, principalType, execActionType and their simple types (version 1.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

SPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_BOOLEAN, _TEXT, _EMPTY = r"true|false", r"(?s).*", ""
_NON_EMPTY = r"(?s).+"
# The schema's dateTime: a local time, or one with Z or an offset.
_DATE_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)?"
_DURATION = r"P(?=.)(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Type:
    """A complex type: its children's types or patterns; ``ordered`` for xs:sequence, else xs:all, each once."""

    children: Mapping[str, Type | str] = field(default_factory=dict)
    ordered: bool = False
    required: frozenset[str] = frozenset()
    attributes: Mapping[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()
    one_of: frozenset[str] = frozenset()


def _flags(names: tuple[str, ...]) -> Type:
    return Type(dict.fromkeys(names, _EMPTY))


_DAYS_OF_WEEK, _MONTHS_TYPE = _flags(_DAYS), _flags(_MONTHS)
_REPETITION = Type(
    {"Interval": _DURATION, "Duration": _DURATION, "StopAtDurationEnd": _BOOLEAN}, required=frozenset({"Interval"})
)
_BASE: dict[str, Type | str] = {
    "Enabled": _BOOLEAN,
    "StartBoundary": _DATE_TIME,
    "EndBoundary": _DATE_TIME,
    "Repetition": _REPETITION,
    "ExecutionTimeLimit": _DURATION,
}
_SCHEDULES: dict[str, Type | str] = {
    "ScheduleByDay": Type({"DaysInterval": r"[1-9]\d{0,2}"}),
    "ScheduleByWeek": Type({"WeeksInterval": r"[1-9]|[1-4]\d|5[0-2]", "DaysOfWeek": _DAYS_OF_WEEK}),
    "ScheduleByMonth": Type(
        {
            "DaysOfMonth": Type({"Day": r"[1-9]|[1-2][0-9]|3[0-1]|Last"}, repeated=frozenset({"Day"})),
            "Months": _MONTHS_TYPE,
        }
    ),
    "ScheduleByMonthDayOfWeek": Type(
        {
            "Weeks": Type({"Week": r"[1-4]|Last"}, repeated=frozenset({"Week"})),
            "DaysOfWeek": _DAYS_OF_WEEK,
            "Months": _MONTHS_TYPE,
        },
        required=frozenset({"DaysOfWeek"}),
    ),
}
_TRIGGERS = Type(
    {
        "CalendarTrigger": Type(
            {**_BASE, "RandomDelay": _DURATION, **_SCHEDULES},
            ordered=True,
            # StartBoundary: "required for calendar and time triggers", remarks of the element.
            required=frozenset({"StartBoundary"}),
            attributes={"id": _NON_EMPTY},
            one_of=frozenset(_SCHEDULES),
        ),
        "TimeTrigger": Type(
            {**_BASE, "RandomDelay": _DURATION},
            ordered=True,
            required=frozenset({"StartBoundary"}),
            attributes={"id": _NON_EMPTY},
        ),
    },
    repeated=frozenset({"CalendarTrigger", "TimeTrigger"}),
)
_PRINCIPAL = Type(
    {
        "UserId": _NON_EMPTY,
        "LogonType": r"S4U|Password|InteractiveToken|InteractiveTokenOrPassword",
        "GroupId": _NON_EMPTY,
        "DisplayName": _TEXT,
        "RunLevel": r"LeastPrivilege|HighestAvailable",
    },
    attributes={"id": _NON_EMPTY},
)
_SETTINGS = Type(
    {
        "AllowStartOnDemand": _BOOLEAN,
        "MultipleInstancesPolicy": r"Parallel|Queue|IgnoreNew|StopExisting",
        "DisallowStartIfOnBatteries": _BOOLEAN,
        "StopIfGoingOnBatteries": _BOOLEAN,
        "AllowHardTerminate": _BOOLEAN,
        "StartWhenAvailable": _BOOLEAN,
        "RunOnlyIfNetworkAvailable": _BOOLEAN,
        "WakeToRun": _BOOLEAN,
        "Enabled": _BOOLEAN,
        "Hidden": _BOOLEAN,
        "DeleteExpiredTaskAfter": _DURATION,
        "ExecutionTimeLimit": _DURATION,
        "Priority": r"\d|10",
        "RunOnlyIfIdle": _BOOLEAN,
    }
)
_TASK = Type(
    {
        "RegistrationInfo": Type({"Description": _TEXT, "Author": _TEXT, "URI": _TEXT}),
        "Triggers": _TRIGGERS,
        "Settings": _SETTINGS,
        "Principals": Type({"Principal": _PRINCIPAL}),
        "Actions": Type(
            {
                "Exec": Type(
                    {"Command": _NON_EMPTY, "Arguments": _TEXT, "WorkingDirectory": _TEXT},
                    required=frozenset({"Command"}),
                )
            },
            required=frozenset({"Exec"}),
            attributes={"Context": _NON_EMPTY},
        ),
    },
    required=frozenset({"Actions"}),
    attributes={"version": r"1\.2"},
)


def problems(data: bytes) -> list[str]:
    """What is wrong with the file of a task; nothing when it follows the schema.

    schtasks.exe wants UTF-16 with a byte order mark, as the declaration says.
    """
    found = [] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ["it has no byte order mark of UTF-16"]
    root = ElementTree.fromstring(data)
    if root.tag != f"{SPACE}Task":
        return [*found, f"its root is {root.tag}"]
    found += _judge(root, _TASK, "Task")
    contexts = {one.get("Context") for one in root.iter(f"{SPACE}Actions")}
    if not contexts <= {one.get("id") for one in root.iter(f"{SPACE}Principal")}:
        found.append("Actions: its context names no principal")
    return found


def _judge(element: ElementTree.Element, kind: Type, path: str) -> list[str]:
    found = []
    for name, value in element.attrib.items():
        if not re.fullmatch(kind.attributes.get(name, "(?!)"), value):
            found.append(f"{path}: attribute {name}={value!r}")
    names = [child.tag.removeprefix(SPACE) for child in element]
    known = list(kind.children)
    found += [f"{path}: unknown {name}" for name in names if name not in kind.children]
    found += [f"{path}: {name} is missing" for name in kind.required if name not in names]
    found += [
        f"{path}: {name} stands there twice"
        for name in set(names)
        if names.count(name) > 1 and name not in kind.repeated
    ]
    if kind.one_of and len(kind.one_of & set(names)) != 1:
        found.append(f"{path}: one of {sorted(kind.one_of)} is needed")
    places = [known.index(name) for name in names if name in known]
    if kind.ordered and places != sorted(places):
        found.append(f"{path}: out of order: {names}")
    for child, name in zip(element, names, strict=True):
        wanted = kind.children.get(name)
        if isinstance(wanted, Type):
            found += _judge(child, wanted, f"{path}/{name}")
        elif wanted is not None and not re.fullmatch(wanted, child.text or ""):
            found.append(f"{path}/{name}: {child.text!r}")
        elif wanted is not None and (len(child) or child.attrib):
            found.append(f"{path}/{name}: holds more than text")
    return found
