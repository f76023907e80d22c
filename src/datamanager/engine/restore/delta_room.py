"""How much more room files take after a delta restore than before, by volume."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import psutil

from datamanager.engine.restore.plan import VolumeNeed


class Growth:
    """Adds up files as they are and as they will be. Zeros count: the server writes them sooner or later."""

    def __init__(self) -> None:
        self._by_device: dict[int, int] = {}
        self._devices: dict[str, int] = {}

    def file(self, place: str, size: int) -> None:
        """A file that will have ``size`` bytes. What is there already is written over where it lies."""
        try:
            status = os.lstat(place)
        except OSError:
            self._add(self._device(os.path.dirname(place)), size)  # noqa: PTH120
            return
        own = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        present = _room_of(status) if own else 0
        # Blocks beyond the end that the file system has laid out ahead are no gain.
        self._add(status.st_dev, size - present if size > present or size < status.st_size else 0)

    def removed(self, status: os.stat_result) -> int:
        """A file that goes; returns the bytes that become free."""
        room = _room_of(status) if status.st_nlink == 1 else 0
        self._add(status.st_dev, -room)
        return room

    def beside(self, place: Path, size: int) -> None:
        """Bytes that something else will take for a while, in a directory that may not be there yet."""
        self._add(self._device(str(place)), size)

    def volumes(self, places: Iterable[Path]) -> list[VolumeNeed]:
        """Need and room of each volume that holds one of these directories, or will. Raises: OSError."""
        found: dict[int, VolumeNeed] = {}
        for place in places:
            device = self._device(str(place))
            need = max(0, self._by_device.get(device, 0))
            present = next(one for one in (place, *place.parents) if one.exists())
            found.setdefault(device, VolumeNeed(place, need, psutil.disk_usage(str(present)).free))
        return list(found.values())

    def _add(self, device: int, size: int) -> None:
        self._by_device[device] = self._by_device.get(device, 0) + size

    def _device(self, folder: str) -> int:
        """Of a directory that may not be there yet."""
        if folder not in self._devices:
            try:
                self._devices[folder] = os.stat(folder).st_dev  # noqa: PTH116
            except OSError:
                self._devices[folder] = self._device(os.path.dirname(folder))  # noqa: PTH120
        return self._devices[folder]


def _room_of(status: os.stat_result) -> int:
    """Bytes that a file takes on its volume; holes take none."""
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
