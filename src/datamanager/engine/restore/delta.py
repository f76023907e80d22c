"""Restore into the cluster's own data directory, fetching and writing only what differs. There is no way back.

1 plan      the directory is this cluster's, at rest, and its tablespaces are where they were; what will be removed, and
            whether there is room to grow. How much differs nobody knows before the files have been read
2 journal   and pg_control goes away: from here on the directory does not start, and a second run goes on
3 remove    what the backup does not have: extra segments, newer relations, WAL, slots
4 patch     engine/restore/delta_patch.py
5 sync      then pg_control comes back, last of all
6 recover   where the caller does that; only then the journal goes

Source: PostgreSQL decision 11.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.base.errors import Cancelled, DataManagerError, IntegrityError, TargetTooSmall, TargetUnfit, UsageError
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_size
from datamanager.engine.restore.delta_layout import Expected, Extra, expect, extras, files_below, is_restored, remove
from datamanager.engine.restore.delta_patch import Patcher, Tally
from datamanager.engine.restore.delta_room import Growth
from datamanager.engine.restore.delta_target import (
    MOVED_CONTROL_FILE,
    DeltaTarget,
    begin,
    drop_journal,
    examine,
    name_control_file,
)
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.page_check import PageRules
from datamanager.engine.restore.plan import CONTROL_FILE, VolumeNeed
from datamanager.engine.restore.witness import MANIFEST_FILE, require_complete_label, write_manifest
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from datamanager.postgres.replay_hazards import replay_hazards
from datamanager.postgres.wal.slot import SLOT_PREFIX
from datamanager.repository.commit import require_objects
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

_GO_ON = "The directory does not start until the same command, run again, has completed it."


@dataclass(frozen=True, slots=True)
class DeltaOptions:
    """What the caller decides.

    Args:
        target: the cluster's data directory.
        confirm: the cluster's name, as a person typed it; nothing is touched without.
        beside: bytes that what follows takes besides the files, by the directory in which.
    """

    target: Path
    confirm: str = ""
    threads: int = 2
    beside: Mapping[Path, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeltaPlan:
    """A delta restore that can be carried out.

    Args:
        volumes: by how much files grow, less what is removed, and the room there is, in bytes a volume.
        removed: files and directories that the backup does not have, as it would spell them.
        total_bytes: what is compared; the most that is written.
        continued: the directory holds an unfinished delta restore.
    """

    manifest: Manifest
    options: DeltaOptions
    target: DeltaTarget
    volumes: list[VolumeNeed]
    removed: list[str]
    removed_files: int
    removed_bytes: int
    total_bytes: int
    continued: bool
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class DeltaResult:
    """A directory that starts. Bytes: compared at the target, fetched as they are stored, written."""

    target: Path
    files: int
    bytes_compared: int
    bytes_fetched: int
    bytes_written: int
    files_removed: int
    seconds: float
    warnings: list[str]


def plan_delta(repository: Repository, manifest: Manifest, options: DeltaOptions, *, at_rest: bool = True) -> DeltaPlan:
    """Check everything that can be checked without writing.

    Args: at_rest - False to look beforehand at a directory whose server runs; such a plan cannot be applied.
    Raises: TargetUnfit, TargetTooSmall, ServerMismatch, Busy; IntegrityError when the backup is not complete.
    """
    target = examine(_absolute(options.target), manifest, at_rest=at_rest)
    _require_stored(repository, manifest)
    contents = repository.contents(manifest)
    with _target_errors(target.root, "Mend that, or restore into a new directory."):
        growth = Growth()
        expected = _expected(contents, manifest, lambda path, size: growth.file(_destination(target).place(path), size))
        going = list(extras(target, expected, mend=False))
        removed_files = removed_bytes = 0
        for extra in going:
            for _, status in files_below(extra):
                removed_files += 1
                removed_bytes += growth.removed(status)
        for place, size in options.beside.items():
            growth.beside(place, size)
    volumes = growth.volumes([*target.roots, *options.beside])
    for volume in volumes:
        if volume.need > volume.free:
            raise TargetTooSmall(
                f"restore backup: {volume.path} grows by {format_size(volume.need)}, "
                f"its volume has {format_size(volume.free)} free"
            )
    names = sorted(os.fsdecode(extra.path) for extra in going)
    warnings = [*manifest.warnings, *_told(going, manifest)]
    total = manifest.total_bytes
    continued = target.continued
    return DeltaPlan(
        manifest, options, target, volumes, names, removed_files, removed_bytes, total, continued, warnings
    )


def apply_delta(
    repository: Repository,
    plan: DeltaPlan,
    stop: StopToken,
    listener: Listener,
    *,
    before_start: Callable[[Path], None] = lambda root: None,
    recover: Callable[[Path], None] = lambda root: None,
) -> DeltaResult:
    """Carry out a plan. Killed or failed at any moment, the directory does not start, and the same call goes on.

    Args: before_start - told the data directory once all its files are there and before it can start: what it writes
        (settings of a recovery) becomes durable with the rest. recover - told once it can start; until it returns the
        restore is not complete.
    Raises: UsageError (not confirmed); Busy, ServerMismatch, before anything is touched; IntegrityError, ObjectMissing,
        StoreError, TargetTooSmall, TargetUnfit, Cancelled; what ``recover`` raises.
    """
    manifest, options = plan.manifest, plan.options
    if options.confirm != manifest.cluster:
        raise UsageError(
            f"restore backup: writing over {options.target} has no way back and was not confirmed",
            hint=f"Give --confirm {manifest.cluster} to say that you mean it.",
        )
    began = repository.clock.elapsed()
    lease = repository.take_lease_if_possible(
        "restore", [manifest.backup], lambda text: listener(Warned(text)), stop=stop
    )
    try:
        target = examine(_absolute(options.target), manifest)
        stop.check()
        with _target_errors(target.root, "Nothing was changed; let this account write there."):
            begin(target, manifest)
        with _unfinished(target.root):
            result = _Run(repository, plan, target, stop, listener).carry_out(before_start, began)
            recover(target.root)
            drop_journal(target.root)
            return result
    finally:
        if lease is not None:
            lease.release()


class _Run:
    """One delta restore after its beginning."""

    def __init__(
        self, repository: Repository, plan: DeltaPlan, target: DeltaTarget, stop: StopToken, listener: Listener
    ) -> None:
        self._repository = repository
        self._plan = plan
        self._manifest = plan.manifest
        self._target = target
        self._stop = stop
        self._listener = listener
        self._tally = Tally(plan.total_bytes, listener)

    def carry_out(self, before_start: Callable[[Path], None], began: float) -> DeltaResult:
        root, listener = self._target.root, self._listener
        for place in self._target.roots:
            listener(Touched(f"written over: {place}"))
        contents = self._repository.contents(self._manifest)
        listener(PhaseStarted("removing files that the backup does not have"))
        removed = self._remove(contents)
        listener(PhaseStarted("comparing and restoring"))
        files = self._patch(contents)
        self._assert_isolated()
        warnings = [*self._plan.warnings, *self._look_into_wal()]
        before_start(root)
        listener(PhaseStarted("writing to disk"))
        self._stop.check()
        for place in self._target.roots:
            sync_tree(place)
        name_control_file(self._target)
        tally = self._tally
        listener(Touched(f"{files} files, {format_size(tally.written)} of them written, {removed} files removed"))
        seconds = self._repository.clock.elapsed() - began
        return DeltaResult(root, files, tally.compared, tally.fetched, tally.written, removed, seconds, warnings)

    def _remove(self, contents: Contents) -> int:
        expected = _expected(contents, self._manifest, lambda path, size: None)
        removed = 0
        for extra in extras(self._target, expected, mend=True):
            self._stop.check()
            removed += remove(extra)
        return removed

    def _patch(self, contents: Contents) -> int:
        destination = _destination(self._target)
        rules = PageRules(self._manifest)
        threads = self._plan.options.threads
        patcher = Patcher(self._repository, contents, destination, threads, rules, self._tally)
        files = patcher.run(self._stop)
        patcher.zeros()
        require_complete_label(destination.root)
        if self._manifest.method == "native":
            write_manifest(destination.root, self._manifest, patcher.written(), destination.owner)
        _close_root(destination.root)
        return files

    def _assert_isolated(self) -> None:
        """Nothing may start that could touch another cluster's files (decision 1). Raises: TargetUnfit."""
        folder = self._target.root / "pg_tblspc"
        inside = {int(one.name): one for one in folder.glob("[0-9]*") if one.is_dir() and not one.is_symlink()}
        links = {**inside, **self._target.links}
        assert_tablespaces_isolated(self._target.root, links, running_data_directories())

    def _look_into_wal(self) -> list[str]:
        """What replay of its WAL would do (decision 1). Raises: TargetUnfit."""
        found = replay_hazards(self._target.root / "pg_wal", Lsn.parse(self._manifest.start_lsn))
        if found.tablespaces:
            place = found.tablespaces[0].location
            raise TargetUnfit(
                f"restore backup: its WAL creates a tablespace in {place}, and replay would write there",
                hint="Restore another backup: one during which no tablespace was created.",
            )
        return [text for text in found.warnings if text not in self._plan.warnings]


