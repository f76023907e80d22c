"""The channels of notifications: adding one, trying it, taking it away; and what is told over them now."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datamanager.app.audit import audited, who
from datamanager.app.context import Context
from datamanager.app.notifications import channel, sender_of, zone_of
from datamanager.base.errors import ConfigurationError, NotFound, NotSent, UsageError
from datamanager.base.units import Secret
from datamanager.config.home import make_private_folder
from datamanager.config.model import ChannelConfig, ChannelKind, Config, NotifyEvent
from datamanager.config.names import check_name
from datamanager.config.secret_files import write_secret_file
from datamanager.notify import urls
from datamanager.notify.channels import Channel
from datamanager.notify.courier import Courier
from datamanager.notify.heartbeat import TIMEOUT_SECONDS, check_heartbeat, ping
from datamanager.notify.message import Message, Said, body_of, moment, title_of
from datamanager.notify.outbox import NAME, Health, Outbox, Report, Waiting, from_text
from datamanager.state.model import Alert


@dataclass(frozen=True)
class ChannelOptions:
    """A channel to add.

    Args:
        values: the options of ``[channels.NAME]``.
        secret: the password of the mail account, or the address of a service.
        check: send a test message first, and add nothing if it is not taken.
    """

    name: str
    values: Mapping[str, Any]
    secret: Secret | None = None
    check: bool = True


@dataclass(frozen=True)
class Shown:
    """All that ``notify list`` shows."""

    channels: Mapping[str, ChannelConfig]
    outbox: Outbox
    alerts: list[Alert]
    heartbeat: bool
    config: Config = field(repr=False)

    def health(self, name: str) -> Health:
        return self.outbox.health(name)

    def waiting(self, name: str) -> int:
        return sum(one.channel == name for one in self.outbox.waiting)


def add(context: Context, options: ChannelOptions) -> ChannelConfig:
    """Enter a channel in the configuration after a test message.

    Raises: UsageError, ConfigurationError; NotSent, when the test message was not taken; nothing is changed then.
    """
    check_name("channel", options.name)
    if options.name in context.config().channels:
        raise UsageError(
            f"add channel: {options.name} exists already",
            hint=f"Remove it first with `datamanager notify remove {options.name}`, or choose another name.",
        )
    editor = context.edit()
    for option, value in options.values.items():
        if value is not None:
            editor.set(("channels", options.name, option), value)
    config = editor.checked().channels[options.name]
    if config.kind is ChannelKind.URL and options.secret is not None:
        urls.check_url(options.secret)
    if config.needs_secret and options.secret is None:
        what = "address of the service" if config.kind is ChannelKind.URL else "password of the mail account"
        raise UsageError(f"add channel: the {what} is missing", hint="Give it in a file or on standard input.")
    if options.check:
        _must_take(context, Channel(options.name, config, options.secret))
    path = context.home.channel_secret(options.name)
    if options.secret is not None and config.needs_secret:
        make_private_folder(path.parent)
        path.unlink(missing_ok=True)  # of a channel that was removed by hand
        write_secret_file(path, options.secret.reveal() + b"\n", "secret of the channel")
    try:
        editor.save()
    except ConfigurationError:
        path.unlink(missing_ok=True)
        raise
    audited(context, "channel added", options.name, after=config.model_dump(mode="json", exclude_none=True))
    return config


def remove(context: Context, name: str) -> None:
    """Forget a channel and its secret; what waits for it is dropped. Raises: NotFound, ConfigurationError."""
    before = _config(context, name)
    editor = context.edit()
    editor.remove(("channels", name))
    editor.save()
    with contextlib.suppress(FileNotFoundError):
        context.home.channel_secret(name).unlink()
    audited(context, "channel removed", name, before=before.model_dump(mode="json", exclude_none=True))


def try_out(context: Context, name: str | None) -> dict[str, Report]:
    """Send a test message now, over one channel or all at once. Raises: NotFound, ConfigurationError."""
    wanted = {name: _config(context, name)} if name is not None else dict(context.config().channels)
    courier = Courier()
    for one, config in wanted.items():
        _begin_test(context, courier, channel(context.home, one, config))
    # A report of an attempt that passed its time comes before one that was merely late.
    return dict(reversed(courier.reports(_longest(wanted))))


def listed(context: Context) -> Shown:
    """The channels, how each does, and what is told now. Raises: ConfigurationError, StateError."""
    config = context.config()
    with context.state() as state:
        outbox, alerts = from_text(state.alerts.value(NAME)), state.alerts.open()
    # Where the keys may not be looked at, what is known of its attempts tells.
    heartbeat = outbox.pinged is not None
    with contextlib.suppress(OSError):
        heartbeat = context.home.heartbeat_secret.exists()
    return Shown(dict(sorted(config.channels.items())), outbox, alerts, heartbeat, config)


def acknowledge(context: Context, key: str | None) -> list[Alert]:
    """Say that what is told was noticed, so that it is not repeated; all of it when ``key`` is None.

    Args: key - of an open alert, or the beginning of only one.
    Raises: NotFound, UsageError, StateError.
    """
    with context.state() as state:
        opened = [alert for alert in state.alerts.open() if alert.acknowledged is None]
        fits = [alert for alert in opened if key is None or alert.key == key]
        fits = fits or [alert for alert in opened if key and alert.key.startswith(key)]
        if key is not None and not fits:
            raise NotFound(
                f"acknowledge: nothing that is told now is named {key!r}",
                hint=f"There is: {', '.join(repr(alert.key) for alert in opened) or 'nothing'}.",
            )
        if key is not None and len(fits) > 1:
            raise UsageError(f"acknowledge: several begin with {key!r}", hint="Give more of its name.")
        done = [state.alerts.acknowledge(alert.key, who()) for alert in fits]
    for alert in done:
        audited(context, "alert acknowledged", alert.key)
    return done


def set_heartbeat(context: Context, url: Secret, *, check: bool = True) -> None:
    """Ask for this address every minute from now on. Raises: UsageError; NotSent, when it does not answer now."""
    check_heartbeat(url.reveal().decode(errors="replace"))
    if check:
        courier = Courier()
        courier.begin("heartbeat", partial(ping, url, well=True), TIMEOUT_SECONDS)
        for _, report in courier.reports(TIMEOUT_SECONDS + 1):
            if report.trouble:
                raise NotSent(
                    f"ask heartbeat address: {report.trouble}", hint="Check the address; nothing was changed."
                )
    path = context.home.heartbeat_secret
    make_private_folder(path.parent)
    path.unlink(missing_ok=True)
    write_secret_file(path, url.reveal() + b"\n", "heartbeat address")
    audited(context, "heartbeat set", "heartbeat")


def remove_heartbeat(context: Context) -> None:
    """Ask for no address any more. Raises: NotFound."""
    try:
        context.home.heartbeat_secret.unlink()
    except FileNotFoundError:
        raise NotFound("remove heartbeat: none is set", hint="Set one with `datamanager notify heartbeat`.") from None
    audited(context, "heartbeat removed", "heartbeat")


def told_when(shown: Shown, alert: Alert) -> str:
    """Since when an alert is open, in words."""
    return moment(alert.first_seen, zone_of(shown.config))


def _config(context: Context, name: str) -> ChannelConfig:
    channels = context.config().channels
    if name not in channels:
        raise NotFound(
            f"find channel: none is named {name!r}",
            hint=f"The channels here are: {', '.join(sorted(channels))}."
            if channels
            else "Add one with `datamanager notify add NAME`.",
        )
    return channels[name]


def _must_take(context: Context, one: Channel) -> None:
    """Raises: NotSent, when a test message is not taken for everybody."""
    courier = Courier()
    _begin_test(context, courier, one)
    for _, report in courier.reports(_longest({one.name: one.config})):
        if report.trouble:
            raise NotSent(
                f"send test message: {report.trouble}",
                hint="Nothing was changed. Use --no-check to add it all the same.",
            )


def _begin_test(context: Context, courier: Courier, one: Channel) -> None:
    courier.begin(one.name, partial(one.send, [Waiting(_test_message(context, one), one.name)]), _limit(one.config))


def _longest(channels: Mapping[str, ChannelConfig]) -> float:
    return max((_limit(one) for one in channels.values()), default=0.0) + 1


def _limit(config: ChannelConfig) -> float:
    return float(config.timeout_seconds)


def _test_message(context: Context, one: Channel) -> Message:
    sender = sender_of(context.config())
    now = context.clock.now()
    said = Said(
        title="Test message",
        happened=f"Someone tried the channel {one.name}.",
        means="Messages of DataManager for PostgreSQL reach you here.",
        next_step="Nothing. If you did not expect this, ask whoever looks after the backups.",
    )
    title, body = title_of(sender, said.title), body_of(sender, said)
    return Message(f"test@{now.isoformat()}", "test", NotifyEvent.ALL, title, body, now)
