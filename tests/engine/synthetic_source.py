"""A cluster that needs no PostgreSQL: files made from a seed, streamed as a server would, with a manifest to match."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from crc32c import crc32c

from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart

SYSTEM_IDENTIFIER = 7301234567890123456

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


@dataclass(frozen=True)
class SyntheticCluster:
    """Directories and files by path; a path is spelt as the server's manifest would."""

    page_size: int
    files: dict[bytes, bytes]
    directories: tuple[bytes, ...]
    system_identifier: int = SYSTEM_IDENTIFIER
    modes: dict[bytes, int] = field(default_factory=dict)

    @property
    def facts(self) -> ServerFacts:
        return ServerFacts(
            version="18.1",
            version_number=180001,
            major=18,
            system_identifier=self.system_identifier,
            block_size=self.page_size,
        )

    def mode(self, path: bytes) -> int:
        return self.modes.get(path, FILE_MODE)

    def with_files(self, changed: dict[bytes, bytes]) -> SyntheticCluster:
        """The same cluster with these files new or different."""
        return replace(self, files=self.files | changed)

    def with_changed_pages(self, seed: int, share: float) -> SyntheticCluster:
        """The same files with that share of the pages of each different, at least one page somewhere."""
        chance = random.Random(f"change {seed}")
        files = dict(self.files)
        for path, content in self.files.items():
            if path.startswith(b"base/"):
                files[path] = _changed(content, self.page_size, share, chance)
        return replace(self, files=files)


def _changed(content: bytes, page_size: int, share: float, chance: random.Random) -> bytes:
    data = bytearray(content)
    pages = -(-len(data) // page_size)
    for page in range(pages):
        if chance.random() < share:
            end = min(len(data), (page + 1) * page_size)
            data[page * page_size : end] = chance.randbytes(end - page * page_size)
    return bytes(data)


def make_cluster(
    seed: int = 1, page_size: int = 8192, *, pages: int = 100, odd_names: bool = False, tables: int = 6
) -> SyntheticCluster:
    """A small cluster: tables of up to ``pages`` pages, some sparse, some with a short last page, empty directories."""
    chance = random.Random(f"cluster {seed}")
    files = {
        b"PG_VERSION": b"18\n",
        b"global/pg_control": chance.randbytes(8192),
        b"postgresql.conf": b"# settings\n" * 50,
        b"base/5/empty": b"",
        b"base/5/all_zeros": bytes(page_size * 70),
        b"base/5/short": chance.randbytes(page_size * 33 + 17),
        b"base/5/one_byte": b"\x01",
        b"base/5/sparse": b"".join(
            chance.randbytes(page_size) if page % 41 == 0 else bytes(page_size) for page in range(140)
        ),
        b"base/5/trailing_zeros": chance.randbytes(page_size * 3) + bytes(page_size * 50 + 5),
        b"pg_tblspc/16400/PG_18_202506291/5/16401": chance.randbytes(page_size * 5),
    }
    for number in range(tables):
        size = chance.randrange(1, pages) * page_size
        text = chance.randbytes(size // 4).hex().encode()
        files[b"base/5/%d" % (16384 + number)] = text + bytes(size - len(text))
    if odd_names:
        files |= {
            b"base/with:colon": b"colon",
            b"base/with space": b"space",
            b"base/with\nline end": b"line end",
            "base/größe-\U0001f418".encode(): b"utf-8",
        }
        if sys.platform == "linux":
            files[b"base/\xff\xfe-not-utf-8"] = b"bytes"
    directories = {b"/".join(path.split(b"/")[:depth]) for path in files for depth in range(1, path.count(b"/") + 1)}
    directories |= {b"pg_wal", b"pg_wal/archive_status", b"pg_dynshmem", b"pg_replslot"}
    return SyntheticCluster(page_size, files, tuple(sorted(directories)))


def server_manifest(cluster: SyntheticCluster) -> bytes:
    """A backup_manifest as the server writes it."""
    lines = []
    for path, content in cluster.files.items():
        try:
            name = {"Path": path.decode()}
        except UnicodeDecodeError:
            name = {"Encoded-Path": path.hex()}
        checksum = crc32c(content).to_bytes(4, "little").hex()
        rest = {"Size": len(content), "Last-Modified": "2025-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C"}
        fields = name | rest | {"Checksum": checksum}
        lines.append("{ " + json.dumps(fields, ensure_ascii=False)[1:-1] + " }")
    text = (
        '{ "PostgreSQL-Backup-Manifest-Version": 2,\n'
        f'"System-Identifier": {cluster.system_identifier},\n'
        '"Files": [\n' + ",\n".join(lines) + "\n],\n"
        '"WAL-Ranges": [\n{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000158" }\n],\n'
    ).encode()
    return text + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(text).hexdigest().encode()


class SyntheticSource:
    """Streams a cluster.

    Args:
        piece_bytes: how much arrives at once.
        manifest: what to send as the server's manifest instead of the right one.
        before_file: called with each path before the file is sent; may raise or stop.
    """

    def __init__(
        self,
        cluster: SyntheticCluster,
        *,
        piece_bytes: int = 100_000,
        manifest: bytes | None = None,
        before_file: Callable[[bytes], None] = lambda path: None,
    ) -> None:
        self._cluster = cluster
        self._piece_bytes = piece_bytes
        self._manifest = manifest
        self._before_file = before_file

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        total = sum(len(content) for content in self._cluster.files.values())
        receiver.start(SourceStart(Lsn.parse("0/2000028"), 1, (), total))
        for path in self._cluster.directories:
            receiver.directory(path, DIRECTORY_MODE)
        for path, content in self._cluster.files.items():
            stop.check()
            self._before_file(path)
            receiver.begin_file(path, self._cluster.mode(path), len(content))
            for start in range(0, len(content), self._piece_bytes):
                receiver.write(memoryview(content)[start : start + self._piece_bytes])
            receiver.end_file()
        manifest = self._manifest if self._manifest is not None else server_manifest(self._cluster)
        return SourceEnd(Lsn.parse("0/2000158"), 1, manifest, checksum_failure=False)


def tree(root: str | os.PathLike[str]) -> tuple[dict[bytes, bytes], set[bytes]]:
    """What lies under a directory: content by path, and the directories."""
    files: dict[bytes, bytes] = {}
    directories: set[bytes] = set()
    base = os.fsencode(root)
    for folder, names, members in os.walk(base):
        directories |= {os.path.relpath(os.path.join(folder, name), base) for name in names}  # noqa: PTH118
        for member in members:
            path = os.path.join(folder, member)  # noqa: PTH118
            with open(path, "rb") as file:
                files[os.path.relpath(path, base)] = file.read()
    return files, directories
