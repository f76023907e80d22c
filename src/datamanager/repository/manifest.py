"""The manifest: what a backup is, written last; its presence is the commit.

Canonical JSON in a small sealed object, stored twice. ``docs/format.md``, Manifest, lists the fields.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from datamanager.base.errors import FormatUnsupported, IntegrityError
from datamanager.base.units import Lsn
from datamanager.postgres.outside_model import OutsideFile
from datamanager.repository.format import BACKUP_ID, FORMAT, MAX_CHUNKS_PER_PACK, MAX_LAYERS, canonical_json


@dataclass(frozen=True, slots=True)
class LayerReference:
    """Where a layer lies: spans of (metadata pack in hex, first chunk, chunks), then how its chunks divide."""

    spans: list[tuple[str, int, int]]
    blocks: int
    table: int
    index: int
    files: int
    rows: int


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace outside the data directory; ``location`` as the server named it, ``size`` in bytes."""

    oid: int
    location: str
    size: int


@dataclass(frozen=True, slots=True)
class ChecksumFailure:
    """Blocks of a file, counted from the file's start, whose page checksum was wrong when they were read."""

    path: str
    blocks: list[int]


# Fields that the first release did not have; they are written only where they say something.
_LATER = frozenset(("reason", "bytes_resumed", "pages_changed", "audit", "cuts", "control", "outside"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One complete backup. Times are RFC 3339 in UTC, LSNs as PostgreSQL prints them, sizes in bytes."""

    backup: str
    sequence: int
    previous: dict[str, str] | None  # {"backup", "sha256"} of the manifest before in this repository
    cluster: str
    label: str
    program: str
    started: str
    ended: str
    system_identifier: str
    version: str
    major: int
    page_size: int
    segment_size: int
    wal_segment_size: int
    checksums: bool
    timeline: int
    start_lsn: str
    stop_lsn: str
    method: str  # full | native | compared
    parent: str | None
    layers: list[LayerReference]
    tablespaces: list[Tablespace]
    volumes: dict[str, int]  # bytes to restore: "base", then one per tablespace oid
    files: int
    bytes_read: int
    bytes_stored: int
    bytes_reused: int
    server: dict[str, Any]
    checksum_failures: list[ChecksumFailure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reason: str = ""  # why everything was read
    bytes_resumed: int = 0  # stored already by an interrupted backup
    pages_changed: int = 0  # of relations, against the parent
    audit: dict[str, Any] = field(default_factory=dict)  # slice, pages held against the parent, mismatches
    cuts: list[str] = field(default_factory=list)  # where the server's WAL summaries began and ended before it
    control: dict[str, Any] = field(default_factory=dict)  # what pg_control said, of a cold backup
    outside: list[OutsideFile] = field(default_factory=list)  # configuration from outside the data directory

    @property
    def cold(self) -> bool:
        """The server did not run while this backup was taken; it starts by pg_control."""
        return bool(self.control)

    @property
    def damaged(self) -> bool:
        """The server reported wrong page checksums while this backup was taken (docs/design.md)."""
        return bool(self.checksum_failures)

    @property
    def total_bytes(self) -> int:
        return sum(self.volumes.values())

    @property
    def stop(self) -> Lsn:
        return Lsn.parse(self.stop_lsn)

    def to_json(self) -> bytes:
        written = {name: one for name, one in asdict(self).items() if one or name not in _LATER}
        return canonical_json({"format": FORMAT, **written})

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Self:
        """Raises: IntegrityError, FormatUnsupported. Fields that a newer program added are ignored."""
        try:
            value = json.loads(data)
            if value["format"] > FORMAT:
                raise FormatUnsupported(f"read {name}: format {value['format']} is newer than this program")
            known = {one.name for one in fields(cls)}
            given = {key: item for key, item in value.items() if key in known}
            given["layers"] = [_layer(one) for one in value["layers"]]
            given["tablespaces"] = [Tablespace(**one) for one in value["tablespaces"]]
            given["checksum_failures"] = [ChecksumFailure(**one) for one in value["checksum_failures"]]
            given["outside"] = [OutsideFile(**one) for one in value.get("outside", [])]
            manifest = cls(**given)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise IntegrityError(f"read {name}: malformed manifest ({error})") from error
        if not BACKUP_ID.match(manifest.backup) or not 1 <= len(manifest.layers) <= MAX_LAYERS:
            raise IntegrityError(f"read {name}: malformed manifest")
        return manifest


def _layer(value: dict[str, Any]) -> LayerReference:
    spans = [(str(pack), int(first), int(count)) for pack, first, count in value["spans"]]
    reference = LayerReference(spans, *(int(value[name]) for name in ("blocks", "table", "index", "files", "rows")))
    counts = (reference.blocks, reference.table, reference.index)
    impossible = any(
        len(bytes.fromhex(pack)) != 16 or first < 0 or not 0 < count <= MAX_CHUNKS_PER_PACK - first
        for pack, first, count in spans
    )
    if impossible or min(counts) < 0 or sum(count for _, _, count in spans) != sum(counts):
        raise ValueError("a layer's spans do not add up")
    return reference
