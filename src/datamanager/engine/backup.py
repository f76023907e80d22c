"""Back up a cluster into a repository.

1 lease            known to other writers; another backup of the same cluster is refused
2 plan             the newest backup of this cluster; whether the server can send what changed since, else why not
3 stream           source -> cutter -> compare, compress -> packs, with the rows of a new layer
4 check            every member against the source's manifest, size and CRC-32C, both ways
5 publish          layer onto those of the parent, barrier, manifest, barrier, read back

An increment that turns out not to fit (the server refuses it, its files make no sense, the audit finds the parent
wrong) becomes a full read in the same run, once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from datamanager import __version__
from datamanager.base.errors import IncrementRefused, IntegrityError, NotFound
from datamanager.base.events import Listener, PhaseStarted, Progress, Warned
from datamanager.base.pipeline import StopToken, TaskGroup
from datamanager.base.units import Lsn
from datamanager.engine.chunking import ChunkCutter
from datamanager.engine.comparing import MOST_MISMATCHES, PageComparer
from datamanager.engine.damage import find_damage
from datamanager.engine.defragment import Scatter, scattered_regions, store_anew
from datamanager.engine.increment_plan import SLICES, BackupPlan, choose_parent, is_exact, is_uploaded, plan_backup
from datamanager.engine.packing import Packer, PackingCounts
from datamanager.engine.received import SERVER_MANIFEST, ReceivedFiles
from datamanager.engine.space import SpaceGuard
from datamanager.engine.wal_watch import WalWatch
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.outside_model import OutsideFile
from datamanager.postgres.server_manifest import WalRange, build_manifest
from datamanager.postgres.source import BackupSource, SourceEnd, SourceStart
from datamanager.postgres.wal_summaries import FIRST_MAJOR, Summaries
from datamanager.repository.commit import complete_manifests, next_in_line, publish
from datamanager.repository.condemned import condemned_packs
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import Kind, pack_id
from datamanager.repository.known import LeftoverChunks, ParentFiles
from datamanager.repository.layer import FileFlag
from datamanager.repository.layer_builder import LayerBuilder
from datamanager.repository.layer_stack import push_layer
from datamanager.repository.lease import Lease
from datamanager.repository.manifest import LayerReference, Manifest, Tablespace
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.pack import SealedPack
from datamanager.repository.pack_stream import PackStream
from datamanager.repository.repository import Repository

# Timeline and start of the parent, or None -> what the server has summarized, once it has arrived there.
AskSummaries = Callable[[tuple[int, Lsn] | None], Summaries]

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
        full: read everything, whatever the server could tell.
        outside: configuration files from outside the data directory.
        control: what pg_control says of a cluster that is not running; empty for a running one.
        warnings: what the caller found, to be recorded with the backup.
        scatter: when parts of the parent are stored anew.
    """

    cluster: str
    label: str
    level: int = 1
    threads: int = 2
    local: bool = True
    full: bool = False
    outside: tuple[OutsideFile, ...] = ()
    control: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scatter: Scatter = field(default_factory=Scatter)


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published backup. Sizes in bytes; ``stored`` counts everything this run put into the repository."""

    manifest: Manifest
    counts: PackingCounts
    stored: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


class _Attempt:
    """What one reading of the source learns; a second one begins with nothing of it."""

    def __init__(self, plan: BackupPlan) -> None:
        self.plan = plan
        self.layer = LayerBuilder()
        self.anew = LayerBuilder()  # what was too scattered in the parent
        self.received = ReceivedFiles()
        self.digests: dict[bytes, bytes] = {}
        self.start: SourceStart | None = None
        self.comparer: PageComparer | None = None
        self.counts = PackingCounts()
        self.done = 0

    def started(self) -> SourceStart:
        """Raises: IntegrityError, when the source never said that it began."""
        if self.start is None:
            raise IntegrityError("back up cluster: the source never started")
        return self.start


class _Run:
    """One backup: what it works on, whom it tells, what it has stored."""

    def __init__(
        self,
        repository: Repository,
        source: BackupSource,
        facts: ServerFacts,
        options: BackupOptions,
        stop: StopToken,
        listener: Listener,
    ) -> None:
        self.repository = repository
        self.source = source
        self.facts = facts
        self.options = options
        self.stop = stop
        self.listener = listener
        self.guard = SpaceGuard(repository.storage, (facts.data_directory or "") if options.local else "")
        self.summaries = Summaries()
        self._put: list[int] = []  # sizes of packs; several threads put them, and an append is one step
        self.warnings = list(options.warnings)

    @property
    def stored(self) -> int:
        """Bytes of the packs put so far."""
        return sum(self._put)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.listener(Warned(message))

    def warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warn(message)

    def phase(self, name: str) -> None:
        self.listener(PhaseStarted(name))

    # -- plan -------------------------------------------------------------------------------------------------------
    def manifests(self) -> list[Manifest]:
        """In order of sequence; one that cannot be read is told of and left out."""
        found = []
        for name in self.repository.backup_ids():
            try:
                found.append(self.repository.manifest(name))
            except NotFound:
                continue  # deleted since it was listed
            except UNREADABLE as error:
                self.warn_once(f"{error.message}; that backup cannot be restored from here")
        return sorted(found, key=lambda one: (one.sequence, one.backup))

    def plan(self, ask: AskSummaries | None, lease: Lease) -> tuple[BackupPlan, ParentFiles | None]:
        """What to ask of the source, and what the parent holds."""
        self.phase("reading what is stored")
        manifests, lost = self.manifests(), ""
        packs: set[bytes] = set()
        broken: set[bytes] = set()
        files = None
        while files is None and (parent := choose_parent(manifests, self.facts)) is not None:
            lease.renew([parent.backup])
            damaged = DamagedChunks.load(self.repository)
            try:
                contents = self.repository.contents(parent)
                packs = {pack for pack, _ in contents.packs}
                files = ParentFiles(self.repository, contents, parent, damaged)
                broken = files.broken_packs({pack_id(one.key) for one in self.repository.storage.list("packs/")})
            except UNREADABLE as error:
                self.warn_once(f"{error.message}; nothing of backup {parent.backup} is reused")
                manifests.remove(parent)
                files, lost = None, parent.backup
        if ask is not None and self.facts.major >= FIRST_MAJOR:
            reach = (parent.timeline, Lsn.parse(parent.start_lsn)) if parent is not None else None
            self.summaries = ask(reach)
        summaries = self.summaries if ask is not None else None
        plan = plan_backup(manifests, self.facts, summaries, broken, packs, full=self.options.full)
        if plan.native and _tablespaces_moved(plan.parent, self.facts):
            plan = plan.instead("a tablespace has another place than in the backup before")
        if plan.parent is None and lost:
            plan = plan.instead(f"backup {lost} cannot be read")
        return plan, files

    # -- stream -----------------------------------------------------------------------------------------------------
    def read(self, plan: BackupPlan, parent: ParentFiles | None) -> tuple[_Attempt, SourceEnd]:
        """Read the source once. Raises: IncrementRefused, when a full read is to be made instead."""
        attempt = _Attempt(plan)
        upload = _upload(plan, parent) if plan.native else None
        attempt.comparer = self._comparer(plan, parent)
        leftovers = LeftoverChunks()
        if not plan.native:
            leftovers = LeftoverChunks.gather(self.repository, condemned_packs(self.repository), self.stop)
        self.phase("waiting for the server's checkpoint" if self.options.control == {} else "reading the directory")
        with TaskGroup(self.stop) as group:
            packer = self._packer(attempt, group, leftovers)
            cutter = ChunkCutter(
                self.facts.block_size,
                parent,
                plan.native,
                attempt.received,
                packer.take_buffer,
                packer.hand_over,
                lambda start: self._began(attempt, start),
            )
            watch = WalWatch(cutter)
            end = self.source.run(watch, self.stop) if upload is None else self.source.run(watch, self.stop, upload)
            watch.check()
            if not plan.native:
                cutter.add_file(SERVER_MANIFEST, 0o600, end.manifest)
            cutter.finish()
            packer.close()
        attempt.counts = packer.counts
        if parent is not None:
            for file in parent.unseen():
                attempt.layer.begin_file(file.path, file.kind, file.mode)
                attempt.layer.end_file(0, flags=FileFlag.GONE)
            self._defragment(attempt, parent)
        return attempt, end

    def _defragment(self, attempt: _Attempt, parent: ParentFiles) -> None:
        size = self.facts.block_size
        regions = scattered_regions(parent, size, self.options.scatter)
        if not regions:
            return
        self.phase("storing anew what is scattered")
        key = self.repository.ring.fingerprint_key.reveal()
        with TaskGroup(self.stop) as group:
            stream = PackStream(
                self.repository.objects, Kind.PACK, group, self._stored_by(attempt), self.guard.before_put
            )
            store_anew(regions, parent, stream, attempt.anew, key, size, self.options.level, self.stop)

    def _stored_by(self, attempt: _Attempt) -> Callable[[SealedPack], None]:
        def on_stored(pack: SealedPack) -> None:
            attempt.digests[pack.id] = pack.digest
            self._put.append(pack.size)

        return on_stored

    def _packer(self, attempt: _Attempt, group: TaskGroup, leftovers: LeftoverChunks) -> Packer:
        stored = self._stored_by(attempt)
        stream = PackStream(self.repository.objects, Kind.PACK, group, stored, self.guard.before_put)
        return Packer(
            group,
            stream,
            attempt.layer,
            attempt.received,
            self.repository.ring.fingerprint_key.reveal(),
            self.facts.block_size,
            attempt.comparer,
            leftovers,
            self.options.level,
            self.options.threads,
            lambda size: self._progress(attempt, size),
        )

    def _comparer(self, plan: BackupPlan, parent: ParentFiles | None) -> PageComparer | None:
        if parent is None:
            return None
        one = parent.manifest
        # On another timeline a page's LSN may belong to another history.
        comparable = plan.native or (one.timeline == self.facts.timeline and not one.control and not one.damaged)
        judged_to = Lsn.parse(one.start_lsn) if comparable else Lsn(0)
        exact = is_exact(one, self.facts)
        return PageComparer(parent, self.facts.block_size, judged_to, exact=exact, strict=plan.native)

    def _began(self, attempt: _Attempt, start: SourceStart) -> None:
        parent = attempt.plan.parent
        if attempt.plan.native and parent is not None and start.timeline != parent.timeline:
            raise IncrementRefused(f"back up cluster: the server's timeline is {start.timeline} by now")
        attempt.start = start
        self.phase("copying")

    def _progress(self, attempt: _Attempt, size: int) -> None:
        attempt.done += size
        # Of an increment the server announces the size of a full read.
        total = attempt.start.total_bytes if attempt.start and not attempt.plan.native else None
        self.listener(Progress(attempt.done, max(total, attempt.done) if total else None))

    # -- check and publish ------------------------------------------------------------------------------------------
    def check(self, attempt: _Attempt, end: SourceEnd) -> None:
        """What came is what the source sent, and what the parent holds is what the server held."""
        self.phase("checking")
        for warning in end.warnings:
            self.warn(warning)
        for notice in end.notices[:_KEPT_NOTICES]:  # such as that it skipped a special file (decision 22)
            self.warn(f"the server said: {notice}")
        if len(end.notices) > _KEPT_NOTICES:
            self.warn(f"the server said {len(end.notices) - _KEPT_NOTICES} things more")
        attempt.received.check(end.manifest)
        found = attempt.comparer.mismatches if attempt.comparer is not None else []
        if found and attempt.plan.parent is not None:
            many = f"{len(found)} pages" if len(found) < MOST_MISMATCHES else f"{MOST_MISMATCHES} pages or more"
            self.warn(
                f"{many} of backup {attempt.plan.parent.backup} are not what the server held, although nothing "
                f"changed them since (first: {found[0].path.decode(errors='replace')}, block {found[0].block}); "
                "this backup read them anew"
            )

    def publish(self, attempt: _Attempt, end: SourceEnd, started: datetime, lease: Lease) -> Manifest:
        """Raises: StoreError, IntegrityError, Busy, Cancelled."""
        self.phase("publishing")
        parent = attempt.plan.parent
        for builder in (attempt.layer, attempt.anew):
            for pack, _ in list(builder.packs):
                digest = attempt.digests.get(pack)
                builder.set_digest(pack, digest or self.repository.pack(pack).directory.digest())
        builders = [attempt.layer, attempt.anew] if attempt.anew.files else [attempt.layer]
        layers = push_layer(
            self.repository, builders, parent.layers if parent else [], self.stop, self.guard.before_put
        )
        manifest = self._manifest(attempt, end, layers, started)
        if end.checksum_failure:
            manifest = self._flag_damage(manifest, end)
        self.stop.check()
        publish(self.repository, lease, manifest)
        return manifest

    def _flag_damage(self, manifest: Manifest, end: SourceEnd) -> Manifest:
        self.phase("finding damaged pages")
        contents = self.repository.contents(manifest)
        start = Lsn.parse(manifest.start_lsn)
        failures = find_damage(self.repository, contents, end.notices, start, manifest.segment_size, self.stop)
        for failure in failures:
            self.warn(
                f"the server's file {failure.path} holds {len(failure.blocks)} pages with wrong checksums "
                f"(first: block {failure.blocks[0]}); the backup is kept and flagged as damaged"
            )
        if not failures:
            self.warn("the server found pages with wrong checksums that were right when they were stored")
        return replace(manifest, checksum_failures=failures, warnings=[*self.warnings])

    def _manifest(self, attempt: _Attempt, end: SourceEnd, layers: list[LayerReference], started: datetime) -> Manifest:
        facts, plan, counts, start = self.facts, attempt.plan, attempt.counts, attempt.started()
        line = next_in_line(self.manifests(), self.repository)  # another cluster's backup may have ended meanwhile
        return Manifest(
            backup=f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            **line,
            cluster=self.options.cluster,
            label=self.options.label,
            program=f"datamanager {__version__}",
            started=started.isoformat(timespec="seconds"),
            ended=self.repository.clock.now().isoformat(timespec="seconds"),
            system_identifier=str(facts.system_identifier),
            version=facts.version,
            major=facts.major,
            page_size=facts.block_size,
            segment_size=facts.segment_size,
            wal_segment_size=facts.wal_segment_size,
            checksums=bool(facts.data_checksums),
            timeline=end.timeline,
            start_lsn=str(start.lsn),
            stop_lsn=str(end.lsn),
            method="native" if plan.native else "compared" if plan.parent else "full",
            parent=plan.parent.backup if plan.parent else None,
            layers=layers,
            tablespaces=[Tablespace(one.oid, one.location, one.size or 0) for one in start.tablespaces],
            volumes=attempt.received.volumes(),
            files=attempt.received.files,
            bytes_read=counts.read,
            bytes_stored=self.stored,
            bytes_reused=counts.reused,
            server=json.loads(facts.to_json()),
            warnings=[*self.warnings],
            reason=plan.reason,
            bytes_resumed=counts.resumed,
            pages_changed=counts.pages,
            audit=_audit(attempt),
            cuts=[str(one) for one in self.summaries.cuts_before(start.timeline, start.lsn)],
            control=self.options.control,
            outside=list(self.options.outside),
        )


def run_backup(
    repository: Repository,
    source: BackupSource,
    facts: ServerFacts,
    options: BackupOptions,
    stop: StopToken,
    listener: Listener,
    ask_summaries: AskSummaries | None = None,
) -> BackupResult:
    """Take one complete backup and publish it, or leave the repository as it was (but for reusable packs).

    Args: ask_summaries - asks the server what it has summarized; None for a source that knows no increments.
    Raises: Busy, ServerError, StoreError, IntegrityError, Cancelled.
    """
    clock = repository.clock
    began, started = clock.elapsed(), clock.now()
    run = _Run(repository, source, facts, options, stop, listener)
    lease = repository.take_lease("backup", str(facts.system_identifier), stop=stop)
    try:
        repository.require_alone(lease)
        for key in complete_manifests(repository, lease):
            listener(Warned(f"{key} was missing and was written again from its second copy"))
        for text in options.warnings:
            run.warn(text)
        run.guard.before_put(0)
        plan, parent = run.plan(ask_summaries, lease)
        try:
            attempt, end = run.read(plan, parent)
        except IncrementRefused as error:
            if not plan.native:
                raise
            reason = error.message.partition(": ")[2] or error.message
            run.warn(f"the increment was given up and everything is read instead: {reason}")
            plan, parent = run.plan(ask_summaries, lease)
            attempt, end = run.read(plan.instead(reason), parent)
        run.check(attempt, end)
        manifest = run.publish(attempt, end, started, lease)
    finally:
        lease.release()
    return BackupResult(manifest, attempt.counts, run.stored, clock.elapsed() - began, run.warnings)


def _upload(plan: BackupPlan, parent: ParentFiles | None) -> bytes:
    """The manifest of the parent as the server is to know it."""
    if parent is None:
        raise IntegrityError("back up cluster: an increment needs a parent")
    one = parent.manifest
    files = (
        (file.path, file.size, None)
        for file in parent
        if file.whole_pages(one.page_size) is not None and is_uploaded(file.path, plan.slice)
    )
    wal = [WalRange(one.timeline, Lsn.parse(one.start_lsn), Lsn.parse(one.stop_lsn))]
    return build_manifest(files, system_identifier=int(one.system_identifier), wal=wal)


def _tablespaces_moved(parent: Manifest | None, facts: ServerFacts) -> bool:
    known = {one.oid: one.location for one in parent.tablespaces} if parent is not None else {}
    return any(known.get(one.oid, one.location) != one.location for one in facts.tablespaces if one.location)


def _audit(attempt: _Attempt) -> dict[str, Any]:
    if attempt.comparer is None:
        return {}
    found = [asdict(one) | {"path": one.path.decode(errors="replace")} for one in attempt.comparer.mismatches[:20]]
    return {"slice": attempt.plan.slice, "of": SLICES, "pages": attempt.comparer.judged, "mismatches": found}
