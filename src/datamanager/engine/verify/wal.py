"""The archived WAL in a verification: the records of lines with their twins, and every stretch, or a share of them.

A rolling verify keeps no state for WAL: each stretch has its day in the cycle, by a hash of its name, so that a run a
day reads all of them within so many days. What is damaged is reported with what cannot be reached any more.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from datamanager.base.errors import DataManagerError, ObjectMissing
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.verify.findings import Findings, VerifyOptions, cause, require_store
from datamanager.repository.format import Kind
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, LineRecord, WalArchive, systems
from datamanager.repository.wal.names import Range, StoredWal, merged, system_folder

_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class WalRead:
    """How many stretches there are, and how many were read."""

    stretches: int = 0
    stretches_read: int = 0


def verify_wal(
    repository: Repository, options: VerifyOptions, findings: Findings, stop: StopToken, now: float
) -> WalRead:
    """Read what the depth asks for and report every damage. Raises: StoreError (the store is gone), Cancelled."""
    found = read = 0
    for system in systems(repository):
        _check_records(repository, system, findings)
        archive = WalArchive(Repository(repository.storage, repository.ring, repository.clock), system)
        for line in archive.lines():
            stored = line.stored()
            wanted = _wanted(stored, options, now)
            findings.expect(sum(one.size for one in wanted))
            for one in wanted:
                stop.check()
                _check_stretch(repository, line, one, stored, findings)
            found, read = found + len(stored), read + len(wanted)
    return WalRead(found, read)


def _wanted(stored: Sequence[StoredWal], options: VerifyOptions, now: float) -> list[StoredWal]:
    match options.depth:
        case "full":
            return list(stored)
        case "sample":
            return [one for one in stored if random.SystemRandom().random() * 100 < options.sample_percent]
        case "rolling":
            days = options.rolling_days
            today = int(now // _DAY_SECONDS) % days
            return [one for one in stored if zlib.crc32(one.key.encode()) % days == today]
        case _:
            return []


def _check_records(repository: Repository, system: int, findings: Findings) -> None:
    """Both copies of what each line is."""
    folder = f"{system_folder(system)}lines/"
    listed = {one.key: one for one in repository.storage.list(folder)}
    names = {key[:-2] for key in listed if key.endswith(("-a", "-b"))}
    for name in sorted(names):
        faults: dict[str, str] = {}
        for key in (f"{name}-a", f"{name}-b"):
            try:
                plain, _ = repository.objects.get_small(Kind.LINE, name, [key])
                LineRecord.from_json(plain, name)
                findings.read(listed[key].size if key in listed else 0)
            except UNREADABLE as error:
                require_store(repository.storage)
                faults[key] = "it is missing" if isinstance(error, ObjectMissing) else cause(error)
        for key, what in faults.items():
            lost = len(faults) > 1
            more = "; the WAL of its line cannot be used" if lost else ""
            findings.damage(key, f"{what}{more}", [], redundant=not lost)


def _check_stretch(
    repository: Repository, line: Line, one: StoredWal, stored: Sequence[StoredWal], findings: Findings
) -> None:
    try:
        line.check(one)
    except ObjectMissing:
        return  # a longer one has taken its place since it was listed, or nothing needs it any more
    except UNREADABLE as error:
        require_store(repository.storage)
        _report(repository, line, one, stored, error, findings)
    findings.read(one.size)


def _report(
    repository: Repository,
    line: Line,
    one: StoredWal,
    stored: Sequence[StoredWal],
    error: DataManagerError,
    findings: Findings,
) -> None:
    held = [other for other in stored if other.key != one.key and other.start < one.end and one.start < other.end]
    good = merged([Range(other.start, other.end) for other in held if _reads(line, other)])
    if any(each.start <= one.start and one.end <= each.end for each in good):
        findings.damage(one.key, cause(error), [], redundant=True)
        return
    until = _first_behind(repository, line, one.end)
    reach = f"until backup {until}" if until else "until the next backup"
    findings.damage(
        one.key,
        f"{cause(error)}; the WAL of timeline {line.timeline} from {one.start} to {one.end} is lost, so no moment "
        f"behind it can be restored {reach}",
        [],
    )


def _reads(line: Line, one: StoredWal) -> bool:
    try:
        line.check(one)
    except UNREADABLE:
        return False
    return True


def _first_behind(repository: Repository, line: Line, end: int) -> str:
    """The first backup on the line's timeline from which replay begins behind a place."""
    found: list[Manifest] = []
    for name in repository.backup_ids():
        try:
            manifest = repository.manifest(name)
        except DataManagerError:
            continue
        same = manifest.system_identifier == str(line.record.system) and manifest.timeline == line.timeline
        if same and Lsn.parse(manifest.start_lsn) >= end:
            found.append(manifest)
    return min(found, key=lambda one: one.stop).backup if found else ""
