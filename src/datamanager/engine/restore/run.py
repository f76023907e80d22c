"""Restore a backup into a new directory.

1 plan         engine/restore/plan.py; a restore that cannot succeed stops there
2 materialize  every file but the control file's name
               then backup_manifest, of an increment: the server described what it sent, not the whole
3 links        pg_tblspc, from the plan alone; nothing of it may lead into another cluster
4 sync         everything durable
5 pg_control   gets its name: from here on the directory starts
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import TargetUnfit
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_directory, sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_size
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.engine.restore.page_check import PageRules
from datamanager.engine.restore.plan import CONTROL_FILE, UNFINISHED_CONTROL_FILE, UNFINISHED_MARK, RestorePlan
from datamanager.engine.restore.witness import require_complete_label, write_manifest
from datamanager.engine.restore.writing import ByteCounter, target_errors
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from datamanager.postgres.replay_hazards import replay_hazards
from datamanager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A directory that starts. ``bytes`` is what was restored, zeros included."""

    target: Path
    files: int
    bytes: int
    seconds: float
    warnings: list[str]


def apply_restore(
    repository: Repository, plan: RestorePlan, stop: StopToken, listener: Listener, *, startable: bool = True
) -> RestoreResult:
    """Carry out a plan. Until the last step the directory cannot start; a failed one is left for inspection.

    Args: startable - take the last step; else the caller does: ``name_control_file``, ``remove_marks``.
    Raises: IntegrityError, ObjectMissing, StoreError, TargetTooSmall, TargetUnfit, Cancelled.
    """
    began = repository.clock.elapsed()
    manifest, options = plan.manifest, plan.options
    lease = repository.take_lease_if_possible(
        "restore", [manifest.backup], lambda text: listener(Warned(text)), stop=stop
    )
    try:
        with target_errors(options.target):
            destination = _prepare(plan)
            listener(Touched(f"data directory {destination.root}"))
            for oid, path in plan.links.items():
                listener(Touched(f"tablespace {oid} in {path}"))
            listener(PhaseStarted("restoring"))
            counter = ByteCounter(manifest.total_bytes, listener)
            contents = repository.contents(manifest)
            rules = PageRules(manifest)
            materializer = Materializer(repository, contents, destination, options.threads, counter.add, rules)
            files = materializer.run(stop)
            require_complete_label(destination.root)
            if manifest.method == "native":
                write_manifest(destination.root, manifest, materializer.written(), destination.owner)
            _make_links(plan, destination)
            _assert_isolated(plan, destination)
            warnings = [*plan.warnings, *_look_into_wal(plan, destination)]
            listener(PhaseStarted("writing to disk"))
            stop.check()
            for root in (destination.root, *plan.links.values()):
                sync_tree(root)
            if startable:
                remove_marks(destination.root, plan.links.values())
                name_control_file(destination.root)
            listener(Touched(f"{files} files, {format_size(manifest.total_bytes)}"))
    finally:
        if lease is not None:
            lease.release()
    seconds = repository.clock.elapsed() - began
    return RestoreResult(destination.root, files, manifest.total_bytes, seconds, warnings)


def _prepare(plan: RestorePlan) -> Destination:
    target = Path(os.path.abspath(plan.options.target))  # noqa: PTH100 - links stay as the owner wrote them
    destination = Destination(target, plan.links, {CONTROL_FILE: UNFINISHED_CONTROL_FILE}, plan.options.owner)
    for folder in (target, *plan.links.values()):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / UNFINISHED_MARK).touch(mode=0o600, exist_ok=False)
        if plan.options.owner is not None:
            os.chown(folder, *plan.options.owner)
    return destination


def _make_links(plan: RestorePlan, destination: Destination) -> None:
    if (destination.root / "PG_VERSION").stat().st_mode & 0o040:
        for root in (destination.root, *plan.links.values()):
            root.chmod(0o750)  # a cluster made with group access
    folder = destination.root / "pg_tblspc"
    for oid, path in plan.links.items():
        link = folder / str(oid)
        if link.is_dir() and not link.is_symlink():
            link.rmdir()
        link.symlink_to(path, target_is_directory=True)
        if destination.owner is not None:
            os.chown(link, *destination.owner, follow_symlinks=False)


def _assert_isolated(plan: RestorePlan, destination: Destination) -> None:
    """Nothing may start that could touch another cluster's files (decision 1). Raises: TargetUnfit."""
    folder = destination.root / "pg_tblspc"
    inside = {int(one.name): one for one in folder.glob("[0-9]*") if one.is_dir() and not one.is_symlink()}
    assert_tablespaces_isolated(
        destination.root, {**inside, **plan.links}, running_data_directories(), within=plan.options.within
    )


def _look_into_wal(plan: RestorePlan, destination: Destination) -> list[str]:
    """Tell what replay of its WAL would do (decision 1). Raises: TargetUnfit, when it would reach the original's files.

    A database that replay empties is no reason to withhold all the others: this backup may be the last to hold them.
    """
    found = replay_hazards(destination.root / "pg_wal", Lsn.parse(plan.manifest.start_lsn))
    if found.tablespaces:
        place = found.tablespaces[0].location
        raise TargetUnfit(
            f"restore backup: its WAL creates a tablespace in {place}, and replay would write there",
            hint="Restore another backup: one during which no tablespace was created.",
        )
    return [text for text in found.warnings if text not in plan.warnings]  # a cold backup has told it already


def remove_marks(root: Path, tablespaces: Iterable[Path]) -> None:
    """Take away what says that the restore is not finished. Raises: OSError."""
    for folder in (*tablespaces, root):
        (folder / UNFINISHED_MARK).unlink()


def name_control_file(root: Path) -> None:
    """Give the control file its name, without which no server starts; durable on return. Raises: OSError."""
    before = root / os.fsdecode(UNFINISHED_CONTROL_FILE)
    after = root / os.fsdecode(CONTROL_FILE)
    before.rename(after)
    sync_directory(after.parent)
    sync_directory(root)
