"""Reading and writing backup_manifest, the server's own list of the files of a backup.

The server writes one file a line, so a manifest of any size is read line by line. A CRC-32C stands as the hexadecimal
of its four bytes in little-endian order. Source: PostgreSQL documentation, chapter 70 (Backup Manifest Format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn

_FILE_LINE = (b'{ "Path":', b'{ "Encoded-Path":')
_RANGE_LINE = b'{ "Timeline":'
_CHECKSUM_LINE = b'"Manifest-Checksum":'


@dataclass(frozen=True, slots=True)
class ManifestFile:
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
    given = manifest[start + len(_CHECKSUM_LINE) :].strip().strip(b'}" \n').decode(errors="replace")
    if start < 0 or hashlib.sha256(manifest[:start]).hexdigest() != given:
        raise IntegrityError("read backup manifest: its checksum does not fit")


def manifest_files(manifest: bytes) -> Iterator[ManifestFile]:
    """Every file listed. Raises: IntegrityError."""
    for line in _lines(manifest):
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


def _lines(manifest: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(manifest):
        end = manifest.find(b"\n", start)
        end = len(manifest) if end < 0 else end
        yield manifest[start:end]
        start = end + 1
