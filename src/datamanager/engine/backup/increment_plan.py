"""Whether the next backup can be an increment, and of which backup; else why everything is read. Pure.

Source: ``docs/design.md``, PostgreSQL decisions 4, 5, 7, 18, 19 and 20.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from datamanager.base.units import Lsn
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.incremental import relation_of
from datamanager.postgres.page import relation_segment
from datamanager.postgres.wal_summaries import FIRST_MAJOR, Relation, Summaries, missing_reason
from datamanager.repository.manifest import Manifest

# Once a day an increment has every thirtieth relation file sent whole, another thirtieth each time (decision 5). With
# every increment it would cost a cluster of 1 TiB that is backed up hourly 34 GiB an hour.
SLICES = 30
AUDIT_PACE_SECONDS = 20 * 3600.0  # a daily backup may begin some hours earlier than the one before
_PAGE_SIZE, _SEGMENT_SIZE = 8192, 1 << 30


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What will be asked of the source.

    Args:
        parent: whose pages are compared, and whose layers go on; None for the first backup of a cluster.
        native: the server sends only what changed since the parent.
        reason: why everything is read, a lower-case clause; empty when native.
        slice: number of the relation files that an increment has sent whole; None when it has none.
        whole: relations that it has sent whole because the server may not know what changed in them (decision 26).
    """

    parent: Manifest | None
    native: bool
    reason: str
    slice: int | None = None
    whole: frozenset[Relation] = frozenset()

    def instead(self, reason: str) -> BackupPlan:
        """The same backup, reading everything."""
        return BackupPlan(self.parent, False, reason, self.slice)


def plan_backup(
    manifests: list[Manifest],
    facts: ServerFacts,
    summaries: Summaries | None,
    *,
    damaged: bool,
    full: bool,
    now: datetime,
    audit_pace_seconds: float = AUDIT_PACE_SECONDS,
) -> BackupPlan:
    """Args:
    manifests: of the repository, in order of sequence.
    summaries: what the server said; None for a source that knows no increments.
    damaged: something that the newest backup of this cluster stands on is damaged in the repository.
    full: reading everything was asked for.
    audit_pace_seconds: how long after an audit the next slice is due.
    """
    parent = choose_parent(manifests, facts)
    if parent is None:
        return BackupPlan(None, False, _why_no_parent(manifests, facts))
    obstacles = _obstacles(parent, facts, summaries, damaged, full)
    reason = next(filter(None, obstacles), "")
    number = (last_slice(parent) + 1) % SLICES if _audit_is_due(parent, now, audit_pace_seconds) else None
    whole = frozenset(summaries.shortened) if summaries is not None and not reason else frozenset()
    return BackupPlan(parent, not reason, reason, number, whole)


def last_slice(parent: Manifest) -> int:
    """The slice that was audited last up to this backup; -1 when none was."""
    return int(parent.audit.get("slice", -1))


def _audit_is_due(parent: Manifest, now: datetime, pace_seconds: float) -> bool:
    last = parent.audit.get("at")
    if last is None:
        return True
    age = (now - datetime.fromisoformat(str(last))).total_seconds()
    return not 0 <= age < pace_seconds  # a clock that was set back makes it due


def choose_parent(manifests: list[Manifest], facts: ServerFacts) -> Manifest | None:
    """The newest backup of this very cluster."""
    same = [
        one
        for one in manifests
        if one.system_identifier == str(facts.system_identifier) and one.page_size == facts.block_size
    ]
    return same[-1] if same else None


def _why_no_parent(manifests: list[Manifest], facts: ServerFacts) -> str:
    if not manifests:
        return "it is the first backup in this repository"
    if any(one.system_identifier == str(facts.system_identifier) for one in manifests):
        return "the server's page size differs from that of its backups"
    return "it is the first backup of this cluster in this repository (system identifier)"


def _obstacles(
    parent: Manifest, facts: ServerFacts, summaries: Summaries | None, damaged: bool, full: bool
) -> Iterator[str | None]:
    """Each obstacle in the order in which it makes the later ones meaningless."""
    if full:
        yield "it was asked for"
    if summaries is None:
        yield "the server was not running"
        return
    if facts.major < FIRST_MAJOR:
        yield f"PostgreSQL {facts.major} cannot tell what changed (17 and newer can)"
    if facts.in_recovery:
        yield "the server is a standby"
    if (facts.block_size, facts.segment_size) != (_PAGE_SIZE, _SEGMENT_SIZE):
        yield "increments are taken only with pages of 8 KiB and segments of 1 GiB"
    if parent.major != facts.major:
        yield f"the backup before is of PostgreSQL {parent.major}"
    if parent.control or parent.server.get("in_recovery"):
        yield f"backup {parent.backup} was not taken from a running primary"
    if facts.timeline is not None and parent.timeline != facts.timeline:
        yield f"the server's timeline changed from {parent.timeline} to {facts.timeline}"
    if facts.data_checksums is not None and parent.checksums != facts.data_checksums:
        yield f"page checksums were switched {'on' if facts.data_checksums else 'off'}"
    if parent.damaged:
        yield f"backup {parent.backup} holds pages that were damaged on the server"
    if damaged:
        yield f"something that backup {parent.backup} needs is damaged in the repository"
    cuts = tuple(Lsn.parse(one) for one in parent.cuts)
    yield missing_reason(summaries, parent.timeline, Lsn.parse(parent.start_lsn), Lsn.parse(parent.stop_lsn), cuts)
    if _tablespaces_moved(parent, facts):
        yield "a tablespace has another place than in the backup before"


def _tablespaces_moved(parent: Manifest, facts: ServerFacts) -> bool:
    known = {one.oid: one.location for one in parent.tablespaces}
    return any(known.get(one.oid, one.location) != one.location for one in facts.tablespaces if one.location)


def is_uploaded(path: bytes, number: int | None, whole: frozenset[Relation] = frozenset()) -> bool:
    """Whether the server is told that the parent has this file, so that it sends only what changed in it.

    Everything else comes whole: visibility maps (decision 2), what holds no pages, slice ``number`` (decision 5), and
    relations of which the server may not know what changed (decision 26).
    """
    if relation_segment(path) is None or b"_" in path.rpartition(b"/")[2]:  # "_": a fork, as `16384_vm`
        return False
    if whole and relation_of(path) in whole:
        return False
    return zlib.crc32(path) % SLICES != number


def is_exact(parent: Manifest, facts: ServerFacts) -> bool:
    """Whether every change of a page since the parent is in the WAL, hint bits included."""
    return (parent.checksums and bool(facts.data_checksums)) or (_logs_hints(parent.server) and _logs_hints_now(facts))


def _logs_hints(server: dict[str, object]) -> bool:
    settings = server.get("settings")
    found = settings if isinstance(settings, list) else []
    return any(one.get("name") == "wal_log_hints" and one.get("value") == "on" for one in found)


def _logs_hints_now(facts: ServerFacts) -> bool:
    return any(one.name == "wal_log_hints" and one.value == "on" for one in facts.settings)
