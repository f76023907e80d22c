"""Retention: which backups stay, why, and what is lost with those that go. Pure: nothing is read, nothing is changed.

A backup stays when any of these says so:

    always      the newest; the newest undamaged one (of ``minimum``: the newest so many); pinned ones
    proof       once there are test restores: the newest proven backup, and all that no proven one follows
    window      the backup from which WAL leads to every moment of the window that was promised
    rolling     the newest rolling backup of its name, and the newest undamaged one
    last        the newest N
    within      those of the last days or hours
    periods     hourly, daily, weekly (ISO), monthly, yearly: of each of the last N periods that have any, the newest

A policy that sets none of the last three keeps everything that no rolling backup replaces. Backups are ordered by
their sequence in the repository, never by a clock; their times only tell periods and ages. So:

- a backup from the future takes no period's slot and stays for every rule of time: its clock was wrong, or ours is;
- one that was made after another one within ``within`` is within it, too, whatever its clock said;
- a damaged backup never takes a slot from an undamaged one: each rule looks at the undamaged ones alone, and once more
  at all of them for the damaged ones.

A policy that keeps as much or more in every field keeps a superset, but for the window: it needs one backup, and a
longer one needs an older one. Applying a plan twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from datamanager.base.errors import UsageError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backup as retention sees it.

    Args:
        sequence: its place in the repository; decides what is newer.
        name: the name for people; what a rolling backup replaces has the same.
        started, ended: aware.
        damaged: the server's own pages were damaged.
        pin: why it is pinned, empty when nobody said why; None when it is not.
        rolling: it replaces every older backup of its name.
    """

    backup: str
    sequence: int
    name: str
    started: datetime
    ended: datetime
    damaged: bool = False
    pin: str | None = None
    rolling: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep. None or 0 sets no rule; with no rule at all everything stays.

    Args:
        last: so many of the newest.
        within: all that are no older.
        hourly, daily, weekly, monthly, yearly: of so many periods the newest; periods without a backup do not count.
        minimum: so many of the newest undamaged stay whatever the rules say, 1 or more.
        window: so far back WAL leads to every moment, from a backup that is at least as old; until there is one that
            old, from the oldest.
    """

    last: int | None = None
    within: timedelta | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    minimum: int = 1
    window: timedelta | None = None

    @property
    def of_time(self) -> bool:
        """Whether any rule looks at a clock."""
        return bool(self.within or any(count for _, count, _ in _periods(self)))

    @property
    def keeps_everything(self) -> bool:
        return not (self.last or self.of_time)


@dataclass(frozen=True, slots=True)
class Loss:
    """What can no longer be restored when a backup goes: the state it ends with.

    Args: moment - that state's; earlier, later - the moments of the nearest backups that stay.
    """

    moment: datetime
    earlier: datetime | None
    later: datetime | None

    def sentence(self, zone: tzinfo | None) -> str:
        """For people, with times in their zone (None: this computer's)."""
        lost = f"the state of {_minute(self.moment, zone)} is lost"
        if self.earlier is None:
            return (
                f"{lost}; nothing before {_minute(self.later, zone)} stays" if self.later else f"{lost}; nothing stays"
            )
        if self.later is None:
            return f"{lost}; {_minute(self.earlier, zone)} becomes the newest"
        return f"{lost}; {_minute(self.earlier, zone)} and {_minute(self.later, zone)} are the nearest that stay"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a backup. ``reasons`` are short clauses; ``lost`` is set for those that go."""

    backup: Candidate
    keep: bool
    reasons: list[str]
    lost: Loss | None = None


def plan_expiry(
    backups: Collection[Candidate],
    policy: Policy,
    now: datetime,
    zone: tzinfo | None = None,
    proven: Collection[str] | None = None,
) -> list[Decision]:
    """Decide about the backups of one cluster in one repository, oldest to newest.

    Args:
        now: aware.
        zone: the owner's, in which days begin; None is this computer's, with its daylight saving.
        proven: ids of backups that a test restore has proven; None while there are no test restores at all.
    Raises: UsageError, when the policy's minimum is below 1.
    """
    if policy.minimum < 1:
        raise UsageError("plan expiry: the minimum is below 1", hint="Keep at least one undamaged backup.")
    if not backups:
        return []
    plan = _Plan(backups, policy, now, zone, proven)
    plan.decide()
    return plan.decisions()


def losses(backups: Collection[Candidate], going: Collection[str]) -> dict[str, Loss]:
    """By id, what is lost when the backups ``going`` go and all others stay."""
    ordered = _in_order(backups)
    found: dict[str, Loss] = {}
    earlier: datetime | None = None
    for place, one in enumerate(ordered):
        if one.backup not in going:
            earlier = one.ended
            continue
        later = next((other.ended for other in ordered[place + 1 :] if other.backup not in going), None)
        found[one.backup] = Loss(one.ended, earlier, later)
    return found


class _Plan:
    """The reasons found so far; every rule adds to them, none takes any away."""

    def __init__(
        self,
        backups: Collection[Candidate],
        policy: Policy,
        now: datetime,
        zone: tzinfo | None,
        proven: Collection[str] | None,
    ) -> None:
        self._ordered = _in_order(backups)
        self._newest_first = self._ordered[::-1]
        self._policy = policy
        self._now = now.astimezone(UTC)
        self._zone = zone
        self._proven = proven
        self._replaced = _replaced(self._newest_first)
        # Rolling backups stand beside the history: they never take a slot of it.
        self._history = [one for one in self._newest_first if not one.rolling and one.backup not in self._replaced]
        self._reasons: dict[str, list[str]] = {one.backup: [] for one in self._ordered}

    def decide(self) -> None:
        self._always()
        self._proof()
        if self._policy.window:
            self._window(self._policy.window)
        self._rolling()
        if self._policy.keeps_everything:
            self._add((one, "no retention is set") for one in self._history)
            return
        for name, count, period in _periods(self._policy):
            if count:
                self._add(self._of_periods(name, count, period))
        if self._policy.within:
            self._add(self._within(self._policy.within))
        if self._policy.last:
            self._add(self._last(self._policy.last))
        if self._policy.of_time:
            why = "its time lies in the future: its clock was wrong, or this computer's is"
            self._add((one, why) for one in self._history if self._is_future(one))

    def decisions(self) -> list[Decision]:
        going = {backup for backup, reasons in self._reasons.items() if not reasons}
        lost = losses(self._ordered, going)
        found = []
        for one in self._ordered:
            if one.backup in going:
                newer = self._replaced.get(one.backup)
                why = f"replaced by the rolling backup {newer}" if newer else "no rule keeps it"
                found.append(Decision(one, False, [why], lost[one.backup]))
            else:
                found.append(Decision(one, True, self._reasons[one.backup]))
        return found

    def _add(self, reasons: Iterator[tuple[Candidate, str]]) -> None:
        for one, reason in reasons:
            self._reasons[one.backup].append(reason)

    def _always(self) -> None:
        self._reasons[self._newest_first[0].backup].append("newest backup")
        whole = [one for one in self._newest_first if not one.damaged]
        for place, one in enumerate(whole[: self._policy.minimum]):
            first = "newest undamaged backup"
            reason = first if place == 0 else f"one of the newest {self._policy.minimum} undamaged backups"
            self._reasons[one.backup].append(reason)
        for one in self._newest_first:
            if one.pin is not None:
                self._reasons[one.backup].append(f"pinned: {one.pin}" if one.pin else "pinned")

    def _proof(self) -> None:
        """Nothing goes before a newer backup was proven; a rolling one is replaced by one that was verified."""
        if self._proven is None:
            return
        for one in self._newest_first:
            if one.backup in self._proven:
                self._reasons[one.backup].append("newest proven backup")
                return
            if one.backup not in self._replaced:
                self._reasons[one.backup].append("no newer backup is proven yet")

    def _window(self, window: timedelta) -> None:
        """As the archive chooses where it begins (engine/wal/retention.py); where clocks contradict, all in doubt."""
        until = self._now - min(window, _LONGEST)
        whole = [one for one in self._ordered if not one.damaged and not self._is_future(one)]
        old = [one.ended <= until for one in whole]
        first = max(0, (old.index(False) if False in old else len(old)) - 1)
        last = max((place for place, one in enumerate(old) if one), default=0)
        words = f"the WAL of the last {_span(window)} needs it"
        self._add((one, words) for one in whole[first : last + 1])

    def _rolling(self) -> None:
        newest: set[str] = set()
        whole: set[str] = set()
        for one in self._newest_first:
            if not one.rolling:
                continue
            if one.name not in newest:
                self._reasons[one.backup].append(f"newest rolling backup {one.name!r}")
            elif not one.damaged and one.name not in whole:
                self._reasons[one.backup].append(f"newest undamaged rolling backup {one.name!r}")
            newest.add(one.name)
            if not one.damaged:
                whole.add(one.name)

    def _last(self, count: int) -> Iterator[tuple[Candidate, str]]:
        whole = [one for one in self._history if not one.damaged]
        yield from ((one, f"one of the last {count}") for one in whole[:count])
        yield from ((one, f"one of the last {count}, damaged") for one in self._history[:count] if one.damaged)

    def _within(self, within: timedelta) -> Iterator[tuple[Candidate, str]]:
        words = f"within {_span(within)}"
        since = self._now - min(within, _LONGEST)
        inside = [place for place, one in enumerate(self._history) if since <= one.started <= self._now]
        for one in self._history[: max(inside, default=-1) + 1]:
            if since <= one.started <= self._now:
                yield one, words
            elif not self._is_future(one):
                yield one, f"{words} (made after one that is)"

    def _of_periods(self, name: str, count: int, period: Callable[[datetime], str]) -> Iterator[tuple[Candidate, str]]:
        timely = [one for one in self._history if not self._is_future(one)]
        whole = [one for one in timely if not one.damaged]
        for one, slot, label in self._slots(whole, count, period):
            yield one, f"{name} {slot} of {count} ({label})"
        for one, slot, label in self._slots(timely, count, period):
            if one.damaged:
                yield one, f"{name} {slot} of {count} ({label}), damaged"

    def _slots(
        self, newest_first: Sequence[Candidate], count: int, period: Callable[[datetime], str]
    ) -> Iterator[tuple[Candidate, int, str]]:
        """The newest backup of each of the first ``count`` periods met on the way back, numbered from 1."""
        met: set[str] = set()
        for one in newest_first:
            label = period(one.started.astimezone(self._zone))
            if label not in met:
                met.add(label)
                yield one, len(met), label
                if len(met) == count:
                    return

    def _is_future(self, one: Candidate) -> bool:
        return one.started > self._now


_LONGEST = timedelta(days=365_000)  # further back the calendar ends


def _in_order(backups: Collection[Candidate]) -> list[Candidate]:
    return sorted(backups, key=lambda one: (one.sequence, one.backup))


def _replaced(newest_first: Sequence[Candidate]) -> dict[str, str]:
    """By id, the rolling backup that replaces it; a damaged one replaces only damaged ones."""
    found: dict[str, str] = {}
    newest: dict[str, str] = {}
    whole: dict[str, str] = {}
    for one in newest_first:
        by = (newest if one.damaged else whole).get(one.name)
        if by is not None:
            found[one.backup] = by
        if one.rolling:
            newest.setdefault(one.name, one.backup)
            if not one.damaged:
                whole.setdefault(one.name, one.backup)
    return found


def _periods(policy: Policy) -> list[tuple[str, int | None, Callable[[datetime], str]]]:
    """Each rule of periods with what names the period of a local time."""
    return [
        ("hourly", policy.hourly, _hour),
        ("daily", policy.daily, lambda local: f"{local.date()}"),
        ("weekly", policy.weekly, _week),
        ("monthly", policy.monthly, lambda local: f"{local.year:04}-{local.month:02}"),
        ("yearly", policy.yearly, lambda local: f"{local.year:04}"),
    ]


def _hour(local: datetime) -> str:
    """With its distance from UTC: when clocks go back, the same hour comes twice and is two."""
    return f"{local.date()} {local.hour:02}:00 {local:%z}"


def _week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year:04}-W{week:02}"


def _minute(moment: datetime, zone: tzinfo | None) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M %Z}"


def _span(length: timedelta) -> str:
    hours = length // timedelta(hours=1)
    count, unit = (hours // 24, "day") if hours % 24 == 0 else (hours, "hour")
    return f"{count} {unit}{'' if count == 1 else 's'}"
