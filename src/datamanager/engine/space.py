"""A backup never stops the server: on the data directory's own volume it stops first.

While a repository shares the volume of the data directory, 10 % of it or 5 GB, whichever is more, stays free.
"""

from __future__ import annotations

from pathlib import Path

from datamanager.base.errors import StoreFull
from datamanager.base.units import format_size
from datamanager.storage.base import Space, Storage

RESERVED_SHARE = 0.10
RESERVED_BYTES = 5 * 1000**3


def shares_volume(space: Space | None, data_directory: str) -> bool:
    """Whether the store's volume is that of a data directory on this host.

    A data directory that this account cannot even see counts as shared when its nearest visible parent lies there.
    """
    if space is None or not data_directory:
        return False
    folder = Path(data_directory)
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
