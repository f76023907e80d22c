"""Giving back the room of what no backup needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.expiry import window_of
from datamanager.app.opening import Unlocking, choose, opened, sweep_leftovers
from datamanager.app.wal_beat import read_wal_beat
from datamanager.engine.prune.run import PruneOptions, PruneResult, prune_repository
from datamanager.engine.wal.pruning import WalPruneOptions, WalPruneResult, prune_wal


@dataclass(frozen=True)
class Pruned:
    """What was done, or would be: with backups, and with the WAL behind them."""

    title: str
    backups: PruneResult
    wal: WalPruneResult


def prune(context: Context, named: str | None, options: PruneOptions, unlocking: Unlocking) -> Pruned:
    """Prune a repository, and remove what killed runs left half written there a day ago.

    Raises: as ``opened``, ``prune_repository`` and ``prune_wal``.
    """
    found = choose(context, named, None)
    with opened(context, found, unlocking) as repository:
        result = prune_repository(repository, options, context.stop, context.listener)
        gone = result.plan.backups if options.dry_run and result.exclusive else ()
        wal_options = WalPruneOptions(_windows(context), _lines_in_use(context), gone, options.dry_run)
        wal = prune_wal(repository, wal_options, context.stop, context.listener)
        if not options.dry_run:
            sweep_leftovers(found)
            after = {
                "freed_bytes": result.freed_bytes,
                "later_bytes": result.later_bytes,
                "objects_deleted": result.objects_deleted,
                "wal_freed_bytes": wal.bytes,
            }
            audited(context, "repository pruned", found.title, after=after)
    return Pruned(found.title, result, wal)


def _windows(context: Context) -> dict[str, timedelta | None]:
    """How far back each cluster's WAL must reach. Raises: ConfigurationError."""
    return {name: window_of(one) for name, one in context.config().clusters.items()}


def _lines_in_use(context: Context) -> set[str]:
    """The lines that receivers of this home write, or wrote last."""
    beats = [read_wal_beat(path) for path in context.home.wal.glob("*.json")]
    return {beat.progress.line for beat in beats if beat is not None}
