"""The files of a base backup, one after the other, whether they lie in directories or in tar archives.

Paths are those within a data directory, tablespaces below ``pg_tblspc/OID``. Nothing that is a link is followed but
``pg_wal`` and those of tablespaces in a directory; links of a tar archive only tell where a tablespace was.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import IntegrityError, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.recognise import tar_files
from datamanager.engine.foreign.streams import Readable, opened_plain
from datamanager.engine.foreign.tar import Member, TarReader

MANIFEST = "backup_manifest"
_TABLESPACE_FOLDER = re.compile(r"PG_\d+_\d+\Z")
_SEGMENT = re.compile(r"[0-9A-F]{24}(\.partial)?\Z|[0-9A-F]{8}\.history\Z")
_OID = re.compile(r"(\d+)\.")
_MAP_LINE = re.compile(r"(\d+) (.*)")


class BaseFiles(Protocol):
    """The seam: a base backup's files in order, each to be read before the next one is asked for."""

    def files(self, stop: StopToken, read: Callable[[int], None]) -> Iterator[tuple[Member, Readable]]: ...


@dataclass(frozen=True)
class Directory:
    """A backup in directories. ``links`` is where each tablespace outside lies, by oid."""

    root: Path
    links: dict[int, Path] = field(default_factory=dict)

    def files(self, stop: StopToken, read: Callable[[int], None]) -> Iterator[tuple[Member, Readable]]:
        """Raises: IntegrityError (a device or pipe), OSError, Cancelled."""
        yield from _walk(self.root, "", self.links, stop, read)


def directory_files(root: Path) -> Directory:
    """Find the tablespaces of a backup in directories: where its links lead, or beside it as an export has them.

    Raises: IntegrityError, for a tablespace that is not there.
    """
    links: dict[int, Path] = {}
    folder = root / "pg_tblspc"
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (entry.is_symlink() or _is_junction(entry)) or not entry.name.isdigit():
            continue
        beside = root.with_name(f"{root.name}.tablespaces") / entry.name
        place = next((one for one in (beside, entry) if _holds_tablespace(one)), None)
        if place is None:
            raise IntegrityError(
                f"read {root}: its tablespace {entry.name} is not there ({os.readlink(entry)})",  # noqa: PTH115
                hint=f"Put it into {beside}, or let the link in pg_tblspc lead to it.",
            )
        links[int(entry.name)] = place.resolve()
    return Directory(root, links)


def _is_junction(path: Path) -> bool:
    """To Windows a junction is a directory."""
    if os.name != "nt":
        return False
    with contextlib.suppress(OSError):
        os.readlink(path)  # noqa: PTH115 - Path.readlink refuses junctions
        return True
    return False


