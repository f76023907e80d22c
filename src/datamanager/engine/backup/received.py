"""What a backup received, held against the manifest of its source."""

from __future__ import annotations

from datamanager.base.errors import IntegrityError
from datamanager.postgres.server_manifest import check_manifest, manifest_files

SERVER_MANIFEST = b"backup_manifest"
_WAL = b"pg_wal/"
_TABLESPACES = b"pg_tblspc/"


def _volume(path: bytes) -> str:
    parts = path.split(b"/", 2)
    return parts[1].decode() if len(parts) == 3 and parts[1].isdigit() else "base"


class ReceivedFiles:
    """Every regular file: as it was sent, for the check, and as it is stored, for the sums.

    ``sent`` and ``stored`` belong to the thread that reads, ``whole`` to the one that packs.
    """

    def __init__(self) -> None:
        self._members: dict[bytes, tuple[int, int]] = {}  # size and CRC-32C as sent
        self._sizes: dict[bytes, int] = {}  # of files that are not stored as they were sent
        self._replaced: set[bytes] = set()
        self.directories = 0

    def sent(self, path: bytes, size: int, crc32c: int) -> None:
        """A member that is not stored as it came: an increment of a file, the label."""
        self._members[path] = (size, crc32c)
        self._replaced.add(path)

    def stored(self, path: bytes, size: int) -> None:
        """A file that stands for such a member."""
        self._sizes[path] = size

    def whole(self, path: bytes, size: int, crc32c: int) -> None:
        """A file stored as it came."""
        self._members.setdefault(path, (size, crc32c))

    @property
    def files(self) -> int:
        """Files and directories of the backup."""
        return len(self._members) - len(self._replaced) + len(self._sizes) + self.directories

    def volumes(self) -> dict[str, int]:
        """Bytes to restore: ``base``, and each tablespace's oid."""
        sizes = {"base": 0}
        whole = ((path, size) for path, (size, _) in self._members.items() if path not in self._replaced)
        for path, size in (*whole, *self._sizes.items()):
            volume = _volume(path) if path.startswith(_TABLESPACES) else "base"
            sizes[volume] = sizes.get(volume, 0) + size
        return sizes

    def check(self, manifest: bytes) -> None:
        """Every member is in the source's manifest with this size and CRC, and the other way round.

        Raises: IntegrityError.
        """
        check_manifest(manifest)
        left = dict(self._members)
        left.pop(SERVER_MANIFEST, None)
        for listed in manifest_files(manifest):
            if left.pop(listed.path, None) != (listed.size, listed.crc32c):
                name = listed.path.decode(errors="replace")
                raise IntegrityError(f"check backup: {name} did not arrive as the server sent it")
        extra = [path for path in left if not path.startswith(_WAL)]
        if extra:
            name = extra[0].decode(errors="replace")
            raise IntegrityError(f"check backup: the server's manifest does not list {name}")
