"""Reading and writing backup_manifest, the server's own list of the files of a backup.

The server writes one file a line, so a manifest of any size is read line by line. A CRC-32C stands as the hexadecimal
of its four bytes in little-endian order. A manifest that we write has no modification times: no reader wants them.
Source: PostgreSQL documentation, chapter 70 (Backup Manifest Format); src/common/parse_manifest.c.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn

_FILE_LINE = (b'{ "Path":', b'{ "Encoded-Path":')
# What nearly every line is; another one is parsed as JSON.
_PLAIN_LINE = re.compile(
    rb'\{ "Path": "([ !#-\[\]-~]+)", "Size": ([0-9]+), "Last-Modified": "[ -!#-\[\]-~]*", '
    rb'"Checksum-Algorithm": "CRC32C", "Checksum": "([0-9a-f]{8})" \},?\Z'
)
_RANGE_LINE = b'{ "Timeline":'
_CHECKSUM_LINE = b'"Manifest-Checksum":'
_CHECKSUM = re.compile(rb'\s*"([0-9a-f]{64})"\s*\}\s*')
# Needs no escape in JSON; nearly every path of a cluster is one.
_PLAIN = re.compile(rb"[ !#-\[\]-~]*")


class ManifestFile(NamedTuple):
    """One file: its path in bytes, size in bytes, CRC-32C as a number."""

    path: bytes
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class WalRange:
    """WAL that a restore needs."""

    timeline: int
    start: Lsn
    end: Lsn


def check_manifest(manifest: bytes) -> None:
    """Raises: IntegrityError, when the manifest's own SHA-256 does not fit."""
    start = manifest.rfind(_CHECKSUM_LINE)
    given = _CHECKSUM.fullmatch(manifest, start + len(_CHECKSUM_LINE))
    if start < 0 or given is None or hashlib.sha256(manifest[:start]).hexdigest() != given[1].decode():
        raise IntegrityError("read backup manifest: its checksum does not fit")


def manifest_files(manifest: bytes) -> Iterator[ManifestFile]:
    """Every file listed. Raises: IntegrityError."""
    for line in _lines(manifest):
        plain = _PLAIN_LINE.match(line)
        if plain is not None:
            yield ManifestFile(plain[1], int(plain[2]), int.from_bytes(bytes.fromhex(plain[3].decode()), "little"))
            continue
        if not line.startswith(_FILE_LINE):
            continue
        try:
            value = json.loads(line.rstrip(b","))
            encoded = value.get("Encoded-Path")
            path = bytes.fromhex(encoded) if encoded is not None else value["Path"].encode()
            crc = int.from_bytes(bytes.fromhex(value["Checksum"]), "little")
            yield ManifestFile(path, int(value["Size"]), crc)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError("read backup manifest: a malformed line") from error


def wal_ranges(manifest: bytes) -> list[WalRange]:
    """The WAL that the backup needs. Raises: IntegrityError."""
    ranges = []
    for line in _lines(manifest):
        if line.startswith(_RANGE_LINE):
            try:
                value = json.loads(line.rstrip(b","))
                ranges.append(
                    WalRange(int(value["Timeline"]), Lsn.parse(value["Start-LSN"]), Lsn.parse(value["End-LSN"]))
                )
            except (KeyError, ValueError, TypeError, RecursionError) as error:
                raise IntegrityError("read backup manifest: a malformed line") from error
    return ranges


def build_manifest(
    files: Iterable[tuple[bytes, int, int | None]], *, system_identifier: int | None, wal: Sequence[WalRange]
) -> bytes:
    """A manifest that the server and its programs accept.

    Args:
        files: path, size in bytes and CRC-32C of each; None gives no checksum (the server needs none to send an
            increment, and ``pg_verifybackup`` then checks the size alone).
        system_identifier: of the cluster, for PostgreSQL 17 and newer; None writes version 1, for those before.
        wal: what a restore needs.
    """
    plain = _PLAIN.fullmatch
    lines = []
    for path, size, crc in files:
        name = b'"Path": "%b"' % path if plain(path) else _odd_name(path)
        if crc is None:
            lines.append(b'{ %b, "Size": %d }' % (name, size))
        else:
            little = crc.to_bytes(4, "little").hex().encode()
            lines.append(b'{ %b, "Size": %d, "Checksum-Algorithm": "CRC32C", "Checksum": "%b" }' % (name, size, little))
    version = b"1" if system_identifier is None else b'2,\n"System-Identifier": %d' % system_identifier
    ranges = [
        b'{ "Timeline": %d, "Start-LSN": "%b", "End-LSN": "%b" }'
        % (one.timeline, str(one.start).encode(), str(one.end).encode())
        for one in wal
    ]
    body = b'{ "PostgreSQL-Backup-Manifest-Version": %b,\n"Files": [\n%b\n],\n"WAL-Ranges": [\n%b\n],\n' % (
        version,
        b",\n".join(lines),
        b",\n".join(ranges),
    )
    return b'%b%b "%b"}\n' % (body, _CHECKSUM_LINE, hashlib.sha256(body).hexdigest().encode())


def _odd_name(path: bytes) -> bytes:
    try:
        return b'"Path": %b' % json.dumps(path.decode(), ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return b'"Encoded-Path": "%b"' % path.hex().encode()


def _lines(manifest: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(manifest):
        end = manifest.find(b"\n", start)
        end = len(manifest) if end < 0 else end
        yield manifest[start:end]
        start = end + 1
