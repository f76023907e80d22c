"""Two names of one folder change places in one step, where the system can; and the mount points of this machine.

Source: renameat2(2), RENAME_EXCHANGE (Linux 3.15; ext4, xfs, btrfs, tmpfs and others); renamex_np(2), RENAME_SWAP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from pathlib import Path

import psutil

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h, and RENAME_SWAP of Darwin's stdio.h
# What the system, the C library or the file system answers that does not know it.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def exchange(one: Path, other: Path) -> bool:
    """Let ``one`` and ``other``, both there and on one volume, change places atomically; nothing is synced.

    Returns: False where that cannot be done; then nothing was. Raises: OSError.
    """
    library = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    if library is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, _RENAME_EXCHANGE)
    else:
        return False
    if failed and ctypes.get_errno() not in _UNKNOWN:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one), None, str(other))
    return not failed


def mount_points() -> frozenset[Path]:
    """Where something is mounted in this process's view, bind mounts too. Source: proc_pid_mountinfo(5), field 5."""
    if sys.platform == "linux":
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        places = (_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]) for line in lines)
        return frozenset(Path(os.fsdecode(place)) for place in places)
    return frozenset(Path(one.mountpoint) for one in psutil.disk_partitions(all=True))


def is_mount_point(folder: Path) -> bool:
    """Whether ``folder``, without links in its path, is where something is mounted, so that it cannot be renamed."""
    return folder in mount_points() or folder.is_mount()
