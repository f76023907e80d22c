"""Back up a running cluster into a repository.

1 lease            known to other writers; another backup of the same cluster is refused
2 facts            who the server is, what a restore will need
3 parent           the newest backup of this cluster, whose chunks are recognized by place; leftovers of a cut run
4 stream           source -> cutter -> compress -> packs, with the rows of a new layer; no tablespace may come to be
5 check            every file against the server's manifest, size and CRC-32C, both ways
6 publish          layer, barrier, manifest, barrier, read back
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime

from datamanager import __version__
from datamanager.base.errors import IntegrityError, NotFound
from datamanager.base.events import Listener, PhaseStarted, Progress, Warned
from datamanager.base.pipeline import StopToken, TaskGroup
from datamanager.base.units import Lsn
from datamanager.engine.chunking import ChunkCutter
from datamanager.engine.damage import find_damage
from datamanager.engine.packing import Packer, PackingCounts
from datamanager.engine.space import SpaceGuard
from datamanager.engine.wal_watch import WalWatch
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.server_manifest import check_manifest, manifest_files
from datamanager.postgres.source import BackupSource, SourceEnd, SourceStart
from datamanager.repository.commit import complete_manifests, next_in_line, publish, write_layer
from datamanager.repository.format import Kind
from datamanager.repository.known import LeftoverChunks, ParentPlaces
from datamanager.repository.layer import LayerBuilder
from datamanager.repository.manifest import LayerReference, Manifest, Tablespace
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.pack import SealedPack
from datamanager.repository.pack_stream import PackStream
from datamanager.repository.repository import Repository

SERVER_MANIFEST = b"backup_manifest"
_KEPT_NOTICES = 100  # a server with a broken disk warns five times a file


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What the caller decides.

    Args:
        cluster: the name under which the cluster is known here.
        label: for people; stands in the list and in the manifest.
        level: zstd level, 1 to 19.
        threads: threads that compress, 1 or more.
        local: the cluster's data directory lies on this host.
    """

    cluster: str
    label: str
    level: int = 1
    threads: int = 2
    local: bool = True


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published backup. Sizes in bytes; ``stored`` counts everything this run put into the repository."""

    manifest: Manifest
    counts: PackingCounts
    stored: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


class _Run:
    """The state of one backup while it runs."""

    def __init__(self, repository: Repository, facts: ServerFacts, options: BackupOptions, listener: Listener) -> None:
        self.repository = repository
        self.facts = facts
        self.options = options
        self.listener = listener
        self.layer = LayerBuilder()
        self.stored = 0
        self.digests: dict[bytes, bytes] = {}
        self.start: SourceStart | None = None
        self.done = 0
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.listener(Warned(message))

    def warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warn(message)

    def on_start(self, start: SourceStart) -> None:
        self.start = start
        self.listener(PhaseStarted("copying"))

    def on_stored(self, pack: SealedPack) -> None:
        self.digests[pack.id] = pack.digest
        self.stored += pack.size

    def on_batch(self, size: int) -> None:
        self.done += size
        total = self.start.total_bytes if self.start else None
        self.listener(Progress(self.done, max(total, self.done) if total else None))


def run_backup(
    repository: Repository,
    source: BackupSource,
    facts: ServerFacts,
    options: BackupOptions,
    stop: StopToken,
    listener: Listener,
) -> BackupResult:
    """Take one complete backup and publish it, or leave the repository as it was (but for reusable packs).

    Raises: Busy, ServerError, StoreError, IntegrityError, Cancelled.
    """
    clock = repository.clock
    began, started = clock.elapsed(), clock.now()
    run = _Run(repository, facts, options, listener)
    lease = repository.take_lease("backup", str(facts.system_identifier))
    try:
        repository.require_alone(lease)
        for key in complete_manifests(repository, lease):
            listener(Warned(f"{key} was missing and was written again from its second copy"))
        manifests = _manifests_of(repository, run)
        parent = _newest_parent(manifests, facts)
        if parent is not None:
            lease.renew([parent.backup])
        guard = SpaceGuard(repository.storage, (facts.data_directory or "") if options.local else "")
        guard.before_put(0)
        end, counts = _stream(run, source, parent, guard, stop)
        listener(PhaseStarted("checking"))
        _keep_notices(run, end)
        _check_against_server(run, end)
        listener(PhaseStarted("publishing"))
        _set_digests(run)
        reference = write_layer(repository, run.layer, stop, guard.before_put)
        line = next_in_line(_manifests_of(repository, run), repository)  # another cluster's backup may have ended
        manifest = _manifest(run, end, counts, reference, parent, started, line)
        if end.checksum_failure:
            manifest = _flag_damage(run, manifest, end, stop)
        stop.check()
        publish(repository, lease, manifest)
    finally:
        lease.release()
    return BackupResult(manifest, counts, run.stored, clock.elapsed() - began, run.warnings)


def _manifests_of(repository: Repository, run: _Run) -> list[Manifest]:
    found = []
    for name in repository.backup_ids():
        try:
            found.append(repository.manifest(name))
        except NotFound:
            continue  # deleted since it was listed
        except UNREADABLE as error:
            run.warn_once(f"{error.message}; that backup cannot be restored from here")
    return sorted(found, key=lambda one: (one.sequence, one.backup))


def _newest_parent(manifests: list[Manifest], facts: ServerFacts) -> Manifest | None:
    same = [
        one
        for one in manifests
        if one.system_identifier == str(facts.system_identifier) and one.page_size == facts.block_size
    ]
    return same[-1] if same else None


def _stream(
    run: _Run, source: BackupSource, parent: Manifest | None, guard: SpaceGuard, stop: StopToken
) -> tuple[SourceEnd, PackingCounts]:
    repository, options = run.repository, run.options
    run.listener(PhaseStarted("reading what is stored"))
    places = _places_of(run, parent)
    leftovers = LeftoverChunks.gather(repository, stop)
    run.listener(PhaseStarted("waiting for the server's checkpoint"))
    with TaskGroup(stop) as group:
        stream = PackStream(repository.objects, Kind.PACK, group, run.on_stored, guard.before_put)
        packer = Packer(
            group,
            stream,
            run.layer,
            repository.ring.fingerprint_key.reveal(),
            run.facts.block_size,
            places,
            leftovers,
            options.level,
            options.threads,
            run.on_batch,
        )
        cutter = ChunkCutter(run.facts.block_size, places, packer.take_buffer, packer.hand_over, run.on_start)
        watch = WalWatch(cutter)
        end = source.run(watch, stop)
        watch.check()
        cutter.add_file(SERVER_MANIFEST, 0o600, end.manifest)
        cutter.finish()
        packer.close()
    return end, packer.counts


def _places_of(run: _Run, parent: Manifest | None) -> ParentPlaces | None:
    if parent is None:
        return None
    try:
        return ParentPlaces(run.repository, run.repository.contents(parent))
    except UNREADABLE as error:
        run.warn(f"{error.message}; nothing of backup {parent.backup} is reused")
        return None


def _flag_damage(run: _Run, manifest: Manifest, end: SourceEnd, stop: StopToken) -> Manifest:
    run.listener(PhaseStarted("finding damaged pages"))
    contents = run.repository.contents(manifest)
    start = Lsn.parse(manifest.start_lsn)
    failures = find_damage(run.repository, contents, end.notices, start, manifest.segment_size, stop)
    for failure in failures:
        run.warn(
            f"the server's file {failure.path} holds {len(failure.blocks)} pages with wrong checksums "
            f"(first: block {failure.blocks[0]}); the backup is kept and flagged as damaged"
        )
    if not failures:
        run.warn("the server found pages with wrong checksums that were right when they were stored")
    return replace(manifest, checksum_failures=failures, warnings=[*run.warnings])


def _keep_notices(run: _Run, end: SourceEnd) -> None:
    """What the server said while it sent, such as that it skipped a special file, is recorded (decision 22)."""
    for notice in end.notices[:_KEPT_NOTICES]:
        run.warn(f"the server said: {notice}")
    if len(end.notices) > _KEPT_NOTICES:
        run.warn(f"the server said {len(end.notices) - _KEPT_NOTICES} things more")


def _set_digests(run: _Run) -> None:
    for pack in run.layer.packs:
        digest = run.digests.get(pack)
        run.layer.set_digest(pack, digest or run.repository.pack(pack).directory.digest())


def _check_against_server(run: _Run, end: SourceEnd) -> None:
    """Every file of the stream is in the server's manifest with this size and CRC, and the other way round."""
    check_manifest(end.manifest)
    received = {path: (size, crc) for path, size, crc in run.layer.regular_files()}
    received.pop(SERVER_MANIFEST, None)
    for listed in manifest_files(end.manifest):
        if received.pop(listed.path, None) != (listed.size, listed.crc32c):
            raise IntegrityError(
                f"check backup: {listed.path.decode(errors='replace')} did not arrive as the server sent it"
            )
    extra = [path for path in received if not path.startswith(b"pg_wal/")]
    if extra:
        raise IntegrityError(f"check backup: the server's manifest does not list {extra[0].decode(errors='replace')}")


