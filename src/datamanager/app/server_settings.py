"""Settings of a server that backups gain from: offered, changed when accepted, put back with the cluster's removal.

Only summarize_wal and wal_summary_keep_time so far, without which no backup can be an increment (from 17 on).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datamanager.app.addresses import address_of
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.settings_journal import ChangedServer, SettingsJournal
from datamanager.base.errors import ConfigurationError, DataManagerError, RightMissing, ServerUnfit
from datamanager.config.model import ClusterConfig
from datamanager.postgres.settings import (
    PutBack,
    SettingChange,
    apply_settings,
    plan_settings,
    put_back,
    to_run,
)
from datamanager.postgres.wal_summaries import SUMMARIES_OFF, Summaries, read_summaries

# Three drives that change weekly, and a holiday: the oldest drive's backup must still be a parent (decision 20).
KEEP_AT_LEAST_SECONDS = 45 * 86400
KEEP = "60d"
_SERVER_WORDS = ("host", "hostaddr", "port", "service")
WHY = "Short backups (increments) need WAL summaries, and summarize_wal is off on this server: each backup reads all."


@dataclass(frozen=True)
class Offer:
    """What could be changed on a cluster's server, and why.

    Args:
        sentence: why, for people.
        changes: what accepting does; empty when it cannot be done from here.
        remedy: a sentence with what to run when nothing is changed now.
        refusal: why it cannot be done from here.
    """

    server: ChangedServer
    sentence: str
    changes: tuple[SettingChange, ...] = ()
    remedy: str = ""
    refusal: DataManagerError | None = None

    @property
    def wanted(self) -> dict[str, str]:
        return {one.name: one.after for one in self.changes}


@dataclass(frozen=True)
class Released:
    """What became of our changes when a cluster was removed.

    Args:
        result: restored, and changed by somebody else since.
        kept: left as they are; ``why`` says why.
        to_run: what a person can run to put the kept ones back; empty when that is not meant.
    """

    result: PutBack = field(default_factory=PutBack)
    kept: tuple[SettingChange, ...] = ()
    why: str = ""
    to_run: str = ""


def switch_on_command(name: str) -> str:
    """The one command that makes increments possible."""
    return f"datamanager cluster check {name} --enable-increments"


def remedy_for(name: str, reason: str) -> str:
    """What makes the backups after one that read everything for ``reason`` short; empty where no command does."""
    return f"Run `{switch_on_command(name)}` to make the next ones short." if reason == SUMMARIES_OFF else ""


def offer(context: Context, name: str) -> Offer | None:
    """What would make the backups of a cluster short; None when nothing is lacking or nothing would help.

    Raises: NotFound, ConfigurationError, ServerUnreachable, Cancelled.
    """
    cluster = context.cluster(name)
    address = address_of(cluster)
    summaries = read_summaries(address, context.stop, context.executed)
    if not summaries.supported or summaries.enabled or summaries.in_recovery:
        return None
    server = ChangedServer(name, address.describe(), summaries.system_identifier)
    if summaries.wal_level == "minimal":
        # With both, the server would not start again: "WAL cannot be summarized when wal_level is minimal".
        first = "`ALTER SYSTEM SET wal_level = replica;`"
        return Offer(server, WHY, remedy=f"First run {first} and restart; with wal_level = minimal it cannot be on.")
    try:
        changes = plan_settings(address, context.stop, context.executed, wanted_settings(summaries))
    except (RightMissing, ServerUnfit) as refusal:
        return Offer(server, WHY, remedy=refusal.hint, refusal=refusal)
    return Offer(server, WHY, tuple(changes), f"Run `{switch_on_command(name)}` to switch it on, without a restart.")


def wanted_settings(summaries: Summaries) -> dict[str, str]:
    """The settings to change, for a server that keeps no summaries."""
    wanted = {"summarize_wal": "on"}
    if summaries.keep_seconds and summaries.keep_seconds < KEEP_AT_LEAST_SECONDS:  # 0 keeps them for ever
        wanted["wal_summary_keep_time"] = KEEP
    return wanted


def accept(context: Context, made: Offer) -> list[SettingChange]:
    """Change what was offered, written down before and after.

    Raises: RightMissing, ServerUnfit (all is as before); ServerUnreachable, ConfigurationError, Cancelled.
    """
    journal = SettingsJournal(context.home, context.clock)
    address = address_of(context.cluster(made.server.cluster))
    journal.write("begun", made.server, made.changes)
    try:
        changed = apply_settings(address, context.stop, context.executed, made.changes)
    except (RightMissing, ServerUnfit):
        journal.write("refused", made.server, made.changes)
        raise
    journal.write("set", made.server, changed)
    audited(
        context,
        "server settings changed",
        made.server.cluster,
        before={one.name: one.before for one in changed},
        after={one.name: one.after for one in changed},
    )
    return changed


def release(context: Context, name: str, *, keep: bool) -> Released:
    """Put back, before a cluster is removed, what is still as we set it on its server.

    Raises: NotFound, ConfigurationError (the journal), Cancelled. A server that cannot be asked is no error.
    """
    journal = SettingsJournal(context.home, context.clock)
    cluster = context.cluster(name)
    server, changes = journal.outstanding(name)
    if server is None or not changes:
        return Released()
    why = "as asked" if keep else _shared_with(context, name, cluster)
    if why:
        journal.write("left", server, changes)
        return Released(kept=tuple(changes), why=why)
    statements = to_run(one.undo for one in changes)
    try:
        result = _put_back(context, cluster, server, changes)
    except DataManagerError as error:
        context.stop.check()
        journal.write("left", server, changes)
        return Released(kept=tuple(changes), why=error.message, to_run=statements)
    journal.write("put back", server, result.restored)
    journal.write("left", server, result.left)
    return Released(result)


def _put_back(context: Context, cluster: ClusterConfig, server: ChangedServer, changes: list[SettingChange]) -> PutBack:
    """Raises: as ``postgres.settings.put_back``; ConfigurationError."""
    address = address_of(cluster)
    found = read_summaries(address, context.stop, context.executed)
    if None not in (server.system_identifier, found.system_identifier) and (
        server.system_identifier != found.system_identifier
    ):
        raise ConfigurationError("put settings back: another server is at this address now")
    return put_back(address, context.stop, context.executed, changes)


def _shared_with(context: Context, name: str, cluster: ClusterConfig) -> str:
    """Why the settings are still needed: another cluster here is the same server; empty when none is."""
    for other, config in context.config().clusters.items():
        if other != name and _server_words(config) == _server_words(cluster):
            return f"cluster {other} is the same server and needs them"
    return ""


def _server_words(cluster: ClusterConfig) -> list[str]:
    """What of a connection string names the server. Raises: ConfigurationError."""
    parameters = address_of(cluster.model_copy(update={"password_file": None})).parameters()
    return [parameters.get(word, "") for word in _SERVER_WORDS]
