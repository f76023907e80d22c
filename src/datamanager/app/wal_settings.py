"""Settings of a server that its WAL archive needs: a limit for slots, and commits that wait for the archive.

``max_slot_wal_keep_size`` is offered before a slot is made and goes back with the cluster's removal.
``synchronous_standby_names`` goes back first of all, so that no commit waits for a receiver that is about to end.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamanager.app import server_settings
from datamanager.app.addresses import address_of, local_directory
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.server_settings import Offer
from datamanager.app.settings_journal import ChangedServer, SettingsJournal
from datamanager.base.errors import RightMissing, ServerUnfit
from datamanager.postgres.settings import PutBack, SettingChange, plan_settings, put_back
from datamanager.postgres.wal.slot import how_to_limit, plan_limit, receiver_name
from datamanager.postgres.wal.watch import SYNCHRONOUS, watch_wal

LIMIT_WHY = (
    "The slot of a WAL archive keeps WAL on the server while nobody fetches it, and no limit is set: were DataManager "
    "switched off, the server's disk would fill."
)
SYNCHRONOUS_WARNING = (
    "Once the archive has caught up, commits wait until their WAL is in the repository; while DataManager or the "
    "repository's drive is down, they wait, too."
)


def offer_limit(context: Context, name: str, slot: str) -> Offer | None:
    """The limit that must be set before a slot is made; None where one is set.

    Raises: NotFound, ConfigurationError, ServerUnreachable, Cancelled.
    """
    address = address_of(context.cluster(name))
    found = watch_wal(address, slot, context.stop, context.executed)
    if found.limit is not None:
        return None
    server = ChangedServer(name, address.describe(), found.system)
    directory = local_directory(address, _data_directory(context, name))
    try:
        changes = plan_limit(address, context.stop, context.executed, str(directory or ""))
    except (RightMissing, ServerUnfit) as refusal:
        return Offer(server, LIMIT_WHY, remedy=refusal.hint, refusal=refusal)
    return Offer(server, LIMIT_WHY, tuple(changes), f"Run {how_to_limit()} on the server; it needs no restart.")


def _data_directory(context: Context, name: str) -> str | None:
    configured = context.cluster(name).data_directory
    return None if configured is None else str(configured)


# -- synchronous -------------------------------------------------------------------------------------------------------
def offer_synchronous(context: Context, name: str) -> Offer | None:
    """What lets commits wait for the receiver of a cluster; None where they do already.

    Raises: ServerUnfit (other standbys are named, a standby), RightMissing; as ``watch_wal``.
    """
    address = address_of(context.cluster(name))
    receiver = receiver_name(name)
    found = watch_wal(address, receiver, context.stop, context.executed)
    if found.waits_for(receiver):
        return None
    if found.synchronous_standbys.strip():
        raise ServerUnfit(
            f"let commits wait: {SYNCHRONOUS} names others ({found.synchronous_standbys})",
            hint=f"Add {receiver} to it on the server, as in 'FIRST 2 (standby, {receiver})', and run this again.",
        )
    changes = plan_settings(address, context.stop, context.executed, {SYNCHRONOUS: receiver})
    return Offer(ChangedServer(name, address.describe(), found.system), SYNCHRONOUS_WARNING, tuple(changes))


def turn_on_synchronous(context: Context, name: str) -> list[SettingChange]:
    """Let commits wait for the receiver, which must be connected. Raises: as ``offer_synchronous`` and ``accept``."""
    made = offer_synchronous(context, name)
    return [] if made is None else server_settings.accept(context, made)


def turn_off_synchronous(context: Context, name: str) -> PutBack:
    """Put ``synchronous_standby_names`` back, where we set it.

    Raises: NotFound, ConfigurationError (the journal); ServerUnreachable, RightMissing: it is as it was.
    """
    journal = SettingsJournal(context.home, context.clock)
    server, outstanding = journal.outstanding(name)
    changes = [one for one in outstanding if one.name == SYNCHRONOUS]
    if server is None or not changes:
        return PutBack()
    result = put_back(address_of(context.cluster(name)), context.stop, context.executed, changes)
    journal.write("put back", server, result.restored)
    journal.write("left", server, result.left)
    _audited(context, name, result.restored)
    return result


def _audited(context: Context, name: str, changes: Sequence[SettingChange]) -> None:
    if changes:
        audited(
            context,
            "server settings put back",
            name,
            before={one.name: one.after for one in changes},
            after={one.name: one.before for one in changes},
        )