def _holds_tablespace(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(_TABLESPACE_FOLDER.match(one.name) for one in folder.iterdir())
    return False


def _walk(
    folder: Path, path: str, links: dict[int, Path], stop: StopToken, read: Callable[[int], None]
) -> Iterator[tuple[Member, Readable]]:
    for entry in sorted(folder.iterdir()):
        inner = f"{path}/{entry.name}" if path else entry.name
        status = entry.lstat()
        oid = int(entry.name) if path == "pg_tblspc" and entry.name.isdigit() else 0
        place = links.get(oid, entry)
        if stat.S_ISLNK(status.st_mode) and inner != "pg_wal" and oid not in links:
            yield Member(inner, "link", 0, 0, os.readlink(entry)), _NOTHING  # noqa: PTH115
        elif place.is_dir():
            yield Member(inner, "directory", 0, stat.S_IMODE(place.stat().st_mode) & 0o777), _NOTHING
            yield from _walk(place, inner, links, stop, read)
        elif stat.S_ISREG(status.st_mode):
            with opened_raw(entry, stop, read) as file:
                yield Member(inner, "file", status.st_size, stat.S_IMODE(status.st_mode) & 0o777), file
        else:
            raise IntegrityError(f"read {entry}: it is no plain file", hint="A base backup holds none such; remove it.")


@dataclass(frozen=True)
class Archives:
    """A backup in tar archives: each with the path below which its members lie, and what precedes it in their names."""

    parts: tuple[tuple[Path, str, str], ...]
    manifest: Path | None

    def files(self, stop: StopToken, read: Callable[[int], None]) -> Iterator[tuple[Member, Readable]]:
        """Raises: IntegrityError (cut off, damaged, hostile), OSError, Cancelled."""
        for path, prefix, root in self.parts:
            with opened_plain(path, stop, read) as plain:
                reader = TarReader(plain, path)
                for member in reader.members():
                    inner = _below(member.path, root)
                    if inner is None:
                        if member.kind == "file":
                            raise IntegrityError(
                                f"read {path}: {member.path} lies beside the data directory {root}",
                                hint="Unpack the archive, and give the data directory in it.",
                            )
                        continue
                    whole = f"{prefix}{inner}".rstrip("/")
                    yield Member(whole, member.kind, member.size, member.mode, member.target), reader
        if self.manifest is not None:
            with opened_raw(self.manifest, stop, read) as file:
                yield Member(MANIFEST, "file", self.manifest.stat().st_size, 0o600), file


def archive_files(path: Path, stop: StopToken) -> Archives:
    """Tell what each tar archive holds: the data directory, a tablespace, or the WAL.

    Args: path - one archive, or the directory that pg_basebackup wrote them to.
    Raises: IntegrityError, UsageError, Cancelled.
    """
    if path.is_file():
        return Archives(((path, "", _root_of(path, stop)),), None)
    parts: list[tuple[Path, str, str]] = []
    base: Path | None = None
    for one in tar_files(path, stop):
        first = _first_names(one, stop)
        oid = _OID.match(one.name)
        if first and all(_SEGMENT.match(name) or name.startswith("archive_status") for name in first):
            parts.append((one, "pg_wal/", ""))
        elif oid is not None and (not first or _TABLESPACE_FOLDER.match(first[0].partition("/")[0])):
            parts.append((one, f"pg_tblspc/{oid[1]}/", ""))
        elif base is None:
            base = one
            parts.insert(0, (one, "", _root_of(one, stop)))
        else:
            raise UsageError(
                f"read {path}: {base.name} and {one.name} both look like a whole backup",
                hint="Give the one that is meant.",
            )
    if base is None:
        raise IntegrityError(
            f"read {path}: the archive of the data directory (base.tar) is missing",
            hint="Copy the whole directory again.",
        )
    manifest = path / MANIFEST
    return Archives(tuple(parts), manifest if manifest.is_file() else None)


def _first_names(path: Path, stop: StopToken) -> list[str]:
    names: list[str] = []
    with opened_plain(path, stop) as plain:
        for member in TarReader(plain, path).members():
            if member.path:
                names.append(member.path)
            if len(names) == 3:
                break
    return names


def _root_of(path: Path, stop: StopToken) -> str:
    """Below which folder the data directory lies in the archive; empty for the archive's own root."""
    with opened_plain(path, stop) as plain:
        for member in TarReader(plain, path).members():
            folder, _, name = member.path.rpartition("/")
            if name in ("PG_VERSION", "backup_label") and not folder.startswith(("base/", "pg_tblspc/")):
                return f"{folder}/" if folder else ""
    raise UsageError(
        f"read {path}: a tar archive that holds no data directory of PostgreSQL",
        hint="Give the base.tar of pg_basebackup, or a tar archive of an export.",
    )


def _below(path: str, root: str) -> str | None:
    if not root:
        return path
    if path == root.rstrip("/"):
        return ""
    return path.removeprefix(root) if path.startswith(root) else None


def tablespaces_of_map(text: bytes) -> dict[int, str]:
    """Oids and locations of ``tablespace_map``, which is read and never obeyed (PostgreSQL decision 1)."""
    lines = text.decode("utf-8", "surrogateescape").replace("\\\n", "\n").splitlines()
    return {int(found[1]): found[2] for line in lines if (found := _MAP_LINE.match(line))}


class _Nothing:
    def read(self, size: int, /) -> bytes:
        return b""


_NOTHING = _Nothing()


@contextlib.contextmanager
def opened_raw(path: Path, stop: StopToken, read: Callable[[int], None]) -> Iterator[Readable]:
    """A file as it lies, whatever its first bytes look like."""
    with path.open("rb") as file:
        yield _Raw(file, stop, read)


class _Raw:
    def __init__(self, file: Readable, stop: StopToken, told: Callable[[int], None]) -> None:
        self._file = file
        self._stop = stop
        self._told = told

    def read(self, size: int, /) -> bytes:
        self._stop.check()
        data = self._file.read(size)
        self._told(len(data))
        return data
