"""One reading of a source: files in, packs and the rows of a new layer out. A second one begins with nothing of it."""

from __future__ import annotations

from datamanager.base.errors import IncrementRefused, IntegrityError
from datamanager.base.events import Progress
from datamanager.base.pipeline import TaskGroup
from datamanager.base.units import Lsn
from datamanager.engine.backup.chunking import ChunkCutter
from datamanager.engine.backup.comparing import PageComparer
from datamanager.engine.backup.defragment import scattered_regions, store_anew
from datamanager.engine.backup.increment_plan import BackupPlan, is_exact, is_uploaded
from datamanager.engine.backup.packing import Packer, PackingCounts
from datamanager.engine.backup.received import SERVER_MANIFEST, ReceivedFiles
from datamanager.engine.backup.session import BackupSession
from datamanager.engine.backup.wal_watch import WalWatch
from datamanager.postgres.server_manifest import WalRange, build_manifest
from datamanager.postgres.source import BackupSource, SourceEnd, SourceStart
from datamanager.repository.condemned import condemned_packs
from datamanager.repository.format import Kind
from datamanager.repository.known import LeftoverChunks, ParentFiles
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileFlag
from datamanager.repository.packs.pack import SealedPack
from datamanager.repository.packs.stream import PackStream


class Attempt:
    """Used once. Args: parent - the files of ``plan.parent``."""

    def __init__(self, session: BackupSession, plan: BackupPlan, parent: ParentFiles | None) -> None:
        self._session = session
        self._parent = parent
        self.plan = plan
        self.layer = LayerBuilder()
        self.anew = LayerBuilder()  # what was too scattered in the parent
        self.received = ReceivedFiles()
        self.digests: dict[bytes, bytes] = {}
        self.start: SourceStart | None = None
        self.counts = PackingCounts()
        self.comparer = self._comparer(plan, parent)
        self._done = 0

    def started(self) -> SourceStart:
        """Raises: IntegrityError, when the source never said that it began."""
        if self.start is None:
            raise IntegrityError("back up cluster: the source never started")
        return self.start

    def read(self, source: BackupSource) -> SourceEnd:
        """Read the source once. Raises: IncrementRefused, when a full read is to be made instead."""
        plan, parent = self.plan, self._parent
        upload = _upload(plan, parent) if plan.native else None
        leftovers = LeftoverChunks()
        if not plan.native:
            leftovers = LeftoverChunks.gather(
                self._session.repository, condemned_packs(self._session.repository), self._session.stop
            )
        self._session.phase(
            "waiting for the server's checkpoint" if self._session.options.control == {} else "reading the directory"
        )
        with TaskGroup(self._session.stop) as group:
            packer = self._packer(group, leftovers)
            cutter = ChunkCutter(
                self._session.facts.block_size,
                parent,
                plan.native,
                self.received,
                packer.take_buffer,
                packer.hand_over,
                self._began,
            )
            watch = WalWatch(cutter)
            end = source.run(watch, self._session.stop, upload)
            watch.check()
            if not plan.native:
                cutter.add_file(SERVER_MANIFEST, 0o600, end.manifest)
            cutter.finish()
            packer.close()
        self.counts = packer.counts
        if parent is not None:
            for file in parent.unseen():
                self.layer.begin_file(file.path, file.kind, file.mode)
                self.layer.end_file(0, flags=FileFlag.GONE)
            self._defragment(parent)
        return end

    def _defragment(self, parent: ParentFiles) -> None:
        size = self._session.facts.block_size
        regions = scattered_regions(parent, size, self._session.options.scatter)
        if not regions:
            return
        self._session.phase("storing anew what is scattered")
        key = self._session.repository.ring.fingerprint_key.reveal()
        with TaskGroup(self._session.stop) as group:
            stream = PackStream(
                self._session.repository.objects, Kind.PACK, group, self._on_stored, self._session.guard.before_put
            )
            store_anew(regions, parent, stream, self.anew, key, size, self._session.options.level, self._session.stop)

    def _on_stored(self, pack: SealedPack) -> None:
        self.digests[pack.id] = pack.digest
        self._session.stored_pack(pack.size)

    def _packer(self, group: TaskGroup, leftovers: LeftoverChunks) -> Packer:
        stream = PackStream(
            self._session.repository.objects, Kind.PACK, group, self._on_stored, self._session.guard.before_put
        )
        return Packer(
            group,
            stream,
            self.layer,
            self.received,
            self._session.repository.ring.fingerprint_key.reveal(),
            self._session.facts.block_size,
            self.comparer,
            leftovers,
            self._session.options.level,
            self._session.options.threads,
            self._progress,
        )

    def _comparer(self, plan: BackupPlan, parent: ParentFiles | None) -> PageComparer | None:
        if parent is None:
            return None
        one = parent.manifest
        # On another timeline a page's LSN may belong to another history.
        comparable = plan.native or (
            one.timeline == self._session.facts.timeline and not one.control and not one.damaged
        )
        judged_to = Lsn.parse(one.start_lsn) if comparable else Lsn(0)
        exact = is_exact(one, self._session.facts)
        return PageComparer(parent, self._session.facts.block_size, judged_to, exact=exact, strict=plan.native)

    def _began(self, start: SourceStart) -> None:
        parent = self.plan.parent
        if self.plan.native and parent is not None and start.timeline != parent.timeline:
            raise IncrementRefused(f"back up cluster: the server's timeline is {start.timeline} by now")
        self.start = start
        self._session.phase("copying")

    def _progress(self, size: int) -> None:
        self._done += size
        if self.plan.native and self._parent is not None:
            # Of an increment the server announces the size of a full read (PostgreSQL decision 17).
            self._session.listener(Progress(self._done, fraction=self._parent.share_seen))
            return
        total = self.start.total_bytes if self.start else None
        self._session.listener(Progress(self._done, max(total, self._done) if total else None))


def _upload(plan: BackupPlan, parent: ParentFiles | None) -> bytes:
    """The manifest of the parent as the server is to know it."""
    if parent is None:
        raise IntegrityError("back up cluster: an increment needs a parent")
    one = parent.manifest
    files = (
        (file.path, file.size, None)
        for file in parent
        if file.whole_pages(one.page_size) is not None and is_uploaded(file.path, plan.slice, plan.whole)
    )
    wal = [WalRange(one.timeline, Lsn.parse(one.start_lsn), Lsn.parse(one.stop_lsn))]
    return build_manifest(files, system_identifier=int(one.system_identifier), wal=wal)
