"""Verify a repository: read what is stored and prove that it is what was written.

    present   keys, manifests, marks and metadata packs with their twins are read and authenticated; every layer
              decodes; every data pack is there with a size that a pack can have
    known     also the data packs that damaged lists name, as below
    sample    also a random share of the data packs
    rolling   also the share of the data packs that is due (``verify_rolling.py``)
    full      also every stored byte of every pack: chunks decrypted, decompressed, measured and recognized by their
              fingerprint, and every row of every backup points to pages that exist

Archived WAL is read likewise (``wal.py``): records of lines always, stretches as ``sample``, ``rolling``, ``full`` say.

All damages are found, each with the backups that it affects. Where the medium can be written, damaged data packs are
written down, so that no writer relies on them; what passed ``full`` gets the mark ``verified``; ``rolling`` and
``full`` note what was read when. Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from datamanager.base.errors import ObjectExists, StoreDenied, StoreFull, UsageError
from datamanager.base.events import Listener, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.findings import BackupVerdict, Damage, Findings, VerifyOptions
from datamanager.engine.verify.rolling import oldest_waiting
from datamanager.engine.verify.steps import VerifyRun
from datamanager.engine.verify.wal import WalRead, verify_wal
from datamanager.repository.checked import save_checked
from datamanager.repository.damaged import DamagedItem, record
from datamanager.repository.lease import Lease
from datamanager.repository.mark import backup_of
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

VERIFIED = "verified"

__all__ = ["VERIFIED", "BackupVerdict", "Damage", "VerifyOptions", "VerifyResult", "verify_repository"]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was found. ``objects`` and ``bytes`` count what was read and authenticated.

    Args:
        packs, packs_read: data packs that were looked for, and how many of them were read.
        wal: the same of archived WAL.
        damaged: data packs, or chunks of them, that no writer may rely on.
        unreferenced_packs: keys of packs that no backup uses: left by cut runs, or being written right now.
        oldest_unread_seconds: for how long the stored byte that has waited longest was neither written nor read by
            ``rolling`` or ``full``; None where there are no packs, or only some backups were looked at.
    """

    backups: list[BackupVerdict]
    objects: int
    bytes: int
    packs: int
    packs_read: int
    wal: WalRead
    damages: list[Damage]
    damaged: list[DamagedItem]
    unreferenced_packs: list[str]
    oldest_unread_seconds: float | None
    warnings: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """No damage at all, not even to a second copy."""
        return not self.damages


def verify_repository(
    repository: Repository, options: VerifyOptions, stop: StopToken, listener: Listener
) -> VerifyResult:
    """Read the repository and report every damage; see the module.

    Raises: NotFound (a backup that was asked for), UsageError, StoreError when the store as a whole does not answer,
    Cancelled. Damage is a result, never an exception.
    """
    if options.threads < 1 or options.rolling_days < 1 or not 0 < options.sample_percent <= 100:
        raise UsageError(
            "verify repository: threads and days are 1 or more, a sample is above 0 to 100 percent",
            hint="Give other numbers.",
        )
    if options.depth == "rolling" and options.backups is not None:
        raise UsageError(
            "verify repository: a rolling verify reads the repository, not single backups", hint="Give one of them."
        )
    began = repository.clock.elapsed()
    findings = Findings(listener)
    lease = repository.take_lease_if_possible("verify", [], findings.warn, stop=stop)
    try:
        now = _store_time(repository, lease)
        run = VerifyRun(repository, options, findings, stop, listener)
        run.metadata()
        if lease is not None:
            lease.renew(sorted(run.selected))
        run.meta_packs()
        run.layers()
        data = run.packs(now)
        run.rows()
        wal = WalRead()
        if options.backups is None:
            wal = verify_wal(run.repository, options, findings, stop, now)
        verdicts, damaged = run.verdicts(), run.damaged()
        if lease is not None and options.write_down and options.depth != "present":
            _write_down(repository, run, damaged, now, findings)
    finally:
        if lease is not None:
            lease.release()
    if options.depth == "full" and options.write_down:
        _mark(repository, verdicts, findings)
    for warning in findings.warnings:
        listener(Warned(warning))
    whole = options.backups is None
    return VerifyResult(
        backups=verdicts,
        objects=findings.objects,
        bytes=findings.bytes,
        packs=len(run.users) + (len(data.unreferenced) if whole else 0),
        packs_read=data.packs_read,
        wal=wal,
        damages=findings.damages(),
        damaged=damaged,
        unreferenced_packs=data.unreferenced if whole else [],
        oldest_unread_seconds=oldest_waiting(run.folders, dict.fromkeys(run.read_folders, now), now),
        warnings=findings.warnings,
        seconds=repository.clock.elapsed() - began,
    )


def _store_time(repository: Repository, lease: Lease | None) -> float:
    """Now, in seconds since 1970, by the clock that gives packs their times; ours where nothing can be written."""
    now = repository.clock.now().timestamp()
    if lease is None:
        return now
    mine = f"leases/{lease.record.writer}-"
    return max((one.mtime for one in repository.storage.list("leases/") if one.key.startswith(mine)), default=now)


def _write_down(
    repository: Repository, run: VerifyRun, damaged: list[DamagedItem], now: float, findings: Findings
) -> None:
    """Damaged lists and what was read when; what cannot be written is a warning."""
    try:
        record(repository, damaged, run.settled)
        if run.read_folders:
            save_checked(repository, dict.fromkeys(run.read_folders, now), now)
    except (StoreDenied, StoreFull, ObjectExists) as error:
        findings.warn(f"{error.message}; what this verification found could not be written down there")


def _mark(repository: Repository, verdicts: list[BackupVerdict], findings: Findings) -> None:
    """Mark what passed as verified. Of several such marks of a backup the newest stays, of one that failed none."""
    try:
        newest: dict[str, float] = {
            one.backup: repository.put_mark(one.backup, VERIFIED).sequence if one.ok else math.inf for one in verdicts
        }
        for stored in [*repository.storage.list("marks/")]:
            backup, sequence = backup_of(stored.key) or ("", 0)
            if sequence < newest.get(backup, 0) and _says_verified(repository, stored.key):
                repository.storage.delete(stored.key)
    except (StoreDenied, StoreFull) as error:
        findings.warn(f"{error.message}; that the backups are verified could not be written down there")


def _says_verified(repository: Repository, key: str) -> bool:
    try:
        return repository.mark(key).name == VERIFIED
    except UNREADABLE:
        return False
