"""Export a backup as the plain directory that PostgreSQL's own tools know: no lock-in.

What is written is what BASE_BACKUP would send of the whole cluster, with the server's ``backup_manifest`` or, for an
increment, one of our own (``engine/restore/witness.py``): ``pg_verifybackup`` accepts it and ``pg_ctl`` starts it.
Tablespaces go beside it, ``DIRECTORY.tablespaces/OID``, unless they are mapped.
"""

from __future__ import annotations

from dataclasses import replace

from datamanager.base.events import Listener
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.plan import RestoreOptions, in_place, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


def export_backup(
    repository: Repository, manifest: Manifest, options: RestoreOptions, stop: StopToken, listener: Listener
) -> RestoreResult:
    """Write a backup to ``options.target``, on whatever system this is.

    Raises: as ``plan_restore`` and ``apply_restore``.
    """
    mapped = dict(options.tablespaces)
    beside = options.target.with_name(f"{options.target.name}.tablespaces")
    for one in manifest.tablespaces:
        if one.location not in mapped and str(one.oid) not in mapped and not in_place(one):
            mapped[str(one.oid)] = beside / str(one.oid)
    plan = plan_restore(repository, manifest, replace(options, tablespaces=mapped, any_platform=True))
    return apply_restore(repository, plan, stop, listener)
