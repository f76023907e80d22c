"""The seam between a backup and where its files come from: a running server, or a data directory at rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn


@dataclass(frozen=True, slots=True)
class SourceTablespace:
    """A tablespace as the stream's header names it; ``size`` in bytes, None when unknown."""

    oid: int
    location: str
    size: int | None


@dataclass(frozen=True, slots=True)
class SourceStart:
    """What is known before the first file. ``total_bytes`` is the server's own estimate."""

    lsn: Lsn
    timeline: int
    tablespaces: tuple[SourceTablespace, ...]
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class SourceEnd:
    """What is known after the last file.

    ``manifest`` is the server's backup_manifest, verbatim; ``checksum_failure`` says that the server found pages whose
    checksum is wrong, ``notices`` what it said meanwhile; ``warnings`` is what the source itself has to say.
    """

    lsn: Lsn
    timeline: int
    manifest: bytes
    checksum_failure: bool
    notices: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


class FileReceiver(Protocol):
    """Takes the files of a backup, one after another, from one thread."""

    def start(self, start: SourceStart) -> None: ...

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        """A regular file of ``size`` bytes; its path as in the server's manifest (``pg_tblspc/OID/…``)."""
        ...

    def write(self, data: memoryview) -> None:
        """The file's next bytes; the view is not valid after return."""
        ...

    def end_file(self) -> None: ...

    def directory(self, path: bytes, mode: int) -> None: ...


class BackupSource(Protocol):
    """Streams a backup. May be run again after a run that failed."""

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        """Push every file to ``receiver``, then say how it ended.

        Args: upload - a manifest of the parent: only what changed in the files that it names is sent.
        Raises: ServerError, Cancelled; IncrementRefused, when ``upload`` does not serve; whatever the receiver raises.
        """
        ...
