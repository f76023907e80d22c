"""Objects as files of a folder: an internal disk, a USB drive, a mounted share.

A put: temporary file in the object's own folder, write, sync, compare the size, rename to the name if that is free.
No step needs hard links, symbolic links, permissions or renaming over a file, so FAT and exFAT drives serve as well.

A drive that is pulled leaves its mount point behind, an empty folder of another volume. So that nothing is ever
written there, folders are made by ``create`` alone, and the volume is compared before and after every write.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from datamanager.base.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    StoreUnplugged,
    UsageError,
)
from datamanager.base.files import HAS_SYNCFS, sync_folder, sync_volume
from datamanager.storage import volume
from datamanager.storage.base import Buffer, Capabilities, Space, StoredObject
from datamanager.storage.keys import byte_range, check_key, check_prefix, is_segment, plain_parts
from datamanager.system.processes import ProcessIdentity, is_alive, this_process

# With an open key slot a pack is plain data, so other accounts may not read. Ignored by FAT, which is no harm.
_FOLDER_MODE = 0o750

# Half of the digits tell the process, so that whoever ends one by force can clear up behind it at once.
_TEMPORARY = re.compile(r"\.put-[0-9a-f]{16}\.tmp")

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENOTCONN})

DAY_SECONDS = 86_400.0


class LocalStorage:
    """One folder, opened. Thread-safe; holds no open file between calls, so the volume can be unmounted any time.

    Args:
        root: the folder, as made by ``create``.
        growing: top-level folders (``wal``, ``marks``) inside which a put may make the subfolders its key names. A
            top-level folder itself is never made, so the rule about empty mount points holds.

    Raises: StoreUnplugged, when root is absent or holds nothing; UsageError, when it is no folder; StoreDenied.
    """

    def __init__(self, root: Path, growing: Iterable[str] = ()) -> None:
        self._root = root.absolute()
        self._growing = frozenset(growing)
        self._lock = threading.Lock()
        self._unsynced: set[Path] = set()
        try:
            status = self._root.stat()
            if not stat.S_ISDIR(status.st_mode):
                raise UsageError(f"open store {self._root}: not a folder", hint="Give the folder of a repository.")
            if not _has_content(self._root):
                raise self._unplugged("open store")
        except OSError as error:
            if error.errno in _ABSENT:
                raise self._unplugged("open store") from error
            raise volume.store_error(error, f"open store {self._root}") from error
        self._device = status.st_dev
        type_name = volume.filesystem_type(self._device)
        self._syncs_by_folder = volume.is_fuse(type_name) or not HAS_SYNCFS
        self._capabilities = Capabilities(
            power_safe=not self._syncs_by_folder or _can_sync_folder(self._root),
            local=volume.is_of_this_host(self._root, type_name),
        )

    @classmethod
    def create(cls, root: Path, folders: Iterable[str], growing: Iterable[str] = ()) -> Self:
        """Make root and every folder in it, durably, and open it; on an error what was made goes again.

        Args: root - absent or empty, in a folder that exists; folders - relative, named like keys; parents implied.
        Raises: UsageError, when root holds something; StoreUnplugged, when the folder around it is absent; StoreFull;
        StoreDenied; ValueError, on a folder that no key could name.
        """
        root = root.absolute()
        wanted = sorted({part for folder in folders for part in _with_parents(folder)})
        if not wanted:
            raise ValueError("a store needs at least one folder, or it would look like an empty mount point")
        made: list[Path] = []
        try:
            if not root.exists():
                root.mkdir(_FOLDER_MODE)
                made.append(root)
            elif not root.is_dir() or _has_content(root):
                raise UsageError(
                    f"create store {root}: the place is taken",
                    hint="Choose a folder that is empty or does not exist yet.",
                )
            for folder in wanted:
                path = root / folder
                path.mkdir(_FOLDER_MODE)
                made.append(path)
            store = cls(root, growing)
            store._unsynced = {root, *made}
            store.barrier()
            sync_folder(root.parent)  # root's own name, which may stand on another volume
            return store
        except BaseException as error:
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()
            if isinstance(error, OSError):
                raise _creation_failure(error, root) from error
            raise

    @property
    def url(self) -> str:
        return self._root.as_uri()

    @property
    def root(self) -> Path:
        """The folder itself, absolute."""
        return self._root

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        """See Storage.put. A folder missing from under root is StoreUnplugged: ``create`` made them all."""
        check_key(key)
        parts = plain_parts(data)
        target = self._root / key
        action = f"put {key}"
        temporary: Path | None = None
        try:
            self._check_volume(action)
            if os.path.lexists(target):
                raise ObjectExists(f"{action}: the name is taken")
            self._make_growing(key)
            temporary = target.with_name(f".put-{_own_token(os.getpid())}{secrets.token_hex(4)}.tmp")
            volume.write_new_file(temporary, parts)
            self._check_volume(action)
            volume.rename_to_free_name(temporary, target)
        except BaseException as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            if isinstance(error, FileExistsError):
                raise ObjectExists(f"{action}: the name is taken") from error
            if isinstance(error, OSError):
                wanted_bytes = sum(part.nbytes for part in parts)
                raise self._failure(error, action, wanted_bytes=wanted_bytes) from error
            raise
        self._remember(target.parent)

    def ensure_folders(self, folders: Iterable[str]) -> None:
        """See KeepsFolders. The volume and what lies in root are looked at before anything is made."""
        action = "make folders"
        self._check_present(action)
        try:
            for folder in folders:
                check_key(folder)
                path = self._root / folder
                if not path.is_dir():
                    self._check_present(action)
                    with contextlib.suppress(FileExistsError):
                        path.mkdir(_FOLDER_MODE)
                    self._remember(self._root)
        except OSError as error:
            raise self._failure(error, action) from error

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        action = f"get {key}"
        try:
            with open(self._root / key, "rb", buffering=0) as file:
                start, stop = byte_range(os.fstat(file.fileno()).st_size, offset, length)
                file.seek(start)
                parts = []
                while start < stop and (part := file.read(stop - start)):
                    parts.append(part)
                    start += len(part)
        except OSError as error:
            raise self._failure(error, action, reading=key) from error
        if start < stop:
            raise StoreUnavailable(f"{action}: the file ends {stop - start} bytes early")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See Storage.list. Raises StoreUnplugged at the end rather than end early when the drive went meanwhile."""
        check_prefix(prefix)
        action = f"list {prefix or 'all'}"
        self._check_present(action)
        return self._walk(prefix, action)

    def stat(self, key: str) -> StoredObject:
        check_key(key)
        action = f"stat {key}"
        try:
            status = (self._root / key).stat()
        except OSError as error:
            raise self._failure(error, action, reading=key) from error
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(f"{action}: not an object")
        return StoredObject(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        check_key(key)
        target = self._root / key
        try:
            self._check_volume(f"delete {key}")
            target.unlink()
        except OSError as error:
            failure = self._failure(error, f"delete {key}", reading=key)
            if isinstance(failure, ObjectMissing):
                return
            raise failure from error
        self._remember(target.parent)

    def barrier(self) -> None:
        with self._lock:
            folders, self._unsynced = self._unsynced, set()
        try:
            self._sync_volume()
            if self._syncs_by_folder:
                for folder in folders:
                    with contextlib.suppress(FileNotFoundError):
                        sync_folder(folder)
            self._check_present("sync store")
        except (OSError, StoreError) as error:
            with self._lock:
                self._unsynced |= folders
            if isinstance(error, OSError):
                raise self._failure(error, "sync store") from error
            raise

    def space(self) -> Space | None:
        try:
            self._check_volume("measure store")
            return volume.room(self._root)
        except OSError as error:
            raise self._failure(error, "measure store") from error

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _walk(self, prefix: str, action: str) -> Iterator[StoredObject]:
        folders = [prefix]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._root / folder) as entries:
                    for entry in entries:
                        if not is_segment(entry.name):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{folder}{entry.name}/")
                        elif (found := _stored(entry, folder)) is not None:
                            yield found
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed meanwhile, or the whole drive: told apart at the end
            except OSError as error:
                raise self._failure(error, action) from error
        self._check_present(action)

    def _make_growing(self, key: str) -> None:
        """Make the folders between a growing top-level folder and the object. Raises: OSError."""
        segments = key.split("/")[:-1]
        if not segments or segments[0] not in self._growing:
            return
        for depth in range(2, len(segments) + 1):
            folder = self._root.joinpath(*segments[:depth])
            with contextlib.suppress(FileExistsError):
                folder.mkdir(_FOLDER_MODE)
                self._remember(folder.parent)

    def _remember(self, folder: Path) -> None:
        with self._lock:
            self._unsynced.add(folder)

    def _sync_volume(self) -> None:
        """Sync the volume seen at opening, and no other that took its place. Raises: OSError."""
        if os.name == "nt" or not HAS_SYNCFS:
            return
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.fstat(descriptor).st_dev != self._device:
                raise self._unplugged("sync store")
            sync_volume(descriptor)
        finally:
            os.close(descriptor)

    def _unplugged(self, action: str) -> StoreUnplugged:
        return StoreUnplugged(f"{action}: repository drive {self._root} is not there")

    def _check_volume(self, action: str) -> None:
        """Raises: StoreUnplugged, when another volume (or none) is at root now; OSError."""
        if self._root.stat().st_dev != self._device:
            raise self._unplugged(action)

    def _check_present(self, action: str) -> None:
        """The same, and that root is not an empty folder of that volume. Raises: StoreError."""
        try:
            self._check_volume(action)
            if not _has_content(self._root):
                raise self._unplugged(action)
        except OSError as error:
            if error.errno in _ABSENT:
                raise self._unplugged(action) from error
            raise volume.store_error(error, f"{action} in {self._root}") from error

    def _failure(self, error: OSError, action: str, *, reading: str = "", wanted_bytes: int = 0) -> StoreError:
        """What an error means, once it is known whether the drive is there at all.

        Args: reading - the key of the object that was looked for, if any: a name that is not found is a missing
        object then, and a missing folder otherwise; wanted_bytes - what was to be written: FUSE file systems may say
        EPERM or EIO when they are full.
        """
        where = f"{action} in {self._root}"
        try:
            self._check_present(action)
            if wanted_bytes and error.errno in (errno.EPERM, errno.EIO) and volume.room(self._root).free < wanted_bytes:
                error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            absent = isinstance(error, FileNotFoundError | NotADirectoryError)
            # A folder is not an object; Windows refuses to open one with the error of a missing right.
            if reading and (absent or (self._root / reading).is_dir()):
                return ObjectMissing(f"{action}: no such object")
        except StoreError as failure:
            return failure
        except OSError as failure:
            return volume.store_error(failure, where)
        if not absent:
            return volume.store_error(error, where)
        return StoreUnplugged(
            f"{action}: its folder is missing from {self._root}",
            hint="Check that this is the repository's own drive and that nobody removed folders from it.",
        )


