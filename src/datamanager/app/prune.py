"""Giving back the room of what no backup needs any more."""

from __future__ import annotations

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, opened, sweep_leftovers
from datamanager.engine.prune.run import PruneOptions, PruneResult, prune_repository


def prune(context: Context, named: str | None, options: PruneOptions, unlocking: Unlocking) -> tuple[str, PruneResult]:
    """Prune a repository, and remove what killed runs left half written there a day ago.

    Returns: its name and what was done. Raises: as ``opened`` and ``prune_repository``.
    """
    found = choose(context, named, None)
    with opened(context, found, unlocking) as repository:
        result = prune_repository(repository, options, context.stop, context.listener)
        if not options.dry_run:
            sweep_leftovers(found)
            after = {
                "freed_bytes": result.freed_bytes,
                "later_bytes": result.later_bytes,
                "objects_deleted": result.objects_deleted,
            }
            audited(context, "repository pruned", found.title, after=after)
    return found.title, result
