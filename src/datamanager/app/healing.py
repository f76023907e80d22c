"""Healing one repository from another."""

from __future__ import annotations

from datamanager.app.audit import audited
from datamanager.app.backups import processors
from datamanager.app.context import Context
from datamanager.app.opening import Named, Unlocking, locate, opened, opened_storage
from datamanager.app.repository_files import refresh_files
from datamanager.base.errors import RepositoryError
from datamanager.engine.heal.run import HealOptions, HealResult, heal_repository
from datamanager.repository import access


def heal(
    context: Context, named: str, source: str, unlocking: Unlocking, source_unlocking: Unlocking, *, dry_run: bool
) -> tuple[str, str, HealResult]:
    """Make whole what is known to be damaged in ``named``, as far as ``source`` has it; returns both titles too.

    Raises: as ``opened``, for both; UsageError.
    """
    ours = locate(context, named)
    theirs = _with_our_key(context, ours, locate(context, source))
    with opened(context, ours, unlocking) as repository, opened(context, theirs, source_unlocking) as other:
        if not dry_run:
            refresh_files(context, repository)
        options = HealOptions(dry_run=dry_run, threads=processors())
        result = heal_repository(repository, other, options, context.stop, context.listener)
    if not dry_run:
        after = {"from": theirs.title, "healed": len(result.healed), "not_healed": len(result.not_healed)}
        audited(context, "repository healed", ours.title, after=after)
    return ours.title, theirs.title, result


def _with_our_key(context: Context, ours: Named, theirs: Named) -> Named:
    """A copy of the same repository that the configuration does not know is opened with the key of the original."""
    if theirs.name or theirs.config.key_file is not None or theirs.config.open:
        return theirs
    with opened_storage(context, ours) as original, opened_storage(context, theirs) as copy:
        try:
            same = access.read_config(original)["repository"] == access.read_config(copy)["repository"]
        except RepositoryError:
            return theirs  # opening it says what is wrong
    if not same:
        return theirs
    own = {"key_file": ours.config.key_file, "open": ours.config.open, "open_reason": ours.config.open_reason}
    return Named("", theirs.config.model_copy(update=own))