def _volumes(run: _Run) -> dict[str, int]:
    sizes = {"base": 0}
    for path, size, _ in run.layer.regular_files():
        parts = path.split(b"/", 2)
        volume = parts[1].decode() if parts[0] == b"pg_tblspc" and len(parts) == 3 and parts[1].isdigit() else "base"
        sizes[volume] = sizes.get(volume, 0) + size
    return sizes


def _manifest(
    run: _Run,
    end: SourceEnd,
    counts: PackingCounts,
    reference: LayerReference,
    parent: Manifest | None,
    started: datetime,
    line: dict[str, object],
) -> Manifest:
    if run.start is None:
        raise IntegrityError("make manifest: the source never started")
    facts = run.facts
    return Manifest(
        backup=f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        **line,  # type: ignore[arg-type]  # sequence and previous, see next_in_line
        cluster=run.options.cluster,
        label=run.options.label,
        program=f"datamanager {__version__}",
        started=started.isoformat(timespec="seconds"),
        ended=run.repository.clock.now().isoformat(timespec="seconds"),
        system_identifier=str(facts.system_identifier),
        version=facts.version,
        major=facts.major,
        page_size=facts.block_size,
        segment_size=facts.segment_size,
        wal_segment_size=facts.wal_segment_size,
        checksums=bool(facts.data_checksums),
        timeline=end.timeline,
        start_lsn=str(run.start.lsn),
        stop_lsn=str(end.lsn),
        method="compared" if parent else "full",
        parent=parent.backup if parent else None,
        layers=[reference],
        tablespaces=[Tablespace(one.oid, one.location, one.size or 0) for one in run.start.tablespaces],
        volumes=_volumes(run),
        files=run.layer.files,
        bytes_read=counts.read,
        bytes_stored=run.stored,
        bytes_reused=counts.reused,
        server=json.loads(facts.to_json()),
        warnings=[*run.warnings],
    )
