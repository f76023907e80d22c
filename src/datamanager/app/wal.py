"""Archiving the WAL of a cluster: preparing its server, and ending it all again.

prepare   a limit for slots on the server (offered by ``cli/wal.py``), then the slot
receive   ``wal_receiving.py``: one process a cluster, under a lock, until it is asked to end
stop      commits wait no more, the service lets it be, the receiver ends, perhaps the slot goes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datamanager.app import wal_settings
from datamanager.app.addresses import address_of
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.opening import Named, Unlocking, choose, opened
from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.base.errors import Busy, ConfigurationError, DataManagerError, UsageError
from datamanager.config.home import make_private_folder
from datamanager.config.model import ClusterConfig
from datamanager.postgres.settings import PutBack
from datamanager.postgres.wal.slot import SlotKeeper, slot_name
from datamanager.system.locks import held

_END_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """What ``stop`` did. Args: was_running - a receiver was ended; dropped - slots that went."""

    was_running: bool
    was_enabled: bool
    put_back: PutBack
    dropped: tuple[str, ...]


# -- prepare -----------------------------------------------------------------------------------------------------------
def slot_of(context: Context, name: str, named: Named, unlocking: Unlocking) -> str:
    """The replication slot of a cluster for a repository. Raises: as ``opened``."""
    configured = context.cluster(name).wal_slot
    if configured is not None:
        return configured
    with opened(context, named, unlocking) as repository:
        return slot_name(name, repository.id)


def make_slot(context: Context, name: str, slot: str) -> bool:
    """Make the slot of a cluster's archive; false where it is there already.

    Raises: ServerUnfit (no limit is set, no slot left), RightMissing; as ``connect``.
    """
    note_slot(context, name, slot)
    with SlotKeeper.opened(address_of(context.cluster(name)), slot, context.stop, context.executed) as keeper:
        state = keeper.state()
        if state is not None and not state.lost:
            return False
        if state is not None:
            keeper.drop()
        keeper.create()
    audited(context, "replication slot made", name, after={"slot": slot})
    return True


def enable(context: Context, name: str, *, synchronous: bool, interval_seconds: float | None) -> None:
    """Let ``serve`` archive the WAL of a cluster. Raises: NotFound, ConfigurationError."""
    before = context.cluster(name)
    editor = context.edit()
    section = ("clusters", name)
    editor.set((*section, "wal"), True)
    if synchronous:
        editor.set((*section, "wal_synchronous"), True)
    if interval_seconds is not None:
        editor.set((*section, "wal_interval"), interval_seconds)
    after = editor.save().clusters[name]
    audited(context, "WAL archive enabled", name, before=_told(before), after=_told(after))


def _told(cluster: ClusterConfig) -> dict[str, object]:
    return {option: value for option, value in cluster.model_dump(mode="json").items() if option.startswith("wal")}


def note_slot(context: Context, name: str, slot: str) -> None:
    """Write down, durably, that a cluster has a slot of that name. Raises: ConfigurationError."""
    make_private_folder(context.home.wal)
    try:
        WalFiles.of(context.home, name).note_slot(slot)
    except OSError as error:
        raise ConfigurationError(
            f"write {context.home.wal}: {(error.strerror or 'not possible').lower()}",
            hint="A slot is made only when it can be written down, so that it can be dropped again.",
        ) from error


def whose(files: WalFiles) -> str:
    """Which process the receiver is, for messages."""
    beat = read_wal_beat(files.beat)
    return "" if beat is None else f" (process {beat.process.pid})"


# -- end ---------------------------------------------------------------------------------------------------------------
def stop(context: Context, name: str, *, drop_slot: bool) -> Stopped:
    """End archiving a cluster's WAL, for the service, too. Commits are let go before the receiver ends.

    Raises: NotFound, ServerUnreachable, RightMissing (nothing was changed); Busy (it did not end); ServerUnfit (the
        slot is in use).
    """
    before = context.cluster(name)
    put_back = wal_settings.turn_off_synchronous(context, name)
    if before.wal or before.wal_synchronous:
        editor = context.edit()
        editor.set(("clusters", name, "wal"), None)
        editor.set(("clusters", name, "wal_synchronous"), None)
        editor.save()
        audited(context, "WAL archive disabled", name, before=_told(before))
    was_running = _end_receiver(context, name)
    if before.wal_synchronous:
        # A receiver that the service began in between may have let commits wait once more.
        again = wal_settings.turn_off_synchronous(context, name)
        put_back = again if again.restored else put_back
    dropped = tuple(drop_slots(context, name)) if drop_slot else ()
    return Stopped(was_running, before.wal, put_back, dropped)


def _end_receiver(context: Context, name: str) -> bool:
    """Ask the receiver of a cluster to end, and wait for it. Raises: Busy, Cancelled."""
    files = WalFiles.of(context.home, name)
    if not files.folder.is_dir():
        return False
    with held(files.lock, context.stop, limit_seconds=0) as free:
        if free:
            return False
    try:
        files.stop.touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(f"write {files.stop}: {(error.strerror or 'not possible').lower()}") from error
    with held(files.lock, context.stop, limit_seconds=_END_SECONDS) as free:
        files.stop.unlink(missing_ok=True)
        if not free:
            raise Busy(f"stop the WAL archive of {name}: its receiver has not ended{whose(files)}")
    return True


def drop_slots(context: Context, name: str, *, but: str = "") -> Iterator[str]:
    """Drop every slot that was made for a cluster's archive.

    Args: but - one that stays: the others are of repositories that it went to before.
    Raises: ServerUnfit (one is in use), RightMissing; as ``connect``.
    """
    files = WalFiles.of(context.home, name)
    configured = context.cluster(name).wal_slot
    for slot in dict.fromkeys([*files.slot_names(), *([configured] if configured else [])]):
        if slot == but:
            continue
        with SlotKeeper.opened(address_of(context.cluster(name)), slot, context.stop, context.executed) as keeper:
            dropped = keeper.drop()
        with contextlib.suppress(OSError):
            files.forget_slot(slot)
        if dropped:
            audited(context, "replication slot dropped", name, before={"slot": slot})
            yield slot


@dataclass(frozen=True, slots=True)
class Released:
    """What became of a cluster's archive when the cluster was removed. Args: warnings - what could not be undone."""

    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def release(context: Context, name: str) -> Released:
    """Before a cluster is removed: let commits go, end its receiver, drop its slots. What fails becomes a warning.

    Raises: NotFound, Cancelled.
    """
    files = WalFiles.of(context.home, name)
    if not context.cluster(name).wal and not files.slots.exists() and not files.beat.exists():
        return Released()
    dropped: list[str] = []
    warnings: list[str] = []
    steps: list[Callable[[], object]] = [
        lambda: stop(context, name, drop_slot=False),
        lambda: dropped.extend(drop_slots(context, name)),
    ]
    for step in steps:
        try:
            step()
        except DataManagerError as error:
            context.stop.check()
            warnings.append(f"{error.message}. {error.hint}".strip())
    left = files.slot_names()
    if left:
        words = " ".join(f"`SELECT pg_drop_replication_slot('{one}');`" for one in left)
        warnings.append(f"a replication slot stays on the server, and keeps WAL there; run there: {words}")
    files.remove()
    return Released(tuple(dropped), tuple(warnings))


def require_own_repository(context: Context, name: str, repository: str | None) -> None:
    """The service archives to the cluster's own repository. Raises: UsageError, NotFound."""
    if repository is None:
        return
    if choose(context, repository, name).config != choose(context, None, name).config:
        raise UsageError(
            f"enable the WAL archive of {name}: the service archives to the cluster's own repository",
            hint=f"Run `datamanager cluster set {name} repository={repository}` first.",
        )
