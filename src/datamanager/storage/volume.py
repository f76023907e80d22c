"""What the operating system can do with a volume, and what its errors mean. All that differs by platform is here.

Python's ``os`` has no renameat2(2), so on Linux it comes from the C library. FUSE file systems answer syncfs(2)
without telling their program, so there folders are synced one by one as well; the syncing itself is in base/files.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamanager.base.errors import StoreDenied, StoreError, StoreFull, StoreUnavailable, StoreUnplugged
from datamanager.storage.base import Space

if sys.platform != "win32":
    import fcntl

BINARY: int = getattr(os, "O_BINARY", 0)  # without it Windows translates line ends

_AT_FDCWD = -100  # linux/fcntl.h: paths count from the working directory
_RENAME_NOREPLACE = 1  # linux/fs.h
_DRIVE_REMOTE = 4  # GetDriveTypeW, winbase.h

# Buffers one writev takes; POSIX promises 16, Linux has 1024.
_PARTS_PER_WRITE = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 16

_FILE_MODE = 0o640  # see _FOLDER_MODE in local.py

# Below this, evicting a file from the page cache costs more than it gives back. Leases and manifests stay cached.
_BIG_BYTES = 1 << 20

# File systems that other hosts may write too. Any FUSE type but a block device's counts as one of them.
_SHARED_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "gpfs", "lustre", "ocfs2", "gfs2"}
    | {"virtiofs", "vboxsf", "vmhgfs", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs", "ncpfs", "coda", "beegfs"}
)

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_DENIED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOTCONN, getattr(errno, "ENOMEDIUM", errno.ENODEV)})

# Windows says more in winerror than in errno (winerror.h): not ready, wrong path or drive, network name gone,
# device not connected, removed; disk full; another program (often a virus scanner) has the file open.
_WINDOWS_GONE = frozenset({3, 15, 20, 21, 53, 55, 64, 67, 433, 1167, 1617})
_WINDOWS_FULL = frozenset({39, 112, 1295})
_WINDOWS_BUSY = frozenset({32, 33})

_FULL_HINT = (
    "Free room on that volume or let old backups go with `datamanager expire` and `datamanager repo prune`, "
    "then run the command again."
)

_rename_lock = threading.Lock()
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def store_error(error: OSError, action: str) -> StoreError:
    """The one translation of what the system says into what the caller can do.

    Args: action - ``verb noun`` of what was tried, for the message.
    Returns: StoreFull, StoreDenied, StoreUnplugged, or StoreUnavailable (retryable) for everything else.
    """
    message = f"{action}: {(error.strerror or type(error).__name__).lower()}"
    windows = getattr(error, "winerror", None)
    if windows in _WINDOWS_GONE or error.errno in _GONE:
        return StoreUnplugged(message)
    if windows in _WINDOWS_FULL or error.errno in _FULL:
        return StoreFull(message, hint=_FULL_HINT)
    if windows not in _WINDOWS_BUSY and error.errno in _DENIED:
        return StoreDenied(message)
    return StoreUnavailable(message)


def rename_to_free_name(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` unless that is taken; never overwrites.

    Atomic against every program where the file system knows RENAME_NOREPLACE (and on Windows). Elsewhere (FAT, exFAT
    and others over FUSE) against every thread and process on this host that uses this function.
    Raises: FileExistsError; OSError. Source: renameat2(2), flock(2).
    """
    if sys.platform == "win32":
        source.rename(target)
    elif not _rename_noreplace(source, target):
        with _only_renamer(target.parent):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            source.rename(target)


def _rename_noreplace(source: Path, target: Path) -> bool:
    """False where kernel, C library or file system cannot do it."""
    if _libc is None or not hasattr(_libc, "renameat2"):
        return False
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@contextlib.contextmanager
def _only_renamer(folder: Path) -> Iterator[None]:
    """Hold the folder's flock, which the kernel gives back when a process is killed, and this process's own lock."""
    if sys.platform == "win32":
        with _rename_lock:
            yield
        return
    with _rename_lock:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Some network file systems lock no folders; there the lock of this process has to do.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def write_new_file(path: Path, parts: Sequence[memoryview]) -> None:
    """Make a file of these bytes and bring them to the medium; its name need not be there yet.

    Raises: OSError; StoreUnavailable, when fewer bytes arrived than were written.
    """
    wanted = sum(part.nbytes for part in parts)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, _FILE_MODE)
    try:
        _write_parts(descriptor, parts)
        _sync_file(descriptor, wanted)
        arrived = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if arrived != wanted:
        raise StoreUnavailable(f"write {path.name}: {arrived} of {wanted} bytes arrived")


def _write_parts(descriptor: int, parts: Sequence[memoryview]) -> None:
    """Write every byte of ``parts`` in order, many parts a system call where that exists. Raises: OSError."""
    if not hasattr(os, "writev"):
        for part in parts:
            rest = part
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
        return
    waiting = list(parts)
    first = 0
    while first < len(waiting):
        written = os.writev(descriptor, waiting[first : first + _PARTS_PER_WRITE])
        while first < len(waiting) and written >= waiting[first].nbytes:
            written -= waiting[first].nbytes
            first += 1
        if written:
            waiting[first] = waiting[first][written:]


def _sync_file(descriptor: int, size_bytes: int) -> None:
    """Bring a file's bytes to the medium (on Windows FlushFileBuffers), then drop a big one from the page cache.

    Raises: OSError. Source: fdatasync(2), which also syncs the size; posix_fadvise(2).
    """
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)
    if size_bytes >= _BIG_BYTES and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def filesystem_type(device: int) -> str:
    """The kernel's name of the file system with this st_dev, such as ``ext4``; empty where it cannot be known."""
    if sys.platform != "linux":
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2:3] == [wanted]:
                return after.split()[0]
    return ""


def is_fuse(type_name: str) -> bool:
    """Whether a program, not the kernel, keeps the file system."""
    return type_name == "fuse" or type_name.startswith(("fuse.", "fuseblk"))


def is_of_this_host(root: Path, type_name: str) -> bool:
    """Whether only this host can be writing to the volume of ``root``; False when in doubt."""
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.GetDriveTypeW(root.anchor) != _DRIVE_REMOTE)
    if type_name in _SHARED_TYPES or type_name == "fuse" or type_name.startswith("fuse."):
        return False
    return sys.platform == "linux"


def room(root: Path) -> Space:
    """Room on the volume, counting as free only what an account without privileges may use. Raises: OSError."""
    usage = shutil.disk_usage(root)
    return Space(total=usage.total, free=usage.free, device=root.stat().st_dev)
