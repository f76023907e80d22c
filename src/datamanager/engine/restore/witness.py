"""What makes a restored directory one that PostgreSQL's own programs vouch for: its backup_manifest and backup_label.

The server describes the files that it sent. Of an increment those are stubs, so the manifest of the whole is made here
from what was written, with the CRC-32C of the bytes that went to the disk. Source: PostgreSQL decision 8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn
from datamanager.postgres.server_manifest import WalRange, build_manifest
from datamanager.repository.manifest import Manifest

MANIFEST_FILE = b"backup_manifest"
_LABEL_FILE = "backup_label"
_PARENT = b"INCREMENTAL FROM"
_FIRST_WITH_IDENTIFIER = 17


def write_manifest(
    root: Path, manifest: Manifest, written: Iterable[tuple[bytes, int, int]], owner: tuple[int, int] | None
) -> None:
    """Write ``backup_manifest`` for the files that were restored below ``root``.

    Args: written - path, size, CRC-32C of each.
    Raises: OSError.
    """
    identifier = int(manifest.system_identifier) if manifest.major >= _FIRST_WITH_IDENTIFIER else None
    needed = WalRange(manifest.timeline, Lsn.parse(manifest.start_lsn), Lsn.parse(manifest.stop_lsn))
    files = (one for one in written if one[0] != MANIFEST_FILE and not one[0].startswith(b"pg_wal/"))
    data = build_manifest(files, system_identifier=identifier, wal=[needed])
    path = root / os.fsdecode(MANIFEST_FILE)
    path.write_bytes(data)
    if os.name != "nt":
        # A cluster made with group access lets the group read all of its files.
        path.chmod((root / "PG_VERSION").stat().st_mode & 0o640 | 0o600)
    if owner is not None:
        os.chown(path, *owner)


def require_complete_label(root: Path) -> None:
    """A label that names a parent would keep the server from starting, and would mean that this is no whole backup.

    Raises: IntegrityError.
    """
    label = root / _LABEL_FILE
    if label.exists() and _PARENT in label.read_bytes():
        raise IntegrityError(
            "restore backup: its backup_label says that it needs another backup",
            hint="Restore another backup; then run `datamanager repo verify`.",
        )
