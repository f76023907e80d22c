"""Writing a file so that a power cut leaves the old one or the new one, never a part.

Source: rename(2), fsync(2); a directory's entry is durable only after fsync of the directory, where that exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import sys
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
HAS_SYNCFS = _libc is not None and hasattr(_libc, "syncfs")
# What a file system answers that cannot sync folders, such as FAT.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)


def sync_volume(descriptor: int) -> None:
    """Bring everything written to the volume of this open file or folder to the medium; only where HAS_SYNCFS.

    Raises: OSError, also on writes that failed since the file was opened. Source: syncfs(2), errors since Linux 5.8.
    """
    if _libc is not None and _libc.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_folder(folder: Path) -> bool:
    """Make the names in ``folder`` durable.

    Returns: False where folders cannot be synced: Windows (NTFS journals a rename but flushes it when it likes; only
    an administrator may flush the volume) and some file systems. Raises: OSError, when the medium failed.
    """
    if sys.platform == "win32":
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def sync_directory(folder: Path) -> None:
    """``sync_folder`` where a failure is no reason to stop."""
    with contextlib.suppress(OSError):
        sync_folder(folder)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, owner: int | None = None) -> None:
    """Replace ``path`` by ``data`` atomically and durably.

    Args: mode - permissions of the new file, set before the first byte is written; owner - the account that it is given
        to, for root.
    Raises: OSError, with the old file intact and no temporary file left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            if sys.platform != "win32" and owner is not None:
                os.fchown(descriptor, owner, -1)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_leftovers(path: Path) -> None:
    """Take away the temporary files of writes of ``path`` that were killed; none may be going on. Raises: OSError."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for entry in path.parent.iterdir():
        if named.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
            entry.unlink()


def sync_tree(root: Path) -> None:
    """Make everything below ``root`` durable: the whole volume at once on Linux, else file by file.

    Raises: OSError, when anything written there was lost. Source: syncfs(2), which reports errors since Linux 5.8.
    """
    if HAS_SYNCFS:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_volume(descriptor)
        finally:
            os.close(descriptor)
        return
    for folder, _, names in os.walk(root):
        for name in names:
            # Windows syncs only what was opened for writing.
            descriptor = os.open(os.path.join(folder, name), os.O_RDWR)  # noqa: PTH118 - hot and plain
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))
