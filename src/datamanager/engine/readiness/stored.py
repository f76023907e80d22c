"""Whether the backup can be read: its metadata, its packs, of which only names are listed, and the WAL it needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from datamanager.base.errors import DataManagerError, IntegrityError, WalMissing
from datamanager.engine.readiness.finding import Finding, blocking, fine, refused, warning
from datamanager.repository.commit import require_objects
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import pack_key
from datamanager.repository.layers.contents import Contents
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


def check_stored(repository: Repository, manifest: Manifest) -> list[Finding]:
    """Codes ``key``, ``backup`` and ``damage``. Whoever could not open the repository says so by ``refused("key", …)``.

    Raises: StoreError, when the store does not answer.
    """
    found = [fine("key", "The key opens the repository.")]
    try:
        contents = repository.contents(manifest)
        require_objects(repository, manifest)
    except DataManagerError as error:
        return [*found, refused("backup", error)]
    found.append(fine("backup", f"Everything that the backup needs is there: {len(contents.packs)} packs."))
    return [*found, *_damage(repository, contents, manifest)]


def check_wal(needed: Sequence[str], present: Collection[str]) -> list[Finding]:
    """Code ``wal``. Args: needed - names of WAL segments and history files, in order; present - those at hand."""
    if not needed:
        return []
    missing = [name for name in needed if name not in present]
    if not missing:
        return [fine("wal", f"All {len(needed)} files of WAL that the target needs are there.")]
    return [
        blocking(
            "wal",
            f"Of {len(needed)} files of WAL that the target needs {len(missing)} are missing, first {missing[0]}.",
            "Choose an earlier target: `datamanager wal status` shows what can be reached.",
            WalMissing,
        )
    ]


def _damage(repository: Repository, contents: Contents, manifest: Manifest) -> list[Finding]:
    pack = _needed_damaged(DamagedChunks.load(repository), contents)
    if pack is not None:
        return [
            blocking(
                "damage",
                f"Verifying found damage in {pack_key(pack)}, which this backup needs.",
                "Run `datamanager repo heal`, or restore a backup that `datamanager repo verify` finds whole.",
                IntegrityError,
            )
        ]
    if manifest.damaged:
        names = ", ".join(one.path for one in manifest.checksum_failures[:3])
        return [
            warning(
                "damage",
                f"The server itself held damaged pages when this backup was taken: {names}.",
                "An older backup may hold them whole; afterwards look with `pg_amcheck`.",
            )
        ]
    return [fine("damage", "No damage to this backup is known.")]


def _needed_damaged(damaged: DamagedChunks, contents: Contents) -> bytes | None:
    """The first damaged pack of which the backup needs a damaged part."""
    numbers = {number: pack for number, (pack, _) in enumerate(contents.packs) if pack in damaged.packs}
    if not numbers:
        return None
    for entry in contents.files():
        for number, pack in numbers.items():
            of_pack = entry.rows.pack == number
            if of_pack.any() and damaged.touches(pack, entry.rows.position[of_pack], entry.rows.pages[of_pack]):
                return pack
    return None
