"""A backup never stops the server: on a volume that the server writes to, it stops first.

While a repository shares a volume with the cluster (data, WAL, a tablespace), 10 % of it or 5 GB, whichever is more,
stays free.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from datamanager.base.errors import StoreFull
from datamanager.base.units import format_size
from datamanager.storage.base import Space, Storage

RESERVED_SHARE = 0.10
RESERVED_BYTES = 5 * 1000**3


def shares_volume(space: Space | None, data_directory: str) -> bool:
    """Whether the store's volume is one that a cluster on this host writes to: data, WAL or a tablespace.

    A data directory that this account cannot even see counts as shared when its nearest visible parent lies there.
    """
    if space is None or not data_directory:
        return False
    folder = Path(data_directory)
    with contextlib.suppress(OSError):
        if any(one.stat().st_dev == space.device for one in (folder / "pg_wal", *(folder / "pg_tblspc").iterdir())):
            return True
    while True:
        try:
            return folder.stat().st_dev == space.device
        except PermissionError:
            folder = folder.parent
        except OSError:
            return False


class SpaceGuard:
    """Refuses to put more once the volume shared with the server runs low. Thread-safe.

    Args: data_directory - the cluster's, if it lies on this host; empty otherwise.
    """

    def __init__(self, storage: Storage, data_directory: str) -> None:
        self._storage = storage
        self.shared = shares_volume(storage.space(), data_directory)

    def before_put(self, size: int) -> None:
        """Raises: StoreFull, with the figure that is missing."""
        if not self.shared:
            return
        space = self._storage.space()
        if space is None:
            return
        reserve = max(int(space.total * RESERVED_SHARE), RESERVED_BYTES)
        if space.free - size < reserve:
            raise StoreFull(
                f"write to {self._storage.url}: the database server's own volume has {format_size(space.free)} free, "
                f"and {format_size(reserve)} of it stay reserved for the server",
                hint=f"Free {format_size(reserve + size - space.free)} or more there, "
                "or use a repository on another volume.",
            )
