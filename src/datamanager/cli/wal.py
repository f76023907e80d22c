"""``datamanager wal``: the archive of a server's WAL, from which every moment can be restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import ServerUnfit, UsageError
from datamanager.cli import wal_push
from datamanager.cli.command import key_options, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import opening, server_settings, wal, wal_receiving, wal_settings, wal_status
    from datamanager.app.opening import Unlocking
    from datamanager.cli import wal_text
    from datamanager.cli.session import Session
    from datamanager.postgres.settings import SettingChange
else:
    opening = lazy("datamanager.app.opening")
    server_settings = lazy("datamanager.app.server_settings")
    wal = lazy("datamanager.app.wal")
    wal_receiving = lazy("datamanager.app.wal_receiving")
    wal_settings = lazy("datamanager.app.wal_settings")
    wal_status = lazy("datamanager.app.wal_status")
    wal_text = lazy("datamanager.cli.wal_text")

command = noun("wal", "WAL: the archive of a server's log, from which every moment can be restored.")


@command.command(
    "start",
    examples=[
        "datamanager wal start office",
        "datamanager wal start office --enable --yes",
        "datamanager wal start office --synchronous --interval 1",
    ],
)
@click.argument("cluster")
@click.option("--repo", "repository", metavar="REPO", help="Where to; the cluster's repository unless given.")
@click.option("--enable", is_flag=True, help="Let `serve` keep it running from now on, instead of running here.")
@click.option(
    "--synchronous", is_flag=True, help="Let commits wait until their WAL is in the repository, so that none is lost."
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Seal what has come after so many seconds; 3 unless configured.",
)
@click.option(
    "--new-history", is_flag=True, help="The server was put back to an older state: archive what it writes anew."
)
@click.option("--yes", is_flag=True, help="Change settings of the server that this needs, without asking.")
@click.option("--supervised", is_flag=True, hidden=True)
@key_options
def start(
    session: Session,
    cluster: str,
    repository: str | None,
    enable: bool,
    synchronous: bool,
    interval: float | None,
    new_history: bool,
    yes: bool,
    supervised: bool,
    unlocking: Unlocking,
) -> Outcome:
    """Archive the WAL of a cluster until stopped (Ctrl-C), or let the service do it with --enable.

    The server keeps WAL for the archive in a replication slot while nobody fetches it. Before the slot is made,
    max_slot_wal_keep_size must be set, so that this never fills the server's disk; that is offered here.

    With --synchronous, commits wait while DataManager or the repository's drive is down. `datamanager wal stop` ends
    that first of all.
    """
    if enable and new_history:
        raise UsageError(
            "read options: --enable and --new-history contradict each other",
            hint="Run it once with --new-history, end it with Ctrl-C, then give --enable.",
        )
    options = wal_receiving.WalStart(cluster, repository, synchronous, new_history, interval, supervised)
    if supervised:
        wal_receiving.obey_supervisor(session.context)
        wal_receiving.receive(session.context, options, unlocking)
        return Outcome("", {"cluster": cluster}, log="The receiver has ended.", exit_code=0)
    changed = _prepare(session, cluster, repository, unlocking, yes=yes)
    lines = [_changed(one) for one in changed]
    if synchronous:
        lines.append(wal_settings.SYNCHRONOUS_WARNING)
    data: dict[str, Any] = {"cluster": cluster, "settings_changed": [asdict(one) for one in changed]}
    if enable:
        wal.require_own_repository(session.context, cluster, repository)
        wal.enable(session.context, cluster, synchronous=synchronous, interval_seconds=interval)
        text = f"The service archives the WAL of {cluster} from now on; `datamanager wal status {cluster}` shows how."
        return Outcome("\n".join([text, *lines]), {**data, "enabled": True}, log=text)
    for line in lines:
        session.say(line)
    session.say(f"Archiving the WAL of {cluster} until Ctrl-C.")
    wal_receiving.receive(session.context, options, unlocking)
    text = f"The WAL of {cluster} is no longer archived from here; its server keeps what comes in the slot."
    return Outcome(text, {**data, "enabled": False}, exit_code=0)


def _prepare(
    session: Session, cluster: str, repository: str | None, unlocking: Unlocking, *, yes: bool
) -> Sequence[SettingChange]:
    """Let the server limit its slots, and make the slot.

    Raises: ServerUnfit, RightMissing, with what to run; as ``connect``.
    """
    context = session.context
    named = opening.choose(context, repository, cluster)
    slot = wal.slot_of(context, cluster, named, unlocking)
    changed: Sequence[SettingChange] = ()
    made = wal_settings.offer_limit(context, cluster, slot)
    if made is not None:
        if not made.changes:
            raise made.refusal or ServerUnfit("make a slot: no limit is set for slots", hint=made.remedy)
        values = " and ".join(f"{one.name} = {one.after}" for one in made.changes)
        question = f"{made.sentence}\nSet {values} on the server now, without a restart? `cluster remove` puts it back."
        if not (yes or session.confirm(question)):
            raise ServerUnfit(
                f"archive WAL of {cluster}: {made.changes[0].name} is not set, so WAL that is not fetched would fill "
                "the server's disk",
                hint=f"Run this with --yes to set {values}. {made.remedy}",
            )
        changed = server_settings.accept(context, made)
    wal.make_slot(context, cluster, slot)
    return changed


def _changed(one: SettingChange) -> str:
    return f"On the server {one.name} is now {one.shown_after} (was {one.shown_before})."


@command.command("stop", examples=["datamanager wal stop office", "datamanager wal stop office --drop-slot"])
@click.argument("cluster")
@click.option("--drop-slot", is_flag=True, help="Drop the replication slot, so that the server keeps no WAL for it.")
def stop(session: Session, cluster: str, drop_slot: bool) -> Outcome:
    """End archiving the WAL of a cluster, here and by the service. What is archived stays.

    Where commits waited for the archive, that ends first. Without --drop-slot the server keeps WAL from here on, up to
    max_slot_wal_keep_size, so that the archive can go on later without a gap.
    """
    done = wal.stop(session.context, cluster, drop_slot=drop_slot)
    lines = [f"The WAL of {cluster} is no longer archived."]
    if not (done.was_running or done.was_enabled):
        lines = [f"The WAL of {cluster} was not being archived."]
    lines += [f"{one.name} is {one.shown_before!r} again: commits wait no more." for one in done.put_back.restored]
    lines += [f"Somebody else has changed {one.name} of the server since, so it stays." for one in done.put_back.left]
    lines += [f"Replication slot {one} was dropped." for one in done.dropped]
    if not drop_slot:
        lines.append("The server keeps its WAL from here on, up to its limit; --drop-slot ends that.")
    data = {
        "cluster": cluster,
        "was_running": done.was_running,
        "was_enabled": done.was_enabled,
        "settings_put_back": [asdict(one) for one in done.put_back.restored],
        "slots_dropped": list(done.dropped),
    }
    return Outcome("\n".join(lines), data)


@command.command("status", examples=["datamanager wal status", "datamanager wal status office --json"])
@click.argument("cluster", required=False)
@click.option("--repo", "repository", metavar="REPO", help="Where it is; the cluster's repository unless given.")
@key_options
def status(session: Session, cluster: str | None, repository: str | None, unlocking: Unlocking) -> Outcome:
    """Which moments can be restored, how old the newest byte is, and how receiver and slot are."""
    found = _archives(session, cluster, repository, unlocking)
    now = session.context.clock.now()
    lines = [line for one in found for line in wal_text.status_lines(one, now)]
    data = {"archives": [wal_text.status_fields(one, now) for one in found]}
    return Outcome("\n".join(lines) or wal_text.NOTHING, data)


@command.command("gaps", examples=["datamanager wal gaps", "datamanager wal gaps office --json"])
@click.argument("cluster", required=False)
@click.option("--repo", "repository", metavar="REPO", help="Where it is; the cluster's repository unless given.")
@key_options
def gaps(session: Session, cluster: str | None, repository: str | None, unlocking: Unlocking) -> Outcome:
    """Where WAL is missing: no backup from before a gap can be restored to a moment behind it."""
    found = _archives(session, cluster, repository, unlocking)
    now = session.context.clock.now()
    lines = [line for one in found for line in wal_text.gap_lines(one, now)]
    data = {"gaps": [{"cluster": one.cluster, **wal_text.gap_fields(gap)} for one in found for gap in one.gaps]}
    return Outcome("\n".join(lines) or wal_text.NOTHING, data)


def _archives(
    session: Session, cluster: str | None, repository: str | None, unlocking: Unlocking
) -> list[wal_status.ArchiveStatus]:
    """Of the cluster named, or of all that have one."""
    context = session.context
    names = [cluster] if cluster else wal_status.clusters_with_archive(context)
    return [wal_status.status(context, name, repository, unlocking) for name in names]


command.add_command(wal_push.push)
