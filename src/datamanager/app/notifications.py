"""Telling people: one call a round, which never waits and never fails."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from zoneinfo import ZoneInfo

import tzlocal

from datamanager.app.context import Context
from datamanager.base.errors import ConfigurationError, DataManagerError, NotFound
from datamanager.base.units import Secret
from datamanager.config.home import Home
from datamanager.config.model import ChannelConfig, Config, NotifyEvent
from datamanager.config.secret_files import read_secret_line
from datamanager.notify import digest, heartbeat, rules
from datamanager.notify.channels import Channel
from datamanager.notify.courier import Courier
from datamanager.notify.message import Message, Sender, body_of
from datamanager.notify.outbox import NAME, Health, Outbox, Report, after, from_text, to_text
from datamanager.state.database import State
from datamanager.state.finding import Finding, Severity
from datamanager.state.model import Job, JobState

# A summary waits so long for a round in which somebody looked what is wrong.
LOOK_AWAITED = timedelta(minutes=15)
LOOKED_AGAIN_AFTER = timedelta(seconds=60)
# A run's record is taken in this much after its end at most, and no run lasts longer.
TAKEN_IN_WITHIN, LONGEST_RUN = timedelta(hours=6), timedelta(days=7)
_FINAL = tuple(state for state in JobState if state.final)
_HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Told:
    """What a round did; ``warnings`` are new troubles with channels, for the log of whoever calls."""

    queued: int = 0
    waiting: int = 0
    warnings: tuple[str, ...] = ()


def tell(
    context: Context,
    state: State,
    courier: Courier,
    *,
    findings: Sequence[Finding] | None = None,
    verdict: str = "",
    wait_seconds: float = 0.0,
) -> Told:
    """Tell people what they should know as of now. Called each round, as often as each second; nothing is raised.

    Args:
        courier: the caller's own, one for its whole life.
        findings: everything that is wrong now; None when nobody looked in this round, which changes nothing.
        verdict: the sentence of ``status``, for the summary.
        wait_seconds: 0 leaves attempts to a later round; at the end of a process it waits for those under way.
    """
    reports = courier.reports()
    try:
        return _told(context, state, courier, reports, findings, verdict, wait_seconds)
    except DataManagerError as error:
        courier.give_back(reports)
        return Told(warnings=(f"nobody could be told: {error.message}",))


def sender_of(config: Config, state: State | None = None) -> Sender:
    """Who speaks in messages."""
    known = state.known.clusters() if state else ()
    return Sender(
        organization=config.notify.organization,
        server=config.notify.server or socket.gethostname(),
        zone=zone_of(config),
        databases={one.name: one.databases for one in known},
    )


def zone_of(config: Config) -> tzinfo:
    """The zone of messages and of the summary's hour."""
    if config.notify.zone is not None:
        return ZoneInfo(config.notify.zone)
    try:
        return tzlocal.get_localzone()
    except (LookupError, ValueError):
        return UTC


def channel(home: Home, name: str, config: ChannelConfig) -> Channel:
    """A channel with its secret. Raises: NotFound, ConfigurationError."""
    return Channel(name, config, _secret(home, name, config))


def _secret(home: Home, name: str, config: ChannelConfig) -> Secret | None:
    if not config.needs_secret:
        return None
    return read_secret_line(home.channel_secret(name), "secret of the channel")


def _told(
    context: Context,
    state: State,
    courier: Courier,
    reports: list[tuple[str, Report]],
    findings: Sequence[Finding] | None,
    verdict: str,
    wait_seconds: float,
) -> Told:
    now = context.clock.now()
    config = context.config()
    stored = from_text(state.alerts.value(NAME))
    box, warnings = _with_reports(stored, reports, config.channels, now)
    for key in box.ending:
        state.alerts.clear(key)
    box = replace(box, ending=())
    jobs, box = _ended(state, box, now)
    sender = sender_of(config, state)
    troubles = None if findings is None else [one for one in map(rules.trouble_of, findings) if one is not None]
    known = rules.Known(
        alerts=state.alerts.open(),
        told=box.told,
        subjects=config.clusters.keys() | config.repositories.keys(),
        heard=bool(config.channels),
    )
    decision = rules.decide(jobs, troubles, known, sender, now)
    for trouble in decision.raised:
        state.alerts.raise_(trouble.key, trouble.said.title, body_of(sender, trouble.said), trouble.urgent)
    wanted = {name: one.events for name, one in config.channels.items()}
    messages = list(decision.messages)
    box = replace(box, told=decision.told, ending=tuple(decision.ended))
    box, summary = _with_summary(state, config, box, sender, findings, verdict, now)
    messages += summary
    box = box.add(messages, wanted).swept(config.channels, now)
    # From here on it counts as told, and it will be sent whatever happens to this process.
    if box != stored:
        state.alerts.set_value(NAME, to_text(box))
    open_keys = {alert.key for alert in known.alerts} | {trouble.key for trouble in decision.raised}
    for message in messages:
        if message.key in open_keys:
            state.alerts.sent(message.key, now)
    for key in decision.ended:
        state.alerts.clear(key)
    wrong = [key for key in open_keys.difference(decision.ended) if not key.startswith(rules.FAILED_ONCE)]
    saved, box = box, _begin(context, courier, config, box, now, well=not wrong)
    if wait_seconds:
        later = courier.reports(wait_seconds)
        reports += later
        box, more = _with_reports(box, later, config.channels, context.clock.now())
        warnings += more
    if box != saved:
        state.alerts.set_value(NAME, to_text(box))
    return Told(len(messages), len(box.waiting), tuple(warnings))


