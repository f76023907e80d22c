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

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from datamanager.base.errors import IncrementRefused, NotFound
from datamanager.base.events import Listener, Touched, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_size
from datamanager.engine.backup.attempt import Attempt
from datamanager.engine.backup.comparing import MOST_MISMATCHES
from datamanager.engine.backup.damage import find_damage
from datamanager.engine.backup.increment_plan import BackupPlan, choose_parent, plan_backup
from datamanager.engine.backup.packing import PackingCounts
from datamanager.engine.backup.record import make_manifest
from datamanager.engine.backup.session import BackupOptions, BackupSession
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.source import BackupSource, SourceEnd
from datamanager.postgres.wal_summaries import FIRST_MAJOR, Summaries
from datamanager.repository.commit import complete_manifests, next_in_line, publish
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import pack_id
from datamanager.repository.known import ParentFiles
from datamanager.repository.layers.stack import push_layer
from datamanager.repository.lease import Lease
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

# Timeline and start of the parent, or None -> what the server has summarized, once it has arrived there.
AskSummaries = Callable[[tuple[int, Lsn] | None], Summaries]

_KEPT_NOTICES = 100  # a server with a broken disk warns five times a file


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published backup. Sizes in bytes; ``stored`` counts everything this run put into the repository."""

    manifest: Manifest
    counts: PackingCounts
    stored: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


class _Backup:
    """The steps of one backup around the reading."""

    def __init__(self, session: BackupSession) -> None:
        self.session = session
        self.repository = session.repository

    def manifests(self) -> list[Manifest]:
        """In order of sequence; one that cannot be read is told of and left out."""
        found = []
        for name in self.repository.backup_ids():
            try:
                found.append(self.repository.manifest(name))
            except NotFound:
                continue  # deleted since it was listed
            except UNREADABLE as error:
                self.session.warn_once(f"{error.message}; that backup cannot be restored from here")
        return sorted(found, key=lambda one: (one.sequence, one.backup))

    def plan(self, ask: AskSummaries | None, lease: Lease) -> tuple[BackupPlan, ParentFiles | None]:
        """What to ask of the source, and what the parent holds."""
        self.session.phase("reading what is stored")
        manifests, lost = self.manifests(), ""
        broken: set[bytes] = set()
        files = None
        while files is None and (parent := choose_parent(manifests, self.session.facts)) is not None:
            lease.renew([parent.backup])
            damaged = DamagedChunks.load(self.repository)
            try:
                contents = self.repository.contents(parent)
                files = ParentFiles(self.repository, contents, parent, damaged)
                broken = files.broken_packs({pack_id(one.key) for one in self.repository.storage.list("packs/")})
            except UNREADABLE as error:
                self.session.warn_once(f"{error.message}; nothing of backup {parent.backup} is reused")
                manifests.remove(parent)
                files, lost = None, parent.backup
        if ask is not None and self.session.facts.major >= FIRST_MAJOR:
            reach = (parent.timeline, Lsn.parse(parent.start_lsn)) if parent is not None else None
            self.session.summaries = ask(reach)
        summaries = self.session.summaries if ask is not None else None
        plan = plan_backup(
            manifests,
            self.session.facts,
            summaries,
            damaged=bool(broken),
            full=self.session.options.full,
            now=self.repository.clock.now(),
            audit_pace_seconds=self.session.options.audit_pace_seconds,
        )
        if plan.parent is None and lost:
            plan = plan.instead(f"backup {lost} cannot be read")
        return plan, files

    def check_shortened(self, attempt: Attempt, ask: AskSummaries | None) -> None:
        """Between the plan and the server's start more relations may have been cut short. Raises: IncrementRefused."""
        plan = attempt.plan
        if not plan.native or plan.parent is None or ask is None:
            return
        found = ask((plan.parent.timeline, Lsn.parse(plan.parent.start_lsn)))
        if found.unknown:
            raise IncrementRefused(f"check increment: {found.unknown}")
        start = attempt.started().lsn
        # What the last summary alone says of cuts, nothing that comes after it can contradict.
        if any(seen < start and relation not in plan.whole for relation, seen in found.shortened.items()):
            raise IncrementRefused("check increment: a table was cut short while the backup began")

    def check(self, attempt: Attempt, end: SourceEnd) -> None:
        """What came is what the source sent, and what the parent holds is what the server held."""
        self.session.phase("checking")
        for warning in end.warnings:
            self.session.warn(warning)
        for notice in end.notices[:_KEPT_NOTICES]:  # such as that it skipped a special file (decision 22)
            self.session.warn(f"the server said: {notice}")
        if len(end.notices) > _KEPT_NOTICES:
            self.session.warn(f"the server said {len(end.notices) - _KEPT_NOTICES} things more")
        attempt.received.check(end.manifest)
        found = attempt.comparer.mismatches if attempt.comparer is not None else []
        if found and attempt.plan.parent is not None:
            many = f"{len(found)} pages" if len(found) < MOST_MISMATCHES else f"{MOST_MISMATCHES} pages or more"
            self.session.warn(
                f"{many} of backup {attempt.plan.parent.backup} are not what the server held, although nothing "
                f"changed them since (first: {found[0].path.decode(errors='replace')}, block {found[0].block}); "
                "this backup read them anew"
            )

    def publish(self, attempt: Attempt, end: SourceEnd, started: datetime, lease: Lease) -> Manifest:
        """Raises: StoreError, IntegrityError, Busy, Cancelled."""
        self.session.phase("publishing")
        parent = attempt.plan.parent
        for builder in (attempt.layer, attempt.anew):
            for pack, _ in list(builder.packs):
                digest = attempt.digests.get(pack)
                builder.set_digest(pack, digest or self.repository.pack(pack).directory.digest())
        builders = [attempt.layer, attempt.anew] if attempt.anew.files else [attempt.layer]
        layers = push_layer(
            self.repository, builders, parent.layers if parent else [], self.session.stop, self.session.guard.before_put
        )
        line = next_in_line(self.manifests(), self.repository)  # another cluster's backup may have ended meanwhile
        manifest = make_manifest(self.session, attempt, end, layers, line, started)
        if end.checksum_failure:
            manifest = self._flag_damage(manifest, end)
        self.session.stop.check()
        publish(self.repository, lease, manifest)
        return manifest

    def _flag_damage(self, manifest: Manifest, end: SourceEnd) -> Manifest:
        self.session.phase("finding damaged pages")
        contents = self.repository.contents(manifest)
        start = Lsn.parse(manifest.start_lsn)
        failures = find_damage(self.repository, contents, end.notices, start, manifest.segment_size, self.session.stop)
        for failure in failures:
            self.session.warn(
                f"the server's file {failure.path} holds {len(failure.blocks)} pages with wrong checksums "
                f"(first: block {failure.blocks[0]}); the backup is kept and flagged as damaged"
            )
        if not failures:
            self.session.warn("the server found pages with wrong checksums that were right when they were stored")
        return replace(manifest, checksum_failures=failures, warnings=[*self.session.warnings])


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
    session = BackupSession(repository, facts, options, stop, listener)
    run = _Backup(session)
    lease = repository.take_lease("backup", str(facts.system_identifier), stop=stop)
    try:
        repository.require_alone(lease)
        for key in complete_manifests(repository, lease):
            listener(Warned(f"{key} was missing and was written again from its second copy"))
        for text in options.warnings:
            session.warn(text)
        for database in facts.databases:
            size = "" if database.size_bytes is None else f", {format_size(database.size_bytes)}"
            listener(Touched(f"database {database.name}{size}"))
        session.guard.before_put(0)
        plan, parent = run.plan(ask_summaries, lease)
        try:
            attempt = Attempt(session, plan, parent)
            end = attempt.read(source)
            run.check_shortened(attempt, ask_summaries)
        except IncrementRefused as error:
            if not plan.native:
                raise
            reason = error.message.partition(": ")[2] or error.message
            session.warn(f"the increment was given up and everything is read instead: {reason}")
            plan, parent = run.plan(ask_summaries, lease)
            attempt = Attempt(session, plan.instead(reason), parent)
            end = attempt.read(source)
        run.check(attempt, end)
        manifest = run.publish(attempt, end, started, lease)
        listener(Touched(f"{manifest.files} files, {format_size(manifest.total_bytes)}"))
    finally:
        lease.release()
    return BackupResult(manifest, attempt.counts, session.stored, clock.elapsed() - began, session.warnings)