def _require_stored(repository: Repository, manifest: Manifest) -> None:
    """Half a backup over the only copy would be worse than none. Raises: IntegrityError."""
    try:
        require_objects(repository, manifest)
    except IntegrityError as error:
        cause = error.message.partition(": ")[2]
        raise IntegrityError(
            f"restore backup: {cause}", hint="Restore another backup, or heal the repository."
        ) from error


def _expected(contents: Contents, manifest: Manifest, on_file: Callable[[bytes, int], None]) -> Expected:
    """Every path that the directory will have. Args: on_file - told path and size of every file."""
    expected: Expected = {}
    for entry in contents.files():
        if is_restored(entry.path):
            expect(expected, entry.path, entry.kind)
            if entry.kind is FileKind.REGULAR:
                on_file(entry.path, entry.size)
    if manifest.method == "native":
        expect(expected, MANIFEST_FILE, FileKind.REGULAR)
    return expected


def _destination(target: DeltaTarget) -> Destination:
    return Destination(target.root, target.links, {CONTROL_FILE: MOVED_CONTROL_FILE}, target.owner)


def _close_root(root: Path) -> None:
    """Leave the directory's own rights as they were, if a server takes them."""
    if os.name != "nt" and stat.S_IMODE(root.stat().st_mode) not in (0o700, 0o750):
        root.chmod(0o750 if (root / "PG_VERSION").stat().st_mode & 0o040 else 0o700)


