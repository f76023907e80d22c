"""Reading a tar archive strictly: every member whole, nothing that leads outside, the archive's own end at its end.

Unlike Python's own reader this one takes no damaged header for the end, and unlike ``pg_restore``, which then waits
for ever, it tells an archive that was cut off. Source: POSIX.1 pax and ustar; GNU tar manual (long names).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from datamanager.base.errors import IntegrityError
from datamanager.engine.foreign.streams import COPY_AGAIN, Readable, cut_off

BLOCK = 512
_PIECE_BYTES = 1 << 20
# Longer names and headers exist only to do harm.
_MOST_HEADER_BYTES = 1 << 20
_NO_LINKS = "Only plain files, directories and the links of tablespaces belong into a backup; make a new one."


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its path below the archive's root, without ``./``; the root itself is empty.

    ``target`` is where a link leads. Links are told, never followed or made.
    """

    path: str
    kind: Literal["file", "directory", "link"]
    size: int
    mode: int
    target: str = ""


class TarReader:
    """Members of one archive in order. The content of a file must be read before the next member is asked for."""

    def __init__(self, file: Readable, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = 0
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """Every member. Raises: IntegrityError, for a hostile, damaged or cut archive; what reading raises."""
        long_name: str | None = None
        long_target: str | None = None
        headers: dict[str, str] = {}
        while True:
            self._skip()
            block = self._exactly(BLOCK)
            if not block.strip(b"\0"):
                self._end()
                return
            info = self._header(block)
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                text = self._extension(info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = text
                else:
                    long_target = text
                continue
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                headers |= self._pax(self._extension(info.size))
                continue
            if info.type == tarfile.XGLTYPE:
                self._extension(info.size)
                continue
            name = headers.get("path", long_name if long_name is not None else info.name)
            target = headers.get("linkpath", long_target if long_target is not None else info.linkname)
            size = int(headers["size"]) if headers.get("size", "").isdigit() else info.size
            if any(key.startswith("GNU.sparse") for key in headers) or size < 0:
                raise self._damaged(f"{name!r} is a sparse file", "Make the archive without --sparse.")
            long_name, long_target, headers = None, None, {}
            yield self._member(name, target, size, info)

    def read(self, size: int = _PIECE_BYTES, /) -> bytes:
        """The next bytes of the present file; nothing at its end. Raises: IntegrityError."""
        wanted = min(size, self._left)
        data = self._file.read(wanted) if wanted else b""
        if wanted and not data:
            raise cut_off(self._path, "the tar archive ends within a file")
        self._left -= len(data)
        return data

    def _member(self, name: str, target: str, size: int, info: tarfile.TarInfo) -> Member:
        path = self._safe(name)
        if info.isreg():
            self._left, self._padding = size, -size % BLOCK
            return Member(path, "file", size, info.mode & 0o777)
        if info.isdir():
            return Member(path, "directory", 0, info.mode & 0o777)
        if info.issym():
            return Member(path, "link", 0, info.mode & 0o777, target)
        kind = "hard link" if info.islnk() else "device or pipe"
        raise self._damaged(f"{name!r} is a {kind}", _NO_LINKS)

    def _safe(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        outside = name.startswith("/") or ".." in parts or "\0" in name
        if outside or any("\\" in part or (len(part) > 1 and part[1] == ":") for part in parts):
            raise self._damaged(f"{name!r} leads outside of it", "Do not trust where this archive comes from.")
        return str(PurePosixPath(*parts)) if parts else ""

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"a header is none ({error})", COPY_AGAIN) from error

    def _extension(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise self._damaged("a header of impossible size", COPY_AGAIN)
        return self._exactly(size + -size % BLOCK)[:size]

    def _pax(self, data: bytes) -> dict[str, str]:
        """Records ``LENGTH KEY=VALUE``, the length counting all of the record."""
        found: dict[str, str] = {}
        while data.strip(b"\0"):
            length, space, _ = data.partition(b" ")
            size = int(length) if length.isdigit() else 0
            key, equals, value = data[len(length) + 1 : size].partition(b"=")
            if not (space and equals and value.endswith(b"\n")):
                raise self._damaged("a malformed extended header", COPY_AGAIN)
            found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
            data = data[size:]
        return found

    def _skip(self) -> None:
        while self._left:
            self.read()
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _end(self) -> None:
        """Two blocks of zeros end an archive, and nothing but zeros may follow. Raises: IntegrityError."""
        rest = self._exactly(BLOCK)
        while rest:
            if rest.strip(b"\0"):
                raise self._damaged("something follows its end", COPY_AGAIN)
            rest = self._file.read(_PIECE_BYTES)

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        while len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                raise cut_off(self._path, "the tar archive has no end")
            data += more
        return data

    def _damaged(self, why: str, hint: str) -> IntegrityError:
        return IntegrityError(f"read {self._path}: refused as a tar archive: {why}", hint=hint)
