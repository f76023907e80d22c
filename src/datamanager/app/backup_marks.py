"""Deleting single backups, taking that back, and pinning, each under a lease: nobody else marks meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.expiry import check_lease, lease_for
from datamanager.app.opening import Named, Unlocking, choose_holding, opened
from datamanager.app.retained import clusters_of, deleted_in, put_deleted
from datamanager.base.errors import IntegrityError, NotFound, UsageError
from datamanager.base.events import PhaseStarted
from datamanager.engine.presence import require_pages
from datamanager.engine.retention import Candidate, Loss, losses
from datamanager.repository.lease import Lease
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED, PIN, UNDELETED, UNPIN, Mark
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

_PATIENCE_SECONDS = 60.0  # for an expire at work; it takes seconds


@dataclass(frozen=True)
class Deletion:
    """Which backups, as people name them.

    Args:
        repository: None for the one that holds the first backup.
        force: delete pinned ones, too.
        confirm: ids, whole or their last eight characters, of last backups that may go.
    """

    backups: tuple[str, ...]
    repository: str | None = None
    force: bool = False
    confirm: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass
class DeletionPlan:
    """What would be lost. Valid until its context ends."""

    repository: Named
    going: list[Candidate]
    lost: dict[str, Loss]
    _opened: Repository
    _lease: Lease | None
    marked: list[str] = field(default_factory=list)

    def apply(self) -> None:
        """Mark the backups as deleted. Raises: Busy (the lease was lost), StoreError."""
        if self._lease is None:
            return
        check_lease(self._lease)
        unpinned = [one.backup for one in self.going if one.pin is None]
        forced = [one.backup for one in self.going if one.pin is not None]
        self.marked = put_deleted(self._opened, unpinned, "")
        for backup in forced:
            self._opened.put_mark(backup, DELETED)
            self.marked.append(backup)


@contextlib.contextmanager
def deleting(context: Context, wanted: Deletion, unlocking: Unlocking) -> Iterator[DeletionPlan]:
    """Find what is to go and what is lost with it; nothing changes before ``apply``, and never in a dry run.

    Raises: NotFound, Busy; UsageError (a pinned backup, or the last good one of its cluster); as ``opened``.
    """
    if "latest" in wanted.backups:
        raise UsageError(
            "delete backup: `latest` would mean another one each time", hint="Name it as `backup list` does."
        )
    named = choose_holding(context, wanted.repository, None, wanted.backups[0])
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(opened(context, named, unlocking))
        lease = None if wanted.dry_run else stack.enter_context(lease_for(context, repository))
        ids = {repository.find(one).backup for one in wanted.backups}
        clusters = [each.backups for each in clusters_of(context, repository)]
        going = [one for backups in clusters for one in backups if one.backup in ids]
        unreadable = sorted(ids - {one.backup for one in going})
        if unreadable:
            raise IntegrityError(f"delete backup: the manifest of {unreadable[0]} cannot be read")
        _refuse_pinned(going, wanted)
        for backups in clusters:
            _refuse_last(backups, ids, wanted)
        lost = {key: loss for backups in clusters for key, loss in losses(backups, ids).items()}
        plan = DeletionPlan(named, going, lost, repository, lease)
        try:
            yield plan
        finally:
            if plan.marked:
                after = {"deleted": plan.marked, "forced": wanted.force, "confirmed": list(wanted.confirm)}
                audited(context, "backups deleted", named.title, after=after)


def _refuse_pinned(going: Sequence[Candidate], wanted: Deletion) -> None:
    for one in going:
        if one.pin is not None and not wanted.force:
            why = f" ({one.pin})" if one.pin else ""
            raise UsageError(
                f"delete backup: {one.backup} is pinned{why}",
                hint=f"Run `datamanager backup unpin {one.backup}` first, or give --force.",
            )


def _refuse_last(backups: Sequence[Candidate], ids: Collection[str], wanted: Deletion) -> None:
    """The newest of those with which the last undamaged backup would go, or the last one at all, must be confirmed."""
    whole = [one for one in backups if not one.damaged]
    judged = whole or list(backups)
    if any(one.backup not in ids for one in judged):
        return
    last = max(judged, key=lambda one: (one.sequence, one.backup))
    if last.backup in wanted.confirm or last.backup.rpartition("-")[2] in wanted.confirm:
        return
    kind = "last undamaged backup" if whole else "last backup"
    raise UsageError(
        f"delete backup: {last.backup} is the {kind} of its cluster here",
        hint=f"Make another one first, or give --confirm {last.backup} to be without any.",
    )


def undelete(context: Context, wanted: str, repository: str | None, unlocking: Unlocking) -> tuple[Named, Manifest]:
    """Take a delete back, as long as prune has not taken away what the backup needs.

    Raises: NotFound (nothing deleted has that name), IntegrityError (too late: it stays deleted), Busy; as ``opened``.
    """
    named = choose_holding(context, repository, None, wanted)
    with opened(context, named, unlocking) as one, lease_for(context, one) as lease:
        backup = _match(deleted_in(one), wanted)
        # Known to every prune before it counts again: what it needs is not taken away from now on.
        lease.renew([backup])
        one.require_no_prune(lease)
        deletion = one.deleted()[backup]
        check_lease(lease)
        one.put_mark(backup, UNDELETED)
        context.listener(PhaseStarted("checking that everything is there"))
        try:
            manifest = one.manifest(backup)
            require_pages(one, manifest, context.stop)
        except UNREADABLE as error:
            one.put_mark(backup, DELETED, deletion.note)
            raise IntegrityError(
                f"undelete backup: too late for {backup}, part of it is gone ({error.message})",
                hint="It stays deleted. See `datamanager backup list` for those that are left.",
            ) from error
        except BaseException:
            one.put_mark(backup, DELETED, deletion.note)
            raise
        check_lease(lease)
    audited(context, "backup undeleted", f"{manifest.backup} in {named.title}")
    return named, manifest


def _match(deleted: dict[str, Mark], wanted: str) -> str:
    matching = [one for one in sorted(deleted) if one.startswith(wanted) or one.endswith(f"-{wanted}")]
    if len(matching) != 1:
        raise NotFound(
            f"find backup: {len(matching)} deleted backups match {wanted!r}",
            hint="See `datamanager backup list --deleted`.",
        )
    return matching[0]


def pin(
    context: Context, wanted: str, note: str, repository: str | None, cluster: str | None, unlocking: Unlocking
) -> tuple[Named, Manifest]:
    """Keep a backup whatever the policy says. Raises: NotFound; as ``opened``."""
    return _say(context, wanted, PIN, note, repository, cluster, unlocking)


def unpin(
    context: Context, wanted: str, repository: str | None, cluster: str | None, unlocking: Unlocking
) -> tuple[Named, Manifest]:
    """Leave a backup to the policy again; one that is not pinned stays as it is. Raises: NotFound; as ``opened``."""
    return _say(context, wanted, UNPIN, "", repository, cluster, unlocking)


def _say(
    context: Context,
    wanted: str,
    word: str,
    note: str,
    repository: str | None,
    cluster: str | None,
    unlocking: Unlocking,
) -> tuple[Named, Manifest]:
    named = choose_holding(context, repository, cluster, wanted)
    with opened(context, named, unlocking) as one, lease_for(context, one, patience_seconds=_PATIENCE_SECONDS) as lease:
        manifest = one.find(wanted, cluster)
        check_lease(lease)
        one.put_mark(manifest.backup, word, note)
    audited(context, f"backup {word}ned", f"{manifest.backup} in {named.title}", reason=note)
    return named, manifest
