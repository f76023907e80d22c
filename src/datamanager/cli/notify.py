"""``datamanager notify``: who is told what, and over which channels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import NotSent, UsageError
from datamanager.cli.command import FILE, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import channels
    from datamanager.app.channels import Shown
    from datamanager.base.units import Secret
    from datamanager.cli.session import Session
    from datamanager.config import secret_files
    from datamanager.config.model import ChannelConfig
    from datamanager.notify.outbox import Health
else:
    channels = lazy("datamanager.app.channels")
    secret_files = lazy("datamanager.config.secret_files")

command = noun("notify", "Notifications: who is told of failures, and how.")


@command.command(
    "add",
    examples=[
        "datamanager notify add office --smtp mail.example.org --user backup@example.org --password-file mail.pass"
        " --from backup@example.org --to manager@example.org",
        "datamanager notify add phone --url-file address.txt --events failure,overdue",
    ],
)
@click.argument("name")
@click.option("--smtp", "host", metavar="HOST[:PORT]", help="Send e-mail by this mail server.")
@click.option(
    "--security",
    type=click.Choice(["tls", "starttls", "none"]),
    help="How the mail server is spoken to; starttls unless the port is 465.",
)
@click.option("--user", metavar="USER", help="Account at the mail server, where it wants one.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File, readable by you alone, with its password.")
@click.option("--from", "sender", metavar="ADDRESS", help="Address that messages come from.")
@click.option("--to", "recipients", multiple=True, metavar="ADDRESS", help="Address that is told; may be repeated.")
@click.option("--ca-file", type=FILE, metavar="FILE", help="Check the mail server against the certificates in FILE.")
@click.option("--allow-plain", is_flag=True, help="Send the password without TLS, to a server on this computer only.")
@click.option(
    "--url-file",
    type=FILE,
    metavar="FILE",
    help="Use any service that Apprise knows, by the address on this file's first line; - is standard input.",
)
@click.option(
    "--events",
    metavar="EVENT,...",
    help="What it is told of: failure, overdue, recovered, digest; all unless given. Urgent ones go everywhere.",
)
@click.option("--timeout", "timeout_seconds", type=int, metavar="SECONDS", help="Longest time a message may take; 20.")
@click.option("--no-check", is_flag=True, help="Add it without sending a test message.")
def add(
    session: Session,
    name: str,
    host: str | None,
    security: str | None,
    user: str | None,
    password_file: Path | None,
    sender: str | None,
    recipients: tuple[str, ...],
    ca_file: Path | None,
    allow_plain: bool,
    url_file: Path | None,
    events: str | None,
    timeout_seconds: int | None,
    no_check: bool,
) -> Outcome:
    """Add a channel NAME, by e-mail (--smtp) or any service (--url-file), after a test message.

    The password, or the address of the service, is kept in a file of its own beside the keys; without
    --password-file it is asked for, or read as one line from standard input.
    """
    values: dict[str, Any] = {"events": events, "timeout_seconds": timeout_seconds}
    mail = {
        "security": security,
        "user": user,
        "sender": sender,
        "recipients": list(recipients) or None,
        "ca_file": str(ca_file.absolute()) if ca_file else None,
        "allow_plain": allow_plain or None,
    }
    if (host is None) == (url_file is None):
        raise UsageError("add channel: give either --smtp or --url-file", hint="Give --smtp HOST for e-mail.")
    if host is not None:
        values |= {"kind": "smtp", **mail, **_server(host, security)}
        secret = _password(session, password_file) if user else None
    else:
        if given := [option for option, value in mail.items() if value is not None]:
            raise UsageError(
                f"add channel: {given[0].replace('_', '-')} is for e-mail alone", hint="Leave it away, or use --smtp."
            )
        values["kind"] = "url"
        secret = _address(session, url_file)
    added = channels.add(session.context, channels.ChannelOptions(name, values, secret, check=not no_check))
    checked = "" if no_check else " A test message was taken."
    data = {"channel": name, "checked": not no_check, **added.model_dump(mode="json")}
    return Outcome(f"Channel {name} was added.{checked}", data)


def _server(host: str, security: str | None) -> dict[str, Any]:
    """Host and port of ``--smtp``, and TLS from the first byte on the port that is for it."""
    name, colon, port = host.rpartition(":")
    if not colon or (host.count(":") > 1 and not host.startswith("[")):
        return {"host": host}
    if not port.isdigit():
        raise UsageError(f"read --smtp: {port!r} is not a port", hint="Write it as mail.example.org:587.")
    number = int(port)
    return {"host": name, "port": number, "security": security or ("tls" if number == 465 else "starttls")}


def _password(session: Session, file: Path | None) -> Secret:
    if file is not None:
        return session.keep(secret_files.read_secret_line(file, "password file"))
    return session.ask_passphrase("Password of the mail account")


def _address(session: Session, file: Path | None) -> Secret:
    if file is None or str(file) == "-":
        return session.ask_passphrase("Address of the service")
    return session.keep(secret_files.read_secret_line(file, "address file"))


@command.command("list", examples=["datamanager notify list", "datamanager notify list --json"])
def list_(session: Session) -> Outcome:
    """List the channels, how each does, and what is told now."""
    shown = channels.listed(session.context)
    lines = [_line(shown, name, config) for name, config in shown.channels.items()]
    if not lines:
        lines = ["Nobody is told of failures. Add a channel with `datamanager notify add NAME`."]
    if shown.heartbeat:
        lines.append(f"heartbeat: {_how(shown.outbox.heartbeat, 0)}")
    for alert in shown.alerts:
        noticed = f"; acknowledged by {alert.acknowledged_by}" if alert.acknowledged else ""
        lines.append(f"told now: {alert.title}, since {channels.told_when(shown, alert)} ({alert.key}){noticed}")
    troubles = [
        f"channel {name}: {shown.health(name).trouble}" for name in shown.channels if shown.health(name).trouble
    ]
    if shown.heartbeat and shown.outbox.heartbeat.trouble:
        troubles.append(f"heartbeat: {shown.outbox.heartbeat.trouble}")
    data = {
        "channels": [
            {
                "channel": name,
                **config.model_dump(mode="json"),
                **_fields(shown.health(name)),
                "waiting": shown.waiting(name),
            }
            for name, config in shown.channels.items()
        ],
        "heartbeat": _fields(shown.outbox.heartbeat) if shown.heartbeat else None,
        "alerts": [
            {
                "key": alert.key,
                "title": alert.title,
                "urgent": alert.urgent,
                "since": alert.first_seen.isoformat(),
                "sent": alert.sent.isoformat() if alert.sent else None,
                "acknowledged_by": alert.acknowledged_by,
            }
            for alert in shown.alerts
        ],
    }
    return Outcome("\n".join(lines), data, troubles)


def _line(shown: Shown, name: str, config: ChannelConfig) -> str:
    where = f"e-mail to {', '.join(config.recipients)} by {config.host}" if config.kind == "smtp" else "a service"
    return f"{name}: {where}; {', '.join(config.events)}; {_how(shown.health(name), shown.waiting(name))}"


def _how(health: Health, waiting: int) -> str:
    words = [f"last taken {health.sent:%Y-%m-%d %H:%M} UTC" if health.sent else "nothing sent yet"]
    if health.trouble:
        words.append(f"{health.failures} failed in a row")
    if waiting:
        words.append(f"{waiting} waiting")
    if health.given_up:
        words.append(f"{health.given_up} given up after a day")
    return ", ".join(words)


def _fields(health: Health) -> dict[str, Any]:
    return {
        "sent": health.sent.isoformat() if health.sent else None,
        "trouble": health.trouble,
        "failures": health.failures,
        "retry": health.retry.isoformat() if health.retry else None,
        "given_up": health.given_up,
    }


@command.command("test", examples=["datamanager notify test", "datamanager notify test office"])
@click.argument("name", required=False)
def test(session: Session, name: str | None) -> Outcome:
    """Send a test message now, over one channel or all of them."""
    reports = channels.try_out(session.context, name)
    if not reports:
        raise UsageError("test channels: there is none", hint="Add one with `datamanager notify add NAME`.")
    bad = {one: report.trouble for one, report in reports.items() if report.trouble}
    lines = [f"{one}: {f'not taken: {bad[one]}' if one in bad else 'taken'}" for one in sorted(reports)]
    data = {
        "tested": [{"channel": one, "taken": one not in bad, "trouble": bad.get(one, "")} for one in sorted(reports)]
    }
    failure = None
    if bad:
        one, trouble = next(iter(bad.items()))
        failure = NotSent(f"send test message: {one}: {trouble}")
    return Outcome("\n".join(lines), data, failure=failure)


@command.command("remove", examples=["datamanager notify remove office"])
@click.argument("name")
def remove(session: Session, name: str) -> Outcome:
    """Forget a channel and its password or address; messages that wait for it are dropped."""
    channels.remove(session.context, name)
    return Outcome(f"Channel {name} was removed.", {"channel": name})


@command.command(
    "acknowledge",
    examples=["datamanager notify acknowledge found:service:HL7", "datamanager notify acknowledge --all"],
)
@click.argument("key", required=False)
@click.option("--all", "everything", is_flag=True, help="Acknowledge all that is told now.")
def acknowledge(session: Session, key: str | None, everything: bool) -> Outcome:
    """Say that you know of what is told, so that it is not repeated. KEY is what `notify list` shows, or its beginning.

    You are still told when it is over.
    """
    if (key is None) != everything:
        raise UsageError("acknowledge: give either a KEY or --all", hint="`datamanager notify list` shows the keys.")
    done = channels.acknowledge(session.context, key)
    text = "\n".join(f"Acknowledged: {alert.title}." for alert in done) or "Nothing is told now."
    return Outcome(text, {"acknowledged": [alert.key for alert in done]})


@command.command(
    "heartbeat",
    examples=["datamanager notify heartbeat --url-file address.txt", "datamanager notify heartbeat --remove"],
)
@click.option(
    "--url-file", type=FILE, metavar="FILE", help="The address on this file's first line; - is standard input."
)
@click.option("--remove", "away", is_flag=True, help="Ask for no address any more.")
@click.option("--no-check", is_flag=True, help="Set it although it may not answer now.")
def heartbeat(session: Session, url_file: Path | None, away: bool, no_check: bool) -> Outcome:
    """Ask for a web address every minute, so that a service elsewhere notices when this computer is silent.

    While something is wrong, the address with /fail at its end is asked for, as healthchecks.io has it.
    """
    if away:
        if url_file is not None or no_check:
            raise UsageError("set heartbeat: --remove stands alone", hint="Give --remove, or --url-file FILE.")
        channels.remove_heartbeat(session.context)
        return Outcome("No heartbeat is sent any more.", {"heartbeat": False})
    channels.set_heartbeat(session.context, _address(session, url_file), check=not no_check)
    return Outcome("A heartbeat is sent every minute while `datamanager serve` runs.", {"heartbeat": True})
