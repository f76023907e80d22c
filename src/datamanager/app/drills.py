"""Test restores: run one, list and show what they showed, clear up after killed ones."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from datamanager.app import backups
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose_holding, opened
from datamanager.base.errors import DataManagerError, NotFound, ProofFailed, StoreError
from datamanager.base.events import PhaseStarted, Warned
from datamanager.base.units import format_duration
from datamanager.config.home import Home, inside, make_private_folder
from datamanager.drills.findings import remedy, summary
from datamanager.drills.leftovers import remove_leftovers
from datamanager.drills.marks import put_result
from datamanager.drills.plan import DrillOptions, plan_drill
from datamanager.drills.run import DrillResult, run_drill
from datamanager.postgres.account import Account, UnixAccount, service_account
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DISPROVEN, PROVEN, Mark
from datamanager.repository.repository import Repository
from datamanager.state.model import Proof

# On a disk, where the other folder for temporary files often is not.
_LASTING_TEMPORARY = Path("/var/tmp")


@dataclass(frozen=True)
class Request:
    """Which backup is tested, and where.

    Args:
        backup: id, the beginning of one, or ``latest``.
        repository: a name or an address; None for the cluster's, or the only one.
        scratch: the folder for the restored copy; None for the home's, or one for temporary files.
        amcheck: also hold indexes against their tables.
        keep: leave the restored copy, stopped.
    """

    backup: str = "latest"
    repository: str | None = None
    cluster: str | None = None
    scratch: Path | None = None
    amcheck: bool = True
    keep: bool = False


@dataclass(frozen=True)
class Drilled:
    """A test restore that came to its end. ``failure`` is set when the backup did not pass."""

    proof: Proof
    kept: Path | None = None
    failure: ProofFailed | None = None


@dataclass(frozen=True)
class Listed:
    """What a test restore showed; ``note`` is all that is known of one that only the repository remembers."""

    proof: Proof
    note: str = ""


def run(context: Context, request: Request, unlocking: Unlocking) -> Drilled:
    """Restore a backup beside everything else, start it, read all of it, remove it, and write down what came out.

    Raises: NotFound, UsageError, TargetUnfit, TargetTooSmall, ServerMismatch, ProgramMissing, ServerUnfit,
    ServerDidNotStart, StoreError, Cancelled. A backup that does not pass is no error here.
    """
    sweep(context)
    account = service_account()
    make_private_folder(context.home.drills)
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        context.listener(PhaseStarted("planning"))
        manifest = repository.find(request.backup, request.cluster)
        cluster = context.config().clusters.get(manifest.cluster)
        options = DrillOptions(
            scratch_folder(context.home, request.scratch, account),
            context.home.drills,
            account,
            backups.processors(),
            cluster.install_path if cluster else None,
            request.amcheck,
            request.keep,
        )
        plan = plan_drill(repository, manifest, options)
        time = context.clock.now()
        result = run_drill(repository, plan, context.clock, context.stop, context.listener)
        proof = _proof(manifest, result, time, named.title)
        _note(context, repository, proof)
    failure = None
    if not proof.passed:
        hint = remedy(result.findings, manifest.backup)
        failure = ProofFailed(f"test backup {manifest.backup}: {proof.finding}", hint=hint)
    return Drilled(proof, result.kept, failure)


def sweep(context: Context) -> list[Path]:
    """End and remove what killed test restores left behind; returns their folders. Safe at any time."""
    return remove_leftovers(context.home.drills, lambda text: context.listener(Warned(text)))


def scratch_folder(home: Home, wanted: Path | None, account: Account) -> Path:
    """Where the restored copy goes: the folder wanted, the home's own, else one for temporary files.

    The server's account must be able to enter it. The home's own is opened for that account as far as passing through
    goes; one that holds the configuration and its keys is not, nor is any folder above the home.
    Raises: ConfigurationError.
    """
    if wanted is not None:
        return wanted.absolute()
    own = home.scratch
    if not own.is_dir():
        make_private_folder(home.state)
        make_private_folder(own)
    if isinstance(account, UnixAccount) and not account.can_reach(own):
        own.chmod(0o711)
        if not inside(home.config, home.state) and account.can_reach(home.state.parent) and _is_ours(home.state):
            home.state.chmod(home.state.stat().st_mode & 0o7777 | 0o011)
    if account.can_reach(own):
        return own
    temporary = [_LASTING_TEMPORARY, Path(tempfile.gettempdir()).absolute()]
    return next((one for one in temporary if one.is_dir() and account.can_reach(one)), own)


def _is_ours(folder: Path) -> bool:
    return sys.platform != "win32" and folder.stat().st_uid == os.geteuid()


def _proof(manifest: Manifest, result: DrillResult, time: datetime, source: str) -> Proof:
    return Proof(
        backup=manifest.backup,
        cluster=manifest.cluster,
        system_identifier=str(manifest.system_identifier),
        backup_time=datetime.fromisoformat(manifest.ended),
        time=time,
        passed=result.passed,
        seconds=round(result.seconds, 3),
        restore_seconds=round(result.restore_seconds, 3),
        checks=result.checks(),
        finding=summary(result.findings, result.more_findings),
        source=source,
        host=platform.node(),
    )


def _note(context: Context, repository: Repository, proof: Proof) -> None:
    """Write on the backup itself what came out: retention goes by that, and it outlives this computer."""
    note = summary_of(proof) if proof.passed else proof.finding
    try:
        put_result(repository, proof.backup, note[:_LONGEST_NOTE], passed=proof.passed)
    except StoreError as error:
        # The drive in the safe may be write-protected; what was shown holds all the same.
        context.listener(Warned(f"the result could not be noted in the repository: {error.message}"))


_LONGEST_NOTE = 1000


def summary_of(proof: Proof) -> str:
    """What was looked at and how long it took, in one clause."""
    back = format_duration(proof.restore_seconds)
    return f"{counted_words(proof)} read; back in {back}; amcheck {proof.checks.get('amcheck', 'not known')}"


def counted_words(proof: Proof) -> str:
    """As ``3 databases, 214 tables, 1,203,311 rows``."""
    named = {"databases": "database", "tables": "table", "rows": "row", "large_objects": "large object"}
    counts = [(int(proof.checks.get(name, 0)), word) for name, word in named.items()]
    return ", ".join(
        f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts if count or word != "large object"
    )


def listed(
    context: Context, repository: str | None, cluster: str | None, unlocking: Unlocking, limit: int | None = None
) -> list[Listed]:
    """Test restores, newest first: those that the state knows, and those that only a repository remembers.

    What cannot be opened is told to the listener. Raises: as ``opened``, when one repository was named.
    """
    known = _from_state(context, cluster)
    found = {(one.proof.backup, _second(one.proof.time)): one for one in known}
    remembered, errors = _from_marks(context, repository, cluster, unlocking)
    for error in errors:
        context.listener(Warned(error.message))
    for one in remembered:
        if not any(_same_drill(one.proof, other.proof) for other in known):
            found.setdefault((one.proof.backup, _second(one.proof.time)), one)
    ordered = sorted(found.values(), key=lambda one: one.proof.time, reverse=True)
    return ordered if limit is None else ordered[:limit]


def shown(context: Context, backup: str, repository: str | None, cluster: str | None, unlocking: Unlocking) -> Listed:
    """The newest test restore of a backup (id, the beginning of one), or with ``latest`` of any. Raises: NotFound."""
    for one in listed(context, repository, cluster, unlocking):
        name = one.proof.backup
        if backup == "latest" or name.startswith(backup) or name.endswith(f"-{backup}"):
            return one
    what = "no backup was tested yet" if backup == "latest" else f"no backup {backup!r} was tested yet"
    raise NotFound(f"find test restore: {what}", hint="Run one with `datamanager drill run`.")


def _from_state(context: Context, cluster: str | None) -> list[Listed]:
    """An empty list, and a warning, when the state cannot be used: the marks still tell the most of it."""
    try:
        with context.state() as state:
            return [Listed(one) for one in state.proofs.list(cluster, None)]
    except DataManagerError as error:
        context.stop.check()
        context.listener(Warned(f"the history is not at hand, only the repositories' notes: {error.message}"))
        return []


def _from_marks(
    context: Context, repository: str | None, cluster: str | None, unlocking: Unlocking
) -> tuple[list[Listed], list[DataManagerError]]:
    found, errors = backups.listed(context, repository, cluster, replace(unlocking, ask_passphrase=None))
    return [
        _remembered(one.repository, one.manifest, mark)
        for one in found
        for mark in one.marks
        if mark.name in (PROVEN, DISPROVEN)
    ], errors


def _remembered(source: str, manifest: Manifest, mark: Mark) -> Listed:
    """What a mark tells; the times are not known, nor the host."""
    passed = mark.name == PROVEN
    proof = Proof(
        backup=manifest.backup,
        cluster=manifest.cluster,
        system_identifier=str(manifest.system_identifier),
        backup_time=datetime.fromisoformat(manifest.ended),
        time=datetime.fromisoformat(mark.time),
        passed=passed,
        seconds=0.0,
        restore_seconds=0.0,
        finding="" if passed else mark.note,
        source=source,
    )
    return Listed(proof, mark.note)


def _same_drill(mark: Proof, known: Proof) -> bool:
    """Whether a mark was put by a drill that the state knows: one of the same backup ended just before it."""
    apart = (mark.time - known.time).total_seconds()
    return (
        mark.backup == known.backup and mark.passed == known.passed and -2 <= apart <= known.seconds + _NOTING_SECONDS
    )


# Between the last check and the mark the copy is removed, which may take a while.
_NOTING_SECONDS = 900.0


def _second(time: datetime) -> datetime:
    return time.replace(microsecond=0)


def fields(proof: Proof) -> Mapping[str, object]:
    """The fields of a proof, ready for JSON; the history takes them in from the result of ``drill run``."""
    return {
        "backup": proof.backup,
        "cluster": proof.cluster,
        "system_identifier": proof.system_identifier,
        "backup_time": proof.backup_time.isoformat(),
        "time": proof.time.isoformat(),
        "passed": proof.passed,
        "seconds": proof.seconds,
        "restore_seconds": proof.restore_seconds,
        "checks": dict(proof.checks),
        "finding": proof.finding,
        "source": proof.source,
        "host": proof.host,
        "job": proof.job,
    }
