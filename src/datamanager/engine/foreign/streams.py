"""Reading a file as it was before it was compressed, told by its first bytes; a file cut off is never taken whole.

Source: RFC 1952 (gzip), RFC 8878 (zstd), the frame formats of bzip2, xz, lz4 and zip.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from datamanager.base.errors import IntegrityError, ProgramMissing, UsageError
from datamanager.base.pipeline import StopToken

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
# So much is read at once. One block of zstd may become 2,000 times its size, so more would let a file fill the memory.
_RAW_BYTES = 16 * 1024


class Readable(Protocol):
    """Bytes in order; ``read`` returns nothing at the end and only there."""

    def read(self, size: int, /) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_FRAMES: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}


def compression_of(head: bytes) -> str:
    """The name of the compression that these first bytes tell; empty for none that is known."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


@contextlib.contextmanager
def opened_plain(path: Path, stop: StopToken, read: Callable[[int], None] | None = None) -> Iterator[Readable]:
    """Open a file and read it decompressed.

    Args: read - told the size of each piece read from the file itself, for progress.
    Raises: IntegrityError (cut off or damaged, also while reading), UsageError (a zip of several files),
        ProgramMissing (lz4), OSError; Cancelled, while reading.
    """
    with path.open("rb") as file, damage_named(path):
        counted = _Counted(file, stop, read)
        compression = compression_of(file.read(8))
        file.seek(0)
        if compression in _FRAMES:
            yield _Joined(_frames(counted, _FRAMES[compression], path))
        elif compression == "lz4":
            with _lz4(file, counted, path) as plain:
                yield plain
        elif compression == "zip":
            with _zip_member(path) as member:
                yield _Counted(member, stop, read)
        else:
            yield counted


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Inside, what a decompressor says of damage becomes an error that names the file."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile, EOFError) as error:
        raise IntegrityError(
            f"read {path}: it is damaged or was cut off ({str(error) or 'end of file'})", hint=COPY_AGAIN
        ) from error


COPY_AGAIN = "Copy the file again from where it was made, and compare its size; nothing was restored."


def cut_off(path: Path, why: str) -> IntegrityError:
    """What to raise for a file that ends too early."""
    return IntegrityError(f"read {path}: it was cut off: {why}", hint=COPY_AGAIN)


class _Counted:
    """The file itself, looking at the stop token at each piece."""

    def __init__(self, file: Readable, stop: StopToken, told: Callable[[int], None] | None) -> None:
        self._file = file
        self._stop = stop
        self._told = told

    def read(self, size: int, /) -> bytes:
        self._stop.check()
        data = self._file.read(size)
        if self._told is not None and data:
            self._told(len(data))
        return data


class _Joined:
    """Pieces of any size, read in the sizes that are asked for; short only at the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        parts: list[memoryview] = []
        missing = size
        while missing:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            part = self._rest[:missing]
            self._rest = self._rest[len(part) :]
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)


def _frames(file: Readable, begin: Callable[[], _Decompressor], path: Path) -> Iterator[bytes]:
    """The content of one frame after the other. Raises: IntegrityError, for a last one without its end."""
    current: _Decompressor | None = None
    data = b""
    while True:
        data = data or file.read(_RAW_BYTES)
        if not data:
            break
        if current is None:
            data = data.lstrip(b"\0")  # what tapes and xz fill up with
            if not data:
                continue
            current = begin()
        content = current.decompress(data)
        data = b""
        if content:
            yield content
        if current.eof:
            data, current = current.unused_data, None
    if current is not None:
        raise cut_off(path, "its compressed data have no end")


@contextlib.contextmanager
def _lz4(file: BinaryIO, counted: Readable, path: Path) -> Iterator[Readable]:
    """Through the program ``lz4``: Python has no such library of its own."""
    program = shutil.which("lz4")
    if program is None:
        raise ProgramMissing(
            f"read {path}: it is compressed with lz4, and the program lz4 is not installed",
            hint="Install the package lz4, or decompress the file where it was made.",
        )
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # what was read ahead of it moved the descriptor
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([program, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=said)
        try:
            output = process.stdout
            if output is None:
                raise EOFError
            yield _Lz4(output, process, said, path, counted)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


class _Lz4:
    """What the program writes; at its end its status must be 0."""

    def __init__(
        self, output: Readable, process: subprocess.Popen[bytes], said: BinaryIO, path: Path, counted: Readable
    ) -> None:
        self._output = output
        self._process = process
        self._said = said
        self._path = path
        self._counted = counted

    def read(self, size: int, /) -> bytes:
        self._counted.read(0)  # looks at the stop token
        data = self._output.read(size)
        if not data and size and self._process.wait() != 0:
            self._said.seek(0)
            words = " ".join(self._said.read(300).decode(errors="replace").split())
            raise cut_off(self._path, words or "lz4 failed")
        return data


@contextlib.contextmanager
def _zip_member(path: Path) -> Iterator[Readable]:
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
        if len(members) != 1:
            raise UsageError(
                f"read {path}: a zip archive with {len(members)} files",
                hint="Unpack it, and give the file that is meant.",
            )
        if members[0].flag_bits & 1:
            raise UsageError(f"read {path}: a zip archive with a password", hint="Unpack it first.")
        with archive.open(members[0]) as member:
            yield member
