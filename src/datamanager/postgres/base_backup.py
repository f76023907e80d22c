"""The streaming source: BASE_BACKUP over the replication protocol, servers 14 to 18.

    slot    a temporary physical slot in the same session keeps the WAL of the backup
    15+     one COPY, its messages tagged: n new archive, d data, p progress, m manifest follows
    14      one COPY a tablespace, the data directory last, then one with the manifest

Source: PostgreSQL documentation, section 54.4 (BASE_BACKUP); src/backend/backup/basebackup_copy.c.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from psycopg import pq

from datamanager.base.clock import Clock
from datamanager.base.errors import ServerError, ServerUnfit, StreamBroken, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession, result_rows
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart, SourceTablespace
from datamanager.postgres.tar_stream import TarReader

MAX_MANIFEST_BYTES = 1 << 30
MIN_RATE_KIB, MAX_RATE_KIB = 32, 1 << 20
_DATA_CORRUPTED = "XX001"


@dataclass(frozen=True, slots=True)
class BaseBackupOptions:
    """How the server is asked.

    Args:
        label: stands in backup_label; at most 1,000 characters.
        fast_checkpoint: begin at once at the price of a burst of writes; else spread over checkpoint_timeout.
        max_rate_kib: 32 to 1,048,576 KiB/s, or None for no limit.
        silence_seconds: how long the server may say nothing (it waits for a spread checkpoint, for its archiver).
    """

    label: str
    fast_checkpoint: bool = True
    max_rate_kib: int | None = None
    silence_seconds: float = 900.0

    def __post_init__(self) -> None:
        """Raises: UsageError, for a rate that the server would refuse."""
        if self.max_rate_kib is not None and not MIN_RATE_KIB <= self.max_rate_kib <= MAX_RATE_KIB:
            raise UsageError(
                f"limit rate: {self.max_rate_kib} KiB/s is outside {MIN_RATE_KIB} KiB/s to {MAX_RATE_KIB} KiB/s",
                hint="Give a rate from 32 KiB to 1 GiB a second, or none.",
            )


class BaseBackupSource:
    """Streams backups of a running server, each over a connection of its own. One thread."""

    def __init__(
        self,
        address: ServerAddress,
        major: int,
        options: BaseBackupOptions,
        clock: Clock,
        on_executed: Callable[[str], None],
        on_slot: Callable[[str], None],
    ) -> None:
        self._address = address
        self._major = major
        self._options = options
        self._clock = clock
        self._on_executed = on_executed
        self._on_slot = on_slot

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        connection = connect(self._address, stop=stop, replication=True)
        silence = self._options.silence_seconds
        with ReplicationSession(connection, stop, self._clock, self._on_executed, silence) as session:
            slot = f"datamanager_{secrets.token_hex(8)}"
            session.query(f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY PHYSICAL RESERVE_WAL')
            self._on_slot(slot)
            if upload is not None:
                session.copy_in("UPLOAD_MANIFEST", upload)
            session.send(base_backup_command(self._major, self._options, incremental=upload is not None))
            start = _read_start(session)
            receiver.start(start)
            stream = _TaggedStream(receiver, start) if self._major >= 15 else _PlainStreams(receiver, start)
            stream.read(session)
            return self._read_end(session, bytes(stream.manifest))

    def _read_end(self, session: ReplicationSession, manifest: bytes) -> SourceEnd:
        last = session.result()
        if last is None or last.status != pq.ExecStatus.TUPLES_OK:
            raise StreamBroken("read from server: the backup ended without its end position")
        with _well_formed():
            (row,) = result_rows(last)
            lsn, timeline = Lsn.parse(row[0] or ""), int(row[1] or 0)
        corrupted = False
        try:
            while session.result() is not None:
                pass
        except ServerError as error:
            if error.sqlstate != _DATA_CORRUPTED:
                raise
            corrupted = True  # every byte has arrived; the caller finds the pages and flags the backup
        return SourceEnd(
            lsn=lsn,
            timeline=timeline,
            manifest=manifest,
            checksum_failure=corrupted,
            notices=tuple(session.notices),
        )


def base_backup_command(major: int, options: BaseBackupOptions, *, incremental: bool = False) -> str:
    """The BASE_BACKUP command in the words of ``major``.

    Never TABLESPACE_MAP (decision 1), never WAIT (decision 9: the archiver may be stuck; the WAL comes along).
    """
    label = options.label.replace("'", "''")
    rate = options.max_rate_kib
    if major >= 15:
        words = [
            f"LABEL '{label}'",
            "PROGRESS true",
            f"CHECKPOINT '{'fast' if options.fast_checkpoint else 'spread'}'",
            "WAL true",
            "WAIT false",
            "MANIFEST 'yes'",
            "MANIFEST_CHECKSUMS 'CRC32C'",
            "VERIFY_CHECKSUMS true",
            *(["INCREMENTAL true"] if incremental else []),
        ]
        return f"BASE_BACKUP ({', '.join(words + ([f'MAX_RATE {rate}'] if rate else []))})"
    words = [f"LABEL '{label}'", "PROGRESS", *(["FAST"] if options.fast_checkpoint else []), "WAL", "NOWAIT"]
    words += [f"MAX_RATE {rate}"] if rate else []
    return f"BASE_BACKUP {' '.join(words)} MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"


def _read_start(session: ReplicationSession) -> SourceStart:
    first, second = session.result(), session.result()
    if first is None or second is None:
        raise StreamBroken("read from server: the backup ended before it began")
    tablespaces, total = [], 0
    with _well_formed():
        (position,) = result_rows(first)
        for oid, location, size in result_rows(second):
            total += int(size or 0) * 1024
            if oid is not None:
                room = None if size is None else int(size) * 1024
                tablespaces.append(SourceTablespace(int(oid), location or "", room))
        return SourceStart(Lsn.parse(position[0] or ""), int(position[1] or 0), tuple(tablespaces), total or None)


@contextlib.contextmanager
def _well_formed() -> Iterator[None]:
    """What the server said is read inside. Raises: StreamBroken when it makes no sense."""
    try:
        yield
    except (ValueError, IndexError) as error:
        raise StreamBroken(f"read from server: an answer that makes no sense ({error})") from error


def _prefix(name: str) -> bytes:
    """Where the members of an archive lie: ``base.tar`` at the top, ``OID.tar`` below its tablespace."""
    with _well_formed():
        return b"" if name == "base" else f"pg_tblspc/{int(name)}/".encode()


class _TaggedStream:
    """The single COPY of 15 and later."""

    def __init__(self, receiver: FileReceiver, start: SourceStart) -> None:
        self._receiver = receiver
        self.manifest = bytearray()

    def read(self, session: ReplicationSession) -> None:
        _expect_copy(session)
        archive: TarReader | None = None
        for message in session.copy_messages():
            tag = message[0]
            if tag == 0x64:  # d
                if archive is not None:
                    archive.feed(message[1:])
                else:
                    _grow(self.manifest, message[1:])
            elif tag == 0x6E:  # n
                _finish(session, archive)
                name = bytes(message[1:]).split(b"\0", 1)[0].decode(errors="replace")
                archive = TarReader(self._receiver, _prefix(name.removesuffix(".tar")))
            elif tag == 0x6D:  # m
                _finish(session, archive)
                archive = None
            elif tag != 0x70:  # p: our own count is finer
                raise StreamBroken(f"read from server: unknown message {tag:#x} in the backup stream")
        _finish(session, archive)
        if not self.manifest:
            _raise_reason(session)
            raise StreamBroken("read from server: the backup stream ended without its manifest")


class _PlainStreams:
    """One COPY a tablespace and one for the manifest: 14."""

    def __init__(self, receiver: FileReceiver, start: SourceStart) -> None:
        self._receiver = receiver
        self._names = [str(one.oid) for one in start.tablespaces] + ["base"]
        self.manifest = bytearray()

    def read(self, session: ReplicationSession) -> None:
        for name in self._names:
            _expect_copy(session)
            archive = TarReader(self._receiver, _prefix(name))
            for message in session.copy_messages():
                archive.feed(message)
            _finish(session, archive)
        _expect_copy(session)
        for message in session.copy_messages():
            _grow(self.manifest, message)


def _expect_copy(session: ReplicationSession) -> None:
    result = session.result()
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        raise StreamBroken("read from server: the backup stream did not begin")


def _finish(session: ReplicationSession, archive: TarReader | None) -> None:
    """An archive is over. Raises: the server's own reason when it is cut short, else StreamBroken."""
    try:
        if archive is not None:
            archive.finish()
    except StreamBroken:
        _raise_reason(session)
        raise


def _raise_reason(session: ReplicationSession) -> None:
    """A COPY that the server broke off ends like any other; why it did so is the next result.

    Raises: StreamBroken when the server's state changed midway, such as a promotion; ServerError.
    """
    try:
        session.result()
    except ServerUnfit as error:
        raise StreamBroken(error.message) from error


def _grow(manifest: bytearray, data: memoryview) -> None:
    if len(manifest) + len(data) > MAX_MANIFEST_BYTES:
        raise StreamBroken("read from server: its backup manifest is larger than 1 GiB")
    manifest += data
