"""The record of a backup: what its manifest says."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from datetime import datetime
from typing import Any

from datamanager import __version__
from datamanager.engine.backup.attempt import Attempt
from datamanager.engine.backup.increment_plan import SLICES, last_slice
from datamanager.engine.backup.session import BackupSession
from datamanager.postgres.source import SourceEnd
from datamanager.repository.manifest import LayerReference, Manifest, Tablespace


def make_manifest(
    session: BackupSession,
    attempt: Attempt,
    end: SourceEnd,
    layers: list[LayerReference],
    line: dict[str, Any],
    started: datetime,
) -> Manifest:
    """The manifest of a backup that was read and checked. Args: line - see ``next_in_line``."""
    facts, plan, counts, start = session.facts, attempt.plan, attempt.counts, attempt.started()
    return Manifest(
        backup=f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        **line,
        cluster=session.options.cluster,
        label=session.options.label,
        program=f"datamanager {__version__}",
        started=started.isoformat(timespec="seconds"),
        ended=session.repository.clock.now().isoformat(timespec="seconds"),
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
        bytes_stored=session.stored,
        bytes_reused=counts.reused,
        server=json.loads(facts.to_json()),
        warnings=[*session.warnings],
        reason=plan.reason,
        bytes_resumed=counts.resumed,
        pages_changed=counts.pages,
        audit=_audit(attempt, started),
        cuts=[str(one) for one in session.summaries.cuts_before(start.timeline, start.lsn)],
        control=session.options.control,
        outside=list(session.options.outside),
    )


def _audit(attempt: Attempt, started: datetime) -> dict[str, Any]:
    """When pages were last held against the repository, which slice, and what was found now."""
    plan, now = attempt.plan, started.isoformat(timespec="seconds")
    if plan.parent is None or attempt.comparer is None:
        return {"at": now}
    number = plan.slice if plan.native and plan.slice is not None else last_slice(plan.parent)
    looked = not plan.native or plan.slice is not None
    found = [asdict(one) | {"path": one.path.decode(errors="replace")} for one in attempt.comparer.mismatches[:20]]
    return {
        "at": now if looked else plan.parent.audit.get("at", plan.parent.started),
        "slice": number,
        "of": SLICES,
        "pages": attempt.comparer.judged,
        "mismatches": found,
    }