def _told(going: list[Extra], manifest: Manifest) -> list[str]:
    """What the owner should know of what goes, and of what comes."""
    told = []
    wal = sum(1 for extra in going if extra.path.startswith(b"pg_wal/") and len(extra.path) == len(b"pg_wal/") + 24)
    if wal:
        told.append(f"{wal} WAL segments in pg_wal are removed; what of them is archived nowhere is lost")
    slots = [os.fsdecode(extra.path)[12:] for extra in going if extra.path.startswith(b"pg_replslot/")]
    slots = [one for one in slots if not one.startswith(SLOT_PREFIX)]  # the archive's is made again by its receiver
    if slots:
        told.append(f"replication slots are removed: {', '.join(slots[:5])}")
    if manifest.damaged:
        names = ", ".join(one.path for one in manifest.checksum_failures[:3])
        told.append(f"the server itself held damaged pages when this backup was taken: {names}")
    return told


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the owner wrote them


@contextlib.contextmanager
def _unfinished(root: Path) -> Iterator[None]:
    """Every failure says in what state it leaves the directory."""
    try:
        with _target_errors(root, _GO_ON):
            yield
    except Cancelled as error:
        error.hint = _GO_ON
        raise
    except DataManagerError as error:
        if _GO_ON not in error.hint:
            error.hint = f"{error.hint} {_GO_ON}".strip()
        raise


@contextlib.contextmanager
def _target_errors(root: Path, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetTooSmall(f"restore backup: no room left for {where}", hint=f"Make room. {hint}") from error
        why = (error.strerror or str(error) or "cannot be written").lower()
        raise TargetUnfit(f"restore backup: {where}: {why}", hint=hint) from error