def sweep_temporaries(storage: LocalStorage, older_than_seconds: float = DAY_SECONDS) -> int:
    """Remove what puts of dead processes left behind, and nothing that another program may have put there.

    Age is measured by the volume's own clock, with a probe file written now, so that a wrong clock on this host
    removes nothing that is being written. Returns: files removed. Raises: StoreError.
    """
    storage.space()
    try:
        folders = [path for path in storage.root.iterdir() if is_segment(path.name) and path.is_dir()]
        if not folders:
            return 0
        # In a folder of the store, not in root itself, which may be an empty mount point by now.
        probe = folders[0] / f".put-{secrets.token_hex(8)}.tmp"
        volume.write_new_file(probe, [memoryview(b"probe")])
        try:
            limit = probe.stat().st_mtime - older_than_seconds
        finally:
            probe.unlink()
        return sum(_remove_if_older(path, limit) for path in _temporaries(storage.root))
    except OSError as error:
        raise volume.store_error(error, f"sweep {storage.root}") from error


def remove_temporaries_of(storage: LocalStorage, process: ProcessIdentity) -> int:
    """Remove what puts of one process left behind; nothing while it lives. Returns: files removed.

    Raises: StoreError.
    """
    if is_alive(process):
        return 0
    storage.space()
    writer = _token(process)
    try:
        mine = [path for path in _temporaries(storage.root) if path.name.startswith(f".put-{writer}")]
        for path in mine:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise volume.store_error(error, f"sweep {storage.root}") from error
    return len(mine)


