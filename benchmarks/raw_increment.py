"""BASE_BACKUP INCREMENTAL read in this process and thrown away: what the server itself takes, and what it sends.

The command is the product's own, word for word but for the label, so that both make the server do the same work
(``WAL true``, ``WAIT false``: field-notes.md, 1). The loop does nothing with a message but look at its first byte.
"""

from __future__ import annotations

import contextlib
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard
from psycopg import pq

from benchmarks.process import ContenderFailed, Finished
from benchmarks.server import PAGE_BYTES, BenchmarkServer
from benchmarks.workspace import Workspace

_UPLOAD_PART_BYTES = 1 << 20
_CHUNK_BYTES = 256 << 10
_LEVEL = 1
_INCREMENT_MAGIC = 0xD3AE1F0D
_OPTIONS = (
    "LABEL 'benchmark', PROGRESS true, CHECKPOINT 'fast', WAL true, WAIT false, MANIFEST 'yes', "
    "MANIFEST_CHECKSUMS 'CRC32C', VERIFY_CHECKSUMS true"
)


@dataclass(frozen=True, slots=True)
class RawRead:
    """One base backup, read to its end. ``size`` counts what the server sent, but for the manifest, in bytes."""

    seconds: float
    size: int
    manifest: bytes


def read_raw(
    server: BenchmarkServer, parent: bytes | None, on_data: Callable[[memoryview], object] = lambda data: None
) -> RawRead:
    """Read a full backup, or an increment upon the backup with the manifest ``parent``; servers from 15 on.

    Args: on_data - gets the data of the archives, one after the other, each a complete tar file.
    Raises: ContenderFailed.
    """
    if server.major < 15:
        raise ContenderFailed(f"the raw reader knows the protocol from 15 on, not that of {server.major}")
    began = time.perf_counter()
    with _connected(server) as connection:
        if parent is not None:
            _upload(connection, parent)
        connection.send_query(f"BASE_BACKUP ({_OPTIONS}{', INCREMENTAL' if parent is not None else ''})".encode())
        for wanted in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_OUT):
            _need(connection.get_result(), wanted)
        count, manifest = _read_copy(connection, on_data)
        while (result := connection.get_result()) is not None:
            _need(result, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
    return RawRead(time.perf_counter() - began, count, manifest)


@contextlib.contextmanager
def _connected(server: BenchmarkServer) -> Iterator[pq.abc.PGconn]:
    address = f"host={server.folder} port={server.port} user=postgres replication=true"
    connection = pq.PGconn.connect(address.encode())
    try:
        if connection.status != pq.ConnStatus.OK:
            raise ContenderFailed(connection.error_message.decode(errors="replace").strip())
        yield connection
    finally:
        connection.finish()


def _upload(connection: pq.abc.PGconn, manifest: bytes) -> None:
    connection.send_query(b"UPLOAD_MANIFEST")
    _need(connection.get_result(), pq.ExecStatus.COPY_IN)
    for start in range(0, len(manifest), _UPLOAD_PART_BYTES):
        connection.put_copy_data(manifest[start : start + _UPLOAD_PART_BYTES])
    connection.put_copy_end()
    while (result := connection.get_result()) is not None:
        _need(result, pq.ExecStatus.COMMAND_OK)


def _read_copy(connection: pq.abc.PGconn, on_data: Callable[[memoryview], object]) -> tuple[int, bytes]:
    count, manifest, in_manifest = 0, bytearray(), False
    while True:
        size, data = connection.get_copy_data(0)
        if size < 0:
            return count, bytes(manifest)
        tag = data[0]
        if tag == 0x64:  # d, of an archive or of the manifest
            if in_manifest:
                manifest += data[1:]
            else:
                count += size - 1
                on_data(data[1:])
        elif tag == 0x6D:  # m, the manifest follows
            in_manifest = True


def _need(result: pq.abc.PGresult | None, *wanted: pq.ExecStatus) -> None:
    if result is None or result.status not in wanted:
        said = result.error_message.decode(errors="replace").strip() if result is not None else "nothing"
        raise ContenderFailed(f"BASE_BACKUP did not go as expected; the server said: {said}")


class RawIncrement:
    """The limit of an increment. Each run's backup is the parent of the next, as with the other contenders.

    What it "stores" are the changed pages, compressed: chunks of 256 KiB, zstd level 1.
    """

    name = "limit: BASE_BACKUP INCREMENTAL stream, thrown away"
    command = "UPLOAD_MANIFEST; BASE_BACKUP (…, INCREMENTAL) over the replication protocol, in the harness itself"

    def __init__(self, workspace: Workspace, server: BenchmarkServer, *, weigh: bool = True) -> None:
        self._server = server
        self._weigh = weigh
        self._file = workspace.path / f"raw-{server.folder.name}.tar"
        self._parent: bytes | None = None
        self._next: bytes | None = None
        self._failure = ""
        self.remark = ""

    def base(self) -> None:
        try:
            self._parent = read_raw(self._server, None).manifest
        except ContenderFailed as error:
            self._failure = str(error)

    def prepare(self) -> None:
        if self._failure or self._parent is None:
            raise ContenderFailed(self._failure or "there is no backup to build upon")

    def run(self, sample_memory: bool) -> Finished:
        read = read_raw(self._server, self._parent)
        self._next = read.manifest
        return Finished(read.seconds, "")

    def stored_bytes(self) -> int | None:
        """A second reading upon the same parent, not timed. Raises: ContenderFailed."""
        if not self._weigh:
            return None
        with open(self._file, "wb") as file:
            read_raw(self._server, self._parent, file.write)
        pages, compressed = changed_pages(self._file)
        self.remark = f"{pages:,} changed pages"
        return compressed

    def clean(self) -> None:
        self._parent, self._next = self._next or self._parent, None
        self._file.unlink(missing_ok=True)


def changed_pages(file: Path) -> tuple[int, int]:
    """Of the archives in ``file``: the number of pages in files sent as increments, and their bytes compressed.

    Source of the layout: src/include/backup/basebackup_incremental.h (field-notes.md, 2).
    """
    pages = compressed = 0
    waiting = bytearray()
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with tarfile.open(file, "r:", ignore_zeros=True) as archive:  # several archives, each with its own end
        for member in archive:
            if not member.isfile() or not member.name.rpartition("/")[2].startswith("INCREMENTAL."):
                continue
            content = archive.extractfile(member)
            if content is None:
                continue
            count = _skip_header(content)
            pages += count
            waiting += content.read(count * PAGE_BYTES)
            while len(waiting) >= _CHUNK_BYTES:
                compressed += len(compressor.compress(bytes(waiting[:_CHUNK_BYTES])))
                del waiting[:_CHUNK_BYTES]
    return pages, compressed + (len(compressor.compress(bytes(waiting))) if waiting else 0)


def _skip_header(content: IO[bytes]) -> int:
    """Number of pages that follow. Raises: ContenderFailed, when this is no increment."""
    magic, count, _ = struct.unpack("=III", content.read(12))
    if magic != _INCREMENT_MAGIC:
        raise ContenderFailed("a file that is called INCREMENTAL is none")
    header = 12 + 4 * count
    if count:
        header += -header % PAGE_BYTES
    content.seek(header)
    return int(count)
