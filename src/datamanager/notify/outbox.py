"""What waits to be sent, what was told when, and how each channel does: one value, replaced as a whole.

It is stored under one name in the state, so that "this was told" and "this waits to be sent" are true together or not
at all, wherever a run is cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from datamanager.config.model import NotifyEvent
from datamanager.notify.message import Message

NAME = "notify.outbox"
GIVEN_UP_AFTER = timedelta(hours=24)
MAX_WAITING = 500  # of all channels together; the oldest go first
_FIRST_RETRY, _LAST_RETRY = timedelta(minutes=1), timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that a channel has not taken; ``left`` are the recipients that miss it, none for all."""

    message: Message
    channel: str
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """How a channel does.

    Args:
        sent: when it last took a message.
        trouble: why it did not take the last one; empty when it did; ``since`` when that began.
        failures: in a row; ``retry`` is when it is tried again.
        given_up: messages that it never took.
    """

    sent: datetime | None = None
    trouble: str = ""
    since: datetime | None = None
    failures: int = 0
    retry: datetime | None = None
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt came to: ids that were taken, with the recipients that still miss them; then what went wrong."""

    taken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Outbox:
    """Immutable; each change gives a new one.

    Args:
        told: when each key was last told.
        looked: when runs were last looked through, ``counted`` how many there were; ``seen`` are those that ended
            shortly before.
        ending: alerts to be ended at the next look, because what is told of it is in here already.
        digest, digest_pace: when the last summary was made, and of which pace.
        heartbeat: how the address does that is asked for every minute; ``pinged`` is when that was tried last.
    """

    waiting: tuple[Waiting, ...] = ()
    channels: Mapping[str, Health] = field(default_factory=dict)
    told: Mapping[str, datetime] = field(default_factory=dict)
    looked: datetime | None = None
    counted: int = 0
    seen: Mapping[str, datetime] = field(default_factory=dict)
    ending: tuple[str, ...] = ()
    digest: datetime | None = None
    digest_pace: str = ""
    heartbeat: Health = Health()
    pinged: datetime | None = None

    def add(self, messages: Iterable[Message], wanted: Mapping[str, Collection[NotifyEvent]]) -> Outbox:
        """Let messages wait for every channel that wants them; a newer one replaces an older one of the same key."""
        waiting = list(self.waiting)
        for message in messages:
            for channel, events in wanted.items():
                if not (message.everywhere or NotifyEvent.ALL in events or message.event in events):
                    continue
                waiting = [one for one in waiting if (one.channel, one.message.key) != (channel, message.key)]
                waiting.append(Waiting(message, channel))
        return replace(self, waiting=tuple(waiting[-MAX_WAITING:]))

    def due(self, channel: str, now: datetime) -> tuple[Waiting, ...]:
        """What may be tried now, oldest first."""
        retry = self.health(channel).retry
        # A retry further away than any is ever set comes from a clock that was wrong.
        if retry is not None and now < retry <= now + _LAST_RETRY:
            return ()
        return tuple(one for one in self.waiting if one.channel == channel)

    def health(self, channel: str) -> Health:
        return self.channels.get(channel, Health())

    def reported(self, channel: str, report: Report, now: datetime) -> Outbox:
        """After an attempt: what was taken goes, what was not is tried again later."""
        waiting = []
        for one in self.waiting:
            if one.channel == channel and one.message.id in report.taken:
                left = report.taken[one.message.id]
                if left:
                    waiting.append(replace(one, left=left))
            else:
                waiting.append(one)
        health = after(self.health(channel), report, now)
        return replace(self, waiting=tuple(waiting), channels={**self.channels, channel: health})

    def swept(self, channels: Collection[str], now: datetime) -> Outbox:
        """Without what is too old and without channels that are no more."""
        old = [one for one in self.waiting if abs(now - one.message.created) >= GIVEN_UP_AFTER]
        kept = tuple(one for one in self.waiting if one.channel in channels and one not in old)
        health = {name: one for name, one in self.channels.items() if name in channels}
        for one in old:
            if one.channel in channels:
                before = health.get(one.channel, Health())
                health[one.channel] = replace(before, given_up=before.given_up + 1)
        if kept == self.waiting and health == self.channels:
            return self
        return replace(self, waiting=kept, channels=health)


def after(health: Health, report: Report, now: datetime) -> Health:
    """The health of a channel after an attempt."""
    sent = now if report.taken else health.sent
    if not report.trouble:
        return Health(sent=sent, given_up=health.given_up)
    pause = min(_FIRST_RETRY * 2 ** min(health.failures, 10), _LAST_RETRY)
    return Health(
        sent=sent,
        trouble=report.trouble,
        since=health.since or now,
        failures=health.failures + 1,
        retry=now + pause,
        given_up=health.given_up,
    )


_STORED = TypeAdapter(Outbox)


def to_text(outbox: Outbox) -> str:
    return _STORED.dump_json(outbox).decode()


def from_text(text: str | None) -> Outbox:
    """What was stored; one that cannot be read is empty, so that what is wrong is told once more."""
    try:
        return _STORED.validate_json(text) if text else Outbox()
    except ValidationError:
        return Outbox()