def _token(process: ProcessIdentity) -> str:
    text = f"{process.boot}/{process.pid}/{process.started:.2f}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


@functools.cache
def _own_token(pid: int) -> str:
    """Args: pid - of this process: a fork has another token."""
    return _token(this_process())


def _temporaries(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, followlinks=False):
        yield from (Path(folder, name) for name in names if _TEMPORARY.fullmatch(name))


def _remove_if_older(path: Path, limit: float) -> bool:
    try:
        if path.stat().st_mtime > limit:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _can_sync_folder(folder: Path) -> bool:
    try:
        return sync_folder(folder)
    except OSError:
        return False


def _stored(entry: os.DirEntry[str], folder: str) -> StoredObject | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return StoredObject(folder + entry.name, status.st_size, status.st_mtime)


def _has_content(folder: Path) -> bool:
    """Whether anything a store could have made is in there; ``lost+found`` on a new drive is not. Raises: OSError."""
    with os.scandir(folder) as entries:
        return any(is_segment(entry.name) for entry in entries)


def _with_parents(folder: str) -> Iterator[str]:
    check_key(folder)
    segments = folder.split("/")
    return ("/".join(segments[: depth + 1]) for depth in range(len(segments)))


def _creation_failure(error: OSError, root: Path) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreUnplugged(
            f"create store {root}: folder {root.parent} is not there",
            hint="Plug the drive in (or mount it), or make that folder, and run the command again.",
        )
    return volume.store_error(error, f"create store {root}")
