"""Whether a restore will succeed on this machine: asked before it, shown by --dry-run, in force for the run itself.

What the plan of a restore refuses by itself (target, room) is its to refuse; here it becomes one finding among the
others, so that whoever asks sees everything that is in the way at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.app.context import Context
from datamanager.base.errors import (
    ConfigurationError,
    DataManagerError,
    IntegrityError,
    ProgramMissing,
    RestoreRefused,
    TargetTooSmall,
)
from datamanager.base.events import Listener, Touched, Warned
from datamanager.engine.readiness.check import ReadinessOptions, Use, check_readiness
from datamanager.engine.readiness.finding import Finding, Level, for_later, refused, worst_first
from datamanager.engine.readiness.place import check_account, check_space
from datamanager.engine.readiness.software import check_programs, found_programs
from datamanager.engine.restore.plan import RestoreOptions, VolumeNeed
from datamanager.postgres.account import Account, CurrentAccount, named_account, service_account
from datamanager.postgres.programs import Programs
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

if TYPE_CHECKING:
    from datamanager.app.in_place_cluster import LocalCluster

__all__ = ["REFUSALS", "Finding", "Level", "NotReady", "Use"]
# What a plan refuses with, and the readiness check as well; what else it raises has nothing to do with this machine.
REFUSALS = (RestoreRefused, ProgramMissing, IntegrityError)


@dataclass(frozen=True)
class NotReady:
    """A restore that cannot be planned. ``findings`` are worst first; ``refusal`` is why."""

    subject: str
    findings: Sequence[Finding]
    refusal: DataManagerError

    @property
    def error(self) -> DataManagerError:
        """What the run ends with."""
        return _of_many(self.refusal, self.findings)


def of_new_directory(
    context: Context,
    repository: Repository,
    manifest: Manifest,
    options: RestoreOptions,
    owner: str | None,
    use: Use,
    planned: Sequence[VolumeNeed] | DataManagerError,
    *,
    port: int | None = None,
) -> Sequence[Finding]:
    """Of a restore into new directories.

    Args: planned - what each volume needs, or what the plan was refused with; port - that a server on it listens on.
    """
    known = context.config().clusters.get(manifest.cluster)
    asked = ReadinessOptions(
        options,
        use,
        account=_account(owner),
        install_path=known.install_path if known is not None else None,
        # Elsewhere a clone listens in a directory of its own alone.
        port=port if sys.platform == "win32" else None,
    )
    if not isinstance(planned, DataManagerError):
        asked = replace(asked, plan=lambda: planned)
    return worst_first(_with_refusal(check_readiness(repository, manifest, asked), planned))


def of_cluster(
    repository: Repository,
    manifest: Manifest,
    cluster: LocalCluster,
    planned: Sequence[VolumeNeed] | DataManagerError,
) -> Sequence[Finding]:
    """Of a restore in place of a cluster's data. Args: as of ``of_new_directory``."""

    def plan() -> Sequence[VolumeNeed]:
        if isinstance(planned, DataManagerError):
            raise planned
        return planned

    asked = ReadinessOptions(
        RestoreOptions(cluster.data_directory),
        plan=plan,
        libraries=cluster.facts.shared_preload_libraries if cluster.facts is not None else None,
        account=_account(None, cluster.data_directory),
        install_path=cluster.config.install_path,
    )
    found = check_readiness(repository, manifest, asked)
    if cluster.facts is None:  # its configuration stays in force, and may name other libraries than the backup's
        found = for_later(found, {"preload"})
    return worst_first(_with_refusal(found, planned))


def of_base(
    target: Path,
    major: int,
    owner: str | None,
    install_path: Path | None,
    volumes: Sequence[VolumeNeed],
    *,
    starts: bool,
) -> Sequence[Finding]:
    """Of a base backup or an export of other programs: of its databases nothing is known."""
    account = _account(owner)
    _, found = check_programs(major, str(major), install_path, account)
    found += [*check_account(target, account), *check_space(volumes)]
    return worst_first(found if starts else for_later(found, Use.FILES.value))


def of_dump(programs: Programs, volumes: Sequence[VolumeNeed]) -> Sequence[Finding]:
    """Of a dump whose plan found programs and room; what else it needs, its plan refuses."""
    return worst_first([found_programs(programs), *check_space(volumes)])


def refusal(findings: Sequence[Finding]) -> DataManagerError | None:
    """Why a restore is refused that the first of these blocks; None where none does."""
    first = next((one for one in findings if one.level is Level.BLOCKING), None)
    if first is None:
        return None
    return first.refusal(f"restore backup: {_clause(first.sentence)}", hint=first.remedy)


def require(findings: Sequence[Finding], listener: Listener, *, told: Sequence[str] = ()) -> None:
    """Refuse what is blocked, and tell what will be amiss afterwards. Args: told - codes that others tell of.

    Raises: TargetUnfit, ServerMismatch, ProgramMissing, IntegrityError.
    """
    error = refusal(findings)
    if error is not None:
        raise _of_many(error, findings)
    for one in findings:
        if one.level is Level.WARNING and one.code not in told:
            listener(Warned(f"{_clause(one.sentence)}; {_clause(one.remedy)}"))
        elif one.level is Level.UNKNOWN:
            listener(Touched(_clause(one.sentence)))


def _of_many(error: DataManagerError, findings: Sequence[Finding]) -> DataManagerError:
    """The error; its hint says where to see the others, if there are any."""
    others = sum(one.level is Level.BLOCKING for one in findings) - 1
    if others > 0:
        error.hint = f"{error.hint} {others} more in the way: --dry-run shows everything.".strip()
    return error


def _with_refusal(found: Sequence[Finding], planned: object) -> Sequence[Finding]:
    """With what the plan was refused for, where nothing that was found tells of it."""
    if not isinstance(planned, DataManagerError):
        return found
    if any(one.level is Level.BLOCKING and one.refusal is type(planned) for one in found):
        return found
    code = "space" if isinstance(planned, TargetTooSmall) else "target"
    return [*(one for one in found if one.code != code), refused(code, planned)]


def _account(owner: str | None, place: Path | None = None) -> Account:
    """Who would run a server on the result."""
    try:
        return named_account(owner) if owner is not None else service_account(place)
    except ConfigurationError:
        return CurrentAccount()


def _clause(sentence: str) -> str:
    """A sentence as a part of another one: what begins with a word begins small."""
    first = sentence.split(" ", 1)[0]
    small = first[1:].islower() or len(first) == 1
    return (sentence[:1].lower() + sentence[1:] if small else sentence).removesuffix(".")