def _with_reports(
    box: Outbox, reports: Sequence[tuple[str, Report]], channels: Collection[str], now: datetime
) -> tuple[Outbox, list[str]]:
    """After the attempts that have ended; a trouble that is new, or another one, is a warning."""
    warnings = []
    for name, report in reports:
        if name == _HEARTBEAT:
            before, box = box.heartbeat, replace(box, heartbeat=after(box.heartbeat, report, now))
        elif name in channels:
            before, box = box.health(name), box.reported(name, report, now)
        else:
            continue
        if report.trouble and report.trouble != before.trouble:
            warnings.append(f"notifications by {name}: {report.trouble}")
    return box, warnings


def _ended(state: State, box: Outbox, now: datetime) -> tuple[list[Job], Outbox]:
    """The runs that ended since the last look; at the very first look, none: what is old is no news."""
    counted = state.jobs.count(states=_FINAL)
    looked = box.looked
    if looked is not None and counted == box.counted and abs(now - looked) < LOOKED_AGAIN_AFTER:
        return [], box
    since = min(looked or now, now) - TAKEN_IN_WITHIN
    found = {job.id: job for job in ended_since(state, since)}
    new = [] if looked is None else [job for job in found.values() if job.id not in box.seen]
    seen = {job.id: job.ended for job in found.values() if job.ended}
    return new, replace(box, looked=now, counted=counted, seen=seen)


def ended_since(state: State, since: datetime) -> list[Job]:
    """Runs that ended at ``since`` or later, whenever they were asked for. Raises: StateError."""
    limit = 100
    while True:
        found = state.jobs.list(states=_FINAL, limit=limit)
        if len(found) < limit or found[-1].queued < since - LONGEST_RUN:
            return [job for job in found if job.ended is not None and job.ended >= since]
        limit *= 4


def _with_summary(
    state: State,
    config: Config,
    box: Outbox,
    sender: Sender,
    findings: Sequence[Finding] | None,
    verdict: str,
    now: datetime,
) -> tuple[Outbox, list[Message]]:
    """The summary, when it is due; each planned moment gives one."""
    events = {event for one in config.channels.values() for event in one.events}
    wanted = events & {NotifyEvent.DIGEST, NotifyEvent.ALL}
    pace = str(config.notify.digest) if wanted else ""
    if pace != box.digest_pace or box.digest is None or box.digest > now + timedelta(days=1):
        return replace(box, digest_pace=pace, digest=now), []
    planned = digest.planned(config.notify, now, sender.zone)
    if not wanted or planned is None or planned <= box.digest:
        return box, []
    if findings is None and now - planned < LOOK_AWAITED:
        return box, []
    alerts = state.alerts.open()
    told = {alert.key for alert in alerts}
    begin = max(box.digest, now - digest.LONGEST)
    period = digest.Period(
        begin=begin,
        end=now,
        jobs=ended_since(state, begin),
        proofs=[one for one in state.proofs.list(limit=200) if one.time >= begin],
        alerts=alerts,
        findings=[
            one.sentence
            for one in findings or ()
            if one.severity >= Severity.AT_RISK and f"{rules.FOUND}{one.key}" not in told and not one.declined
        ],
        clusters=[one for one in state.known.clusters() if one.name in config.clusters],
        verdict=verdict,
    )
    return replace(box, digest=now), [digest.summary(sender, period)]


def _begin(context: Context, courier: Courier, config: Config, box: Outbox, now: datetime, *, well: bool) -> Outbox:
    """Start the attempts that are due. What is in the way of one counts as a failed attempt."""
    for name, one in config.channels.items():
        waiting = box.due(name, now)
        if not waiting or not courier.is_free(name):
            continue
        try:
            ready = channel(context.home, name, one)
        except (NotFound, ConfigurationError) as error:
            box = box.reported(name, Report(trouble=error.message.partition(": ")[2]), now)
            continue
        courier.begin(name, partial(ready.send, waiting), float(one.timeout_seconds))
    return _beat(context, courier, box, now, well=well)


def _beat(context: Context, courier: Courier, box: Outbox, now: datetime, *, well: bool) -> Outbox:
    if not heartbeat.is_due(box.pinged, now) or not courier.is_free(_HEARTBEAT):
        return box
    try:
        url = read_secret_line(context.home.heartbeat_secret, "heartbeat address")
    except NotFound:
        return box if box.pinged is None else replace(box, pinged=None, heartbeat=Health())
    except ConfigurationError as error:
        report = Report(trouble=error.message.partition(": ")[2])
        return replace(box, pinged=now, heartbeat=after(box.heartbeat, report, now))
    courier.begin(_HEARTBEAT, partial(heartbeat.ping, url, well=well), heartbeat.TIMEOUT_SECONDS)
    return replace(box, pinged=now)
