"""A drill, decided before a byte is written: which programs start the backup, as whom, where, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import TargetTooSmall, TargetUnfit
from datamanager.base.units import MIB, format_size
from datamanager.drills.workplace import Workplace, new_workplace
from datamanager.engine.restore.plan import RestoreOptions, RestorePlan, VolumeNeed, in_place, plan_restore
from datamanager.postgres.account import Account, UnixAccount
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.programs import Programs, find_programs
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

# Beside the restored files a clone writes WAL (two segments and those it prepares), its own log and little else.
_MARGIN_SHARE = 0.1
_MARGIN_SEGMENTS = 4
_MARGIN_BYTES = 32 * MIB
_ROOM_HINT = "Make room, or name a folder on a bigger volume with --scratch; nothing was written."


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """What the caller decides.

    Args:
        scratch: an existing folder, below which everything happens.
        records: the folder of the home for what running drills write down.
        account: who runs the clone's server and owns its files.
        install_path: where PostgreSQL of the backup's major is; None to look for it.
        amcheck: also hold indexes against their tables.
        keep: leave what was restored, stopped.
    """

    scratch: Path
    records: Path
    account: Account
    threads: int = 2
    install_path: Path | None = None
    amcheck: bool = True
    keep: bool = False


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """A drill that can be carried out."""

    restore: RestorePlan
    workplace: Workplace
    programs: Programs
    facts: ServerFacts
    options: DrillOptions

    @property
    def manifest(self) -> Manifest:
        return self.restore.manifest


def plan_drill(repository: Repository, manifest: Manifest, options: DrillOptions) -> DrillPlan:
    """Check everything that can be checked without writing.

    Raises: TargetUnfit (no such folder, or closed to the server's account), TargetTooSmall, ServerMismatch,
    ProgramMissing; IntegrityError when the backup's layers cannot be read.
    """
    scratch, account = options.scratch.absolute(), options.account
    if not scratch.is_dir():
        raise TargetUnfit(f"plan test restore: there is no folder {scratch}", hint="Make it, or name another one.")
    if not account.can_reach(scratch):
        raise TargetUnfit(
            f"plan test restore: the account {account.name}, which runs the server, may not enter {scratch}",
            hint=f"Give a folder with --scratch that {account.name} may enter, such as /var/tmp, "
            "or let others pass the folders above it with `chmod o+x`.",
        )
    programs = find_programs(manifest.major, options.install_path, account=account)
    workplace = new_workplace(scratch, options.records)
    owner = (account.user_id, account.group_id) if isinstance(account, UnixAccount) else None
    outside = {str(one.oid): workplace.tablespace(one.oid) for one in manifest.tablespaces if not in_place(one)}
    wanted = RestoreOptions(workplace.data, outside, owner=owner, threads=options.threads)
    try:
        restore = plan_restore(repository, manifest, wanted)
    except TargetTooSmall as error:
        raise TargetTooSmall(
            error.message.replace("restore backup", "plan test restore", 1), hint=_ROOM_HINT
        ) from error
    for volume in restore.volumes:
        check_room(volume, manifest)
    facts = ServerFacts.from_json(canonical_json(manifest.server))
    return DrillPlan(restore, workplace, programs, facts, options)


def check_room(volume: VolumeNeed, manifest: Manifest) -> None:
    """Whether the restored files and what the clone writes beside them fit. Raises: TargetTooSmall."""
    least = _MARGIN_SEGMENTS * manifest.wal_segment_size + _MARGIN_BYTES
    need = volume.need + max(int(volume.need * _MARGIN_SHARE), least)
    if need > volume.free:
        raise TargetTooSmall(
            f"plan test restore: it needs {format_size(need)}, and the volume of {volume.path.parent} has "
            f"{format_size(volume.free)} free",
            hint=_ROOM_HINT,
        )
